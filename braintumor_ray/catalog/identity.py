"""Identities leave the catalog only as keyed hashes."""

import hashlib
import hmac
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.hash_key import KEY_VARIABLE


@dataclass(frozen=True)
class IdentityHash:
    """Turns ids into keys that cannot be guessed without the secret.

    Attributes:
        secret: the key of the HMAC; None: there is none, and ids are refused.
        clear: keep ids as they are (an explicit wish: they may name people).
        make: gives a key when the first id is met and there is no `secret`.
    """

    secret: bytes | None = None
    clear: bool = False
    make: Callable[[], bytes] | None = None

    @property
    def key(self) -> bytes | None:
        """The secret, or the one that is made."""
        return self.secret if self.secret is not None or self.make is None else self.make()

    @property
    def check(self) -> str:
        """Distinguishes two keys without revealing either."""
        return str(replace(self, clear=False)("which key", "check"))

    def __call__(self, value: str | None, kind: str = "patient") -> str | None:
        """HMAC-SHA256 of `kind` and value, 32 hex digits; None stays None.

        Raises:
            CatalogError: there is an id and no secret.
        """
        if value is None or not value.strip():
            return None
        if self.clear:
            return value.strip()
        secret = self.key
        if secret is None:
            raise CatalogError(
                f"the source has {kind} ids and there is no key to hash them; set {KEY_VARIABLE} "
                "or give --hash-key-file (--clear-ids keeps them readable, if you may)"
            )
        message = f"{kind}\0{value.strip()}".encode("utf-8", "surrogatepass")
        return hmac.new(secret, message, hashlib.sha256).hexdigest()[:32]


def load_identity_hash(key_file: str | Path | None = None, clear: bool = False) -> IdentityHash:
    """The hash with its key from a file, else from the environment, else without one.

    Raises:
        UsageError: the key file cannot be read or is empty.
    """
    if key_file is None:
        text = os.environ.get(KEY_VARIABLE, "")
        return IdentityHash(os.fsencode(text) or None, clear)
    try:
        secret = Path(key_file).expanduser().read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--hash-key-file '{key_file}': {error.strerror}") from error
    if not secret:
        raise UsageError(f"--hash-key-file '{key_file}' is empty; put a secret of your own in it")
    return IdentityHash(secret, clear)


def compile_patient_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """A regular expression over the relative path whose group `patient` (or first) is the id.

    Raises:
        UsageError: not a regular expression, or one without a group.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patient-pattern {pattern!r}: {error}") from error
    if not compiled.groups:
        raise UsageError(f"--patient-pattern {pattern!r} has no group; write (?P<patient>...)")
    return compiled


def patient_from_path(pattern: re.Pattern[str] | None, path: str) -> str | None:
    """The id that the pattern finds in a relative path, or None."""
    match = pattern.search(path) if pattern else None
    if match is None:
        return None
    return match["patient"] if "patient" in match.re.groupindex else match[1]
