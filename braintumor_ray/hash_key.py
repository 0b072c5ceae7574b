"""Where the secret is that hashes and hides ids: the environment, or a file of this user."""

import os
from collections.abc import Iterator
from pathlib import Path

KEY_VARIABLE = "BRAINTUMOR_HASH_KEY"


def key_path() -> Path:
    """Where the key of this user is: `braintumor-ray/hash_key` in the configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "braintumor-ray" / "hash_key"


def usual_secrets() -> Iterator[bytes]:
    """The secrets that a process of this user finds by itself: at most two."""
    if given := os.environ.get(KEY_VARIABLE):
        yield os.fsencode(given)
    try:
        own = key_path().read_bytes().strip()
    except OSError:  # not made yet, or of another user: then it hid nothing that we may read
        return
    if own:
        yield own
