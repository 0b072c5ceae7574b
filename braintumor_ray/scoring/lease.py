"""A lease on a results folder: two jobs at once would delete each other's files in flight.

On a local file system the holder is `lease.json` (host, pid, start time, heartbeat), changed only
under a file lock. A dead holder on this host is taken over at once, one elsewhere when its
heartbeat is 60 s old; a live one is named and refused.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from braintumor_ray.data.storage import is_local, local_path, write_atomically
from braintumor_ray.errors import ResultsError

STALE_AFTER_S = 60.0
HEARTBEAT_S = 10.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease; times in seconds since the epoch."""

    token: str
    host: str
    pid: int
    process_started: float
    heartbeat: float

    def is_alive(self, now: float) -> bool:
        """Whether the holder must be respected."""
        if self.host != socket.gethostname():
            return now - self.heartbeat < STALE_AFTER_S
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < 1.0
        except psutil.NoSuchProcess:
            return False

    def describe(self) -> str:
        """For people."""
        age = max(0, round(time.time() - self.heartbeat))
        return f"process {self.pid} on {self.host} (last sign of life {age} s ago)"


class Lease:
    """Context manager: holds the folder until left; the heartbeat is kept up by a thread.

    Raises (on entering):
        ResultsError: a live job holds the folder.
    """

    def __init__(self, results: str) -> None:
        self._results = results
        self._local = is_local(results)
        self._path = local_path(results) / "lease.json"
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        if not self._local:
            return self  # no conditional put through pyarrow: the submission id is the guard
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            holder = self._read()
            if holder is not None and holder.is_alive(time.time()):
                raise ResultsError(
                    f"'{self._results}' is being written by {holder.describe()}; wait for it, "
                    "end it, or score into another folder"
                )
            self._write()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._local:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._locked():
            holder = self._read()
            if holder is not None and holder.token == self._token:
                self._path.unlink()

    def check(self) -> None:
        """Before a commit: whether the lease is still ours.

        Raises:
            ResultsError: another job took it, because our heartbeat had stopped.
        """
        if not self._local:
            return
        holder = self._read()
        if holder is None or holder.token != self._token:
            taker = holder.describe() if holder else "nobody (its file was removed)"
            raise ResultsError(
                f"the lease on '{self._results}' now belongs to {taker}; this run commits nothing"
            )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with self._locked():
                holder = self._read()
                if holder is None or holder.token != self._token:
                    return  # `check` will say so before anything is committed
                with suppress(OSError):  # a full disk: the next beat may succeed
                    self._write()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        with open(self._path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield  # closing the file releases the lock, also when the process dies

    def _read(self) -> Holder | None:
        try:
            return Holder(**json.loads(Path(self._path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ResultsError(
                f"'{self._path}' is damaged ({error}); make sure that no job writes there, "
                "then remove it"
            ) from error

    def _write(self) -> None:
        me = psutil.Process()
        holder = Holder(
            self._token, socket.gethostname(), os.getpid(), me.create_time(), time.time()
        )
        write_atomically(str(self._path), json.dumps(asdict(holder)).encode())
