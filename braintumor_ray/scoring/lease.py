"""A lease on a results folder: two jobs at once would delete each other's files in flight.

The holder is in `lease.json` (host, pid, start time, heartbeat): on a file system changed under a
file lock (`lease_file`), on an object store by conditional put (`lease_store`). A dead holder on
this host is taken over at once, one elsewhere when its heartbeat is 60 s old; a live one is named
and refused.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from types import TracebackType

import psutil

from braintumor_ray.errors import ResultsError

STALE_AFTER_S = 60.0
HEARTBEAT_S = 10.0
LEASE = "lease.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease; times in seconds since the epoch."""

    token: str
    host: str
    pid: int
    process_started: float
    heartbeat: float

    @classmethod
    def this_process(cls, token: str) -> "Holder":
        """We, now."""
        me = psutil.Process()
        return cls(token, socket.gethostname(), os.getpid(), me.create_time(), time.time())

    @classmethod
    def parse(cls, data: bytes, location: str) -> "Holder":
        """Read what `dump` wrote.

        Raises:
            ResultsError: it is something else.
        """
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise ResultsError(
                f"'{location}' is damaged ({error}); make sure that no job writes there, "
                "then remove it"
            ) from error

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

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


class Lease(ABC):
    """Context manager: holds the folder until left; the heartbeat is kept up by a thread.

    Raises (on entering):
        ResultsError: a live job holds the folder.
    """

    def __init__(self, results: str) -> None:
        self.results = results
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        holder = self.take()
        if holder is not None:
            raise ResultsError(
                f"'{self.results}' is being written by {holder.describe()}; wait for it, "
                "end it, or score into another folder"
            )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.release()
        except OSError as failure:  # it goes stale by itself
            log.warning("the lease on '%s' was not released: %s", self.results, failure)

    def check(self) -> None:
        """Before a commit: whether the lease is still ours.

        Raises:
            ResultsError: another job took it, because our heartbeat had stopped.
        """
        holder = self.read()
        if holder is None or holder.token != self.token:
            taker = holder.describe() if holder else "nobody (its file was removed)"
            raise ResultsError(
                f"the lease on '{self.results}' now belongs to {taker}; this run commits nothing"
            )

    @abstractmethod
    def take(self) -> Holder | None:
        """Become the holder, or tell who is and lives."""

    @abstractmethod
    def read(self) -> Holder | None:
        """Who holds it; None where nobody does."""

    @abstractmethod
    def renew(self) -> bool:
        """Show a sign of life; False where the lease is another's by now."""

    @abstractmethod
    def release(self) -> None:
        """Let others in, if the lease is still ours."""

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if not self.renew():
                    return  # `check` will say so before anything is committed
            except OSError as error:  # a full disk, a busy store: the next beat may succeed
                log.warning("no heartbeat on '%s': %s", self.results, error)


class NoLease(Lease):
    """Where there is no way to hold one: the submission id of the job is the guard."""

    def __enter__(self) -> "Lease":
        log.warning(
            "no lease on '%s': install braintumor-ray[stores], or make sure that only one job "
            "writes there (a submission id does)",
            self.results,
        )
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was held."""

    def check(self) -> None:
        """Nothing can be checked."""

    def take(self) -> Holder | None:
        """Nobody is known to hold it."""
        return None

    def read(self) -> Holder | None:
        """Nobody is known to hold it."""
        return None

    def renew(self) -> bool:
        """There is nothing to renew."""
        return True

    def release(self) -> None:
        """There is nothing to release."""
