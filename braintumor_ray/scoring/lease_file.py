"""A lease on a file system: `lease.json`, changed only under a lock on a file beside it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from braintumor_ray.data.storage import local_path, write_atomically
from braintumor_ray.scoring.lease import LEASE, Holder, Lease


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
