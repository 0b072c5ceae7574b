"""A decoder that one body kills."""

import os

from braintumor_ray.serving.upload import decode_upload


def decode_or_die(data, options):
    if bytes(data) == b"die":
        os._exit(9)
    return decode_upload(data, options)
