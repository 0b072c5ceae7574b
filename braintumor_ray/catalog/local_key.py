"""The hash key of a user's own machine, and what distinguishes two keys in catalogs and results."""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.hash_key import KEY_VARIABLE, key_path
from braintumor_ray.storage import is_uri, open_filesystem, write_atomically

CHECK = b"hash_key_check"  # in a catalog's metadata
RESULTS_CHECK = "hash_key.json"  # in a results folder
HASHED = ("patient_key", "study_key", "series_key", "sop_key")


def own_key() -> bytes:
    """The key of this user on this machine, made on first use with mode 0600.

    Raises:
        UsageError: it can be neither read nor made.
    """
    path = key_path()
    try:
        if not path.exists():
            _make(path)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(
            f"the hash key '{path}' can be neither read nor made ({error.strerror}); set "
            f"{KEY_VARIABLE} or give --hash-key-file"
        ) from error
    if not secret:
        raise UsageError(f"the hash key '{path}' is empty; remove it, and a new one is made")
    return secret


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    made.touch(0o600)
    try:
        made.write_text(secrets.token_hex(32), encoding="ascii")
        os.link(made, path)  # whole, and only one of two processes at a time
    except FileExistsError:
        return
    finally:
        made.unlink()
    print(
        f"made a key for hashing ids, {path}: keep it, other keys make other ids", file=sys.stderr
    )


def own_key_allowed(output: object) -> bool:
    """Whether results of one machine are made; for shared ones a key must be given."""
    return not os.environ.get("RAY_ADDRESS") and not is_uri(str(output))


def noted(table: pa.Table, identity: IdentityHash) -> pa.Table:
    """A catalog that keeps the check value of its key, where it has hashed ids."""
    hashed = any(table[name].null_count < table.num_rows for name in HASHED)
    if not hashed or identity.clear:
        return table
    note = identity.check.encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), CHECK: note})


def check_catalog(source: str, schema: pa.Schema, identity: IdentityHash) -> str | None:
    """The check value that a catalog keeps; None: it is older, or has no ids.

    Raises:
        CatalogError: a key is given, and it is another one.
    """
    kept = (schema.metadata or {}).get(CHECK)
    if kept is None:
        return None
    if identity.secret is not None and identity.check != kept.decode():
        raise CatalogError(
            f"the ids of '{source}' were hashed with another key; give that key, or make the "
            "catalog again"
        )
    return str(kept.decode())


def check_results(results: str, check: str | None) -> None:
    """Refuse to add ids of another key to a results folder; the first key is noted there.

    Args:
        results: folder or URI.
        check: of the ids that will be added; None: there are none.

    Raises:
        CatalogError: the folder's ids have another key.
    """
    if check is None:
        return
    location = f"{results.rstrip('/')}/{RESULTS_CHECK}"
    kept = _read(location)
    if kept is None:
        write_atomically(location, json.dumps({"check": check}).encode())
    elif kept.get("check") != check:
        raise CatalogError(
            f"ids in '{results}' were hashed with another key; give that key, or another --output"
        )


def check_key(results: str, identity: IdentityHash) -> None:
    """Refuse a key that is not the one of a results folder; none may be noted there.

    Raises:
        CatalogError: the folder's ids have another key.
    """
    kept = _read(f"{results.rstrip('/')}/{RESULTS_CHECK}")
    if kept is not None and kept.get("check") != identity.check:
        raise CatalogError(
            f"ids in '{results}' were hashed with another key; give that key with --hash-key-file"
        )


def _read(location: str) -> dict[str, Any] | None:
    filesystem, path = open_filesystem(location)
    try:
        with filesystem.open_input_stream(path) as stream:
            found: dict[str, Any] = json.loads(stream.read())
    except FileNotFoundError:
        return None
    return found
