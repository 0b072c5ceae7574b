"""Decoders that misbehave, by name, for the archive job's tests."""

import os
import time

from braintumor_ray.decode.prepare import prepare_file

POISON = b"\x89PNG poison"
SLEEPING_POISON = b"\x89PNG sleeping poison"


def deadly(data, options):
    """Ends its process on one kind of file."""
    if data is not None and data.startswith(POISON):
        os._exit(7)
    return prepare_file(data, options)


def deadly_or_stalling(data, options):
    """Never comes back from another kind either."""
    if data is not None and data.startswith(SLEEPING_POISON):
        time.sleep(3600)
    return deadly(data, options)


def slow(data, options):
    """Leaves time to be killed."""
    time.sleep(0.02)
    return prepare_file(data, options)


def drowsy(data, options):
    """Leaves more time to be killed."""
    time.sleep(0.1)
    return prepare_file(data, options)
