"""UIDs as tokens: what a URI contains of a DICOM object can be read with the hash key only.

A token is the UID, encrypted by AES-SIV (RFC 5297) with a key that follows from the hash key. The
same UID always gives the same token. A process that has the key needs no list to find the object.
"""

import base64
import hmac
import os
import re
from functools import lru_cache
from typing import Any

from braintumor_ray.errors import UsageError
from braintumor_ray.extras import require
from braintumor_ray.hash_key import KEY_VARIABLE, usual_secrets

KINDS = ("study", "series", "sop")  # the parts of an object's path, from the left
_SHARED = "BRAINTUMOR_UID_KEYS"  # for the processes that this one starts: keys in hexadecimal
_UID = re.compile(r"[0-9.]{1,64}")  # PS3.5, 9.1
_TOKEN = re.compile(r"[A-Za-z0-9_-]{64}")


def uid_key(secret: bytes) -> bytes:
    """The 64 bytes that encrypt UIDs; the secret cannot be derived from them."""
    return hmac.digest(secret, b"UIDs in URIs", "sha512")


def share_key(key: bytes) -> None:
    """Let this process and those that it starts read tokens of a key."""
    kept = os.environ.get(_SHARED, "").split()
    if key.hex() not in kept:
        os.environ[_SHARED] = " ".join([*kept, key.hex()])


def is_uid(text: str) -> bool:
    """Whether a text is written as a UID."""
    return _UID.fullmatch(text) is not None


def is_hidden(part: str) -> bool:
    """Whether a part of a path is a token, or a UID in clear."""
    return is_uid(part) or _TOKEN.fullmatch(part) is not None


def hide_uid(uid: str, kind: str, key: bytes | None) -> str:
    """The token of a UID, 64 characters; without a key the UID itself."""
    if key is None:
        return uid
    digits = bytes.fromhex(uid.replace(".", "a").ljust(64, "f"))  # each token is equally long
    return base64.urlsafe_b64encode(_cipher(key).encrypt(digits, [kind.encode()])).decode()


def show_uid(token: str, kind: str) -> str:
    """The UID of a token, by the key among those of this process that made it.

    Raises:
        UsageError: none of them did.
    """
    if is_uid(token):
        return token
    from cryptography.exceptions import InvalidTag

    for key in _known_keys():
        try:
            digits = _cipher(key).decrypt(base64.urlsafe_b64decode(token), [kind.encode()])
        except InvalidTag:  # of another key: this is how they are distinguished
            continue
        return digits.hex().rstrip("f").replace("a", ".")
    raise UsageError(
        "a DICOMweb URI was made with a hash key that this process does not have; set "
        f"{KEY_VARIABLE} (on a cluster: for each node) or give --hash-key-file"
    )


def _known_keys() -> list[bytes]:
    shared = [bytes.fromhex(key) for key in os.environ.get(_SHARED, "").split()]
    return [*shared, *map(uid_key, usual_secrets())]


@lru_cache(maxsize=8)
def _cipher(key: bytes) -> Any:  # noqa: ANN401 - an optional library
    return require("cryptography.hazmat.primitives.ciphers.aead").AESSIV(key)
