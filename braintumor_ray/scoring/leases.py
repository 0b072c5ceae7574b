"""The two kinds of lease: on a file system and on an object store.

On a file system `lease.json` is changed only under a lock on a file next to it. On an object store
every change is a put that fails if another came first. There nothing is ever deleted, since a
delete has no condition: a released lease is a holder whose last heartbeat is 1970. Hosts' clocks
must agree to well within the 60 s after which a lease is stale.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from braintumor_ray.errors import ResultsError
from braintumor_ray.scoring.lease import LEASE, Holder, Lease, NoLease
from braintumor_ray.storage import is_local, local_path, s3_endpoint, write_atomically


class FileLease(Lease):
    """See `lease.Lease`."""

    def __init__(self, results: str) -> None:
        super().__init__(results)
        self._path = local_path(results) / LEASE

    def take(self) -> Holder | None:
        """Become the holder, or tell who is and lives."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            holder = self.read()
            if holder is not None and holder.is_alive(time.time()):
                return holder
            self._write()
        return None

    def read(self) -> Holder | None:
        """Who holds it."""
        try:
            return Holder.parse(self._path.read_bytes(), str(self._path))
        except FileNotFoundError:
            return None

    def renew(self) -> bool:
        """Show a sign of life."""
        with self._locked():
            holder = self.read()
            if holder is None or holder.token != self.token:
                return False
            self._write()
        return True

    def release(self) -> None:
        """Remove the file, if it is ours."""
        with self._locked():
            holder = self.read()
            if holder is not None and holder.token == self.token:
                self._path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        with open(self._path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield  # closing the file releases the lock, also when the process dies

    def _write(self) -> None:
        write_atomically(str(self._path), Holder.this_process(self.token).dump())


SCHEMES = ("s3://", "gs://", "az://", "abfs://")
RELEASED = 0.0


def has_conditional_put(results: str) -> bool:
    """Whether a lease can be held there: the library is installed and knows the store."""
    return results.startswith(SCHEMES) and find_spec("obstore") is not None


def open_object_store(results: str) -> Any:  # noqa: ANN401 - obstore's stores share no type
    """The store of a results folder, as obstore sees it."""
    from obstore.store import from_url

    endpoint = s3_endpoint()
    if results.startswith("s3://") and endpoint and endpoint.startswith("http://"):
        return from_url(results, endpoint=endpoint, client_options={"allow_http": True})
    return from_url(results)


class StoreLease(Lease):
    """See `lease.Lease`."""

    def __init__(self, results: str, store: Any = None) -> None:  # noqa: ANN401 - as above
        super().__init__(results)
        self._store = store if store is not None else open_object_store(results)
        self._version: dict[str, Any] | None = None

    def take(self) -> Holder | None:
        """Become the holder, or tell who is and lives."""
        holder, version = self._get()
        if holder is not None and holder.heartbeat != RELEASED and holder.is_alive(time.time()):
            return holder
        if self._put(Holder.this_process(self.token), version):
            return None
        winner = self.read()
        if winner is None:
            raise ResultsError(f"the lease on '{self.results}' changes hands; try again")
        return winner

    def read(self) -> Holder | None:
        """Who holds it."""
        holder, _ = self._get()
        return None if holder is None or holder.heartbeat == RELEASED else holder

    def renew(self) -> bool:
        """Show a sign of life."""
        return self._put(Holder.this_process(self.token), self._version)

    def release(self) -> None:
        """Leave a holder that is long dead, if the lease is ours."""
        self._put(replace(Holder.this_process(self.token), heartbeat=RELEASED), self._version)

    def _get(self) -> tuple[Holder | None, dict[str, Any] | None]:
        import obstore

        try:
            found = obstore.get(self._store, LEASE)
        except FileNotFoundError:
            return None, None
        except obstore.exceptions.BaseError as error:
            raise _as_os_error(error) from error
        holder = Holder.parse(found.bytes().to_bytes(), f"{self.results}/{LEASE}")
        return holder, _version(found.meta)

    def _put(self, holder: Holder, expected: dict[str, Any] | None) -> bool:
        """Write unless somebody else has since; True where what is there now is ours."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        mode: Any = "create" if expected is None else expected
        try:
            put = obstore.put(self._store, LEASE, holder.dump(), mode=mode)
        except (AlreadyExistsError, PreconditionError):
            # Perhaps by ourselves: a put whose answer was lost has been repeated.
            now, version = self._get()
            if now != holder:
                return False
            self._version = version
            return True
        except BaseError as error:
            raise _as_os_error(error) from error
        self._version = _version(put)
        return True


def _version(found: Any) -> dict[str, Any]:  # noqa: ANN401 - two kinds of answers
    """What a conditional put names; some stores have no numbered versions."""
    return {key: found[key] for key in ("e_tag", "version") if found.get(key) is not None}


def _as_os_error(error: Exception) -> OSError:
    """The first line of the library's text, which goes on for pages."""
    return OSError(str(error).split("\n", 1)[0][:300])


def lease_on(results: str) -> Lease:
    """The lease that fits where the results are."""
    if is_local(results):
        return FileLease(results)
    return StoreLease(results) if has_conditional_put(results) else NoLease(results)
