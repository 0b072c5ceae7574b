"""A lease on a folder of results or of a run: two jobs at once would delete each other's files.

The holder is in `lease.json` (host, pid, start time, heartbeat). A dead holder of this machine and
pid namespace is taken over at once, any other when its heartbeat is 60 s old; a live one is named
and refused.

On a file system `lease.json` is changed only under a lock on a file next to it. On an object store
every change is a put that fails if another came first. There nothing is ever deleted, since a
delete has no condition: a released lease is a holder whose last heartbeat is 1970. Hosts' clocks
must agree to well within the 60 s after which a lease is stale.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from braintumor_ray.errors import ResultsError
from braintumor_ray.storage import is_local, local_path, s3_endpoint, split_uri, write_atomically

STALE_AFTER_S = 60.0
HEARTBEAT_S = 10.0
LEASE = "lease.json"
SCHEMES = ("s3://", "gs://", "az://", "abfs://")
RELEASED = 0.0
_UNCONDITIONAL = "its store has no conditional put"
logger = logging.getLogger(__name__)


@cache
def machine_identity() -> str | None:
    """Names the running kernel and the pid namespace; None where the system does not provide them.

    Host name and pid alone do not identify a process: two containers may share both. A pid means
    something only inside its own namespace.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux, or a sandbox without /proc: the heartbeat alone decides
        return None


def start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None: it is dead, or there is no /proc.

    A time of day will not do: it moves with every step of the clock.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Holder:
    """Who holds a lease; times in seconds since the epoch.

    Attributes:
        token: of the lease, drawn by chance.
        host: name of the machine, for people.
        pid, process_started: of the holding process, as its pid namespace has them.
        heartbeat: last sign of life.
        machine: `machine_identity` of the holder; leases of earlier versions have none.
        process_ticks: `start_ticks` of the process; None: an earlier version's, or no /proc.
    """

    token: str
    host: str
    pid: int
    process_started: float
    heartbeat: float
    machine: str | None = None
    process_ticks: int | None = None

    @classmethod
    def this_process(cls, token: str) -> "Holder":
        """We, now."""
        host, pid = socket.gethostname(), os.getpid()
        started, ticks = psutil.Process().create_time(), start_ticks(pid)
        return cls(token, host, pid, started, time.time(), machine_identity(), ticks)

    @classmethod
    def parse(cls, data: bytes, location: str) -> "Holder":
        """Read what `dump` wrote.

        Raises:
            ResultsError: it is something else.
        """
        try:
            values = json.loads(data)
            known = {field.name for field in fields(cls)}  # a later version may say more
            return cls(**{name: value for name, value in values.items() if name in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise ResultsError(
                f"'{location}' is damaged ({error}); make sure that no job writes there, "
                "then remove it"
            ) from error

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    def is_alive(self, now: float) -> bool:
        """Whether the holder must be respected."""
        if not self._is_near():
            return abs(now - self.heartbeat) < STALE_AFTER_S  # nor may it be of the future
        if self.process_ticks is not None:
            return start_ticks(self.pid) == self.process_ticks
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < 1.0
        except psutil.NoSuchProcess:
            return False

    def _is_near(self) -> bool:
        """Whether the holder's pid can be looked up here."""
        same_host = self.host == socket.gethostname()
        return same_host and self.machine is not None and self.machine == machine_identity()

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
                "end it, or choose another output folder"
            )
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.release()
        except OSError as failure:  # it goes stale by itself
            logger.warning("the lease on '%s' was not released: %s", self.results, failure)

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
        """Become the holder, or return the one that is alive."""

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
        warned = False  # a disk that stays full is one line, not one for each beat
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if not self.renew():
                    return  # `check` will say so before anything is committed
                warned = False
            except OSError as error:  # a full disk, a busy store: the next beat may succeed
                if not warned:
                    logger.warning("no heartbeat on '%s': %s", self.results, error)
                warned = True


class NoLease(Lease):
    """Where there is no way to hold one: the submission id of the job is the guard."""

    def __init__(self, results: str, cause: str) -> None:
        super().__init__(results)
        self._cause = cause

    def __enter__(self) -> "Lease":
        logger.warning(
            "no lease on '%s': %s; make sure that only one job writes there (a submission id does)",
            self.results,
            self._cause,
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


class FileLease(Lease):
    """Where a file can be locked."""

    def __init__(self, results: str) -> None:
        super().__init__(results)
        self._path = local_path(results) / LEASE

    def take(self) -> Holder | None:
        """Become the holder, or return the one that is alive."""
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
            if ours := self._is_ours():
                self._write()
        return ours

    def release(self) -> None:
        """Remove the file, if it is ours."""
        with self._locked():
            if self._is_ours():
                self._path.unlink()

    def _is_ours(self) -> bool:
        holder = self.read()
        return holder is not None and holder.token == self.token

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        with open(self._path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield  # closing the file releases the lock, also when the process dies

    def _write(self) -> None:
        write_atomically(str(self._path), Holder.this_process(self.token).dump())


class NoConditionalPutError(OSError):
    """A store that does not take conditions of a put."""


def open_object_store(results: str) -> Any:  # noqa: ANN401 - obstore's stores share no type
    """The store of a results folder, as obstore sees it."""
    from obstore.store import from_url

    endpoint, parts = s3_endpoint(), split_uri(results)
    if parts is not None:  # obstore decodes the path of a URL; a key means what is written
        results = f"{parts.store}/{quote(parts.path)}"
    if results.startswith("s3://") and endpoint and endpoint.startswith("http://"):
        return from_url(results, endpoint=endpoint, client_options={"allow_http": True})
    return from_url(results)


class StoreLease(Lease):
    """Where a put can have a condition."""

    def __init__(self, results: str, store: Any = None) -> None:  # noqa: ANN401 - as above
        super().__init__(results)
        self._store = store if store is not None else open_object_store(results)
        self._version: dict[str, Any] | None = None

    def take(self) -> Holder | None:
        """Become the holder, or return the one that is alive."""
        holder, version = self._get()
        if holder is not None and holder.heartbeat != RELEASED and holder.is_alive(time.time()):
            return holder
        if self._put(Holder.this_process(self.token), version):
            if version is None:
                self._renew_first()
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

    def _renew_first(self) -> None:
        """Find a store that knows the condition of a new object and not that of a changed one.

        A lease there could be neither kept nor released. Nobody else has changed it: it is deleted.
        """
        import obstore

        try:
            self.renew()
        except NoConditionalPutError:
            obstore.delete(self._store, LEASE)
            raise

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
            # Perhaps by ourselves: the answer to this put, or to one before it, was lost.
            now, version = self._get()
            if now is None or now.token != holder.token:
                return False
            self._version = version
            return now == holder or self._put(holder, version)
        except BaseError as error:
            raise _as_os_error(error) from error
        self._version = _version(put)
        return True


def _version(found: Any) -> dict[str, Any]:  # noqa: ANN401 - two kinds of answers
    """What a conditional put names; some stores have no numbered versions."""
    return {key: found[key] for key in ("e_tag", "version") if found.get(key) is not None}


def _as_os_error(error: Exception) -> OSError:
    """The first line of the library's text, which goes on for pages."""
    from obstore.exceptions import NotSupportedError

    line = str(error).split("\n", 1)[0]
    # S3's answer to a condition that a server does not know; obstore has no class for it.
    if isinstance(error, NotSupportedError) or "501 Not Implemented" in line:
        return NoConditionalPutError(line[:300])
    return OSError(line[:300])


@contextmanager
def lease_on(results: str) -> Iterator[Lease]:
    """Hold the lease that fits where the results are.

    Raises:
        ResultsError: a live job holds the folder.
    """
    with ExitStack() as held:
        try:
            lease = held.enter_context(_lease_for(results))
        except NoConditionalPutError:
            lease = held.enter_context(NoLease(results, _UNCONDITIONAL))
        yield lease


def _lease_for(results: str) -> Lease:
    if is_local(results):
        return FileLease(results)
    if not results.startswith(SCHEMES):
        return NoLease(results, _UNCONDITIONAL)
    if find_spec("obstore") is None:
        return NoLease(results, "install braintumor-ray[stores] to have one")
    return StoreLease(results)
