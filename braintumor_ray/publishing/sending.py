"""From rows to a server: objects of one scan, or series, after another, sent by several senders.

Making is work for the processor, sending is waiting; so one thread makes and others send. The
ledger is written by the thread that makes, when a sender has finished a scan.
"""

import queue
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType

from pydicom.dataset import Dataset

from braintumor_ray.publishing.dimse import Peer, is_dimse
from braintumor_ray.publishing.ledger import Ledger
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.retry import RetryPolicy
from braintumor_ray.publishing.rows import Chosen
from braintumor_ray.publishing.server import Server
from braintumor_ray.publishing.source import Refused

_SENDERS = 4  # by DICOMweb
_AT_ONCE = 16  # objects of a request


@dataclass
class PublishCounts:
    """What became of the scans, by number.

    Attributes:
        scans, objects: published.
        sent_before: scans that the server has from an earlier call.
        refused: scans by reason.
    """

    scans: int = 0
    objects: int = 0
    sent_before: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def published(self, objects: int, scans: int = 1) -> None:
        """Count scans with so many objects in all."""
        self.scans += scans
        self.objects += objects


class Senders:
    """Sends the objects of scans, several scans at a time; a context manager.

    Args:
        ledger: of the server; scans are noted there when it has them.
        options: which server, and how.
        counts: counts what becomes of the scans.

    Raises:
        UsageError: a library is not installed, or the address is none.
    """

    def __init__(self, ledger: Ledger, options: PublishOptions, counts: PublishCounts) -> None:
        self._ledger, self._counts = ledger, counts
        self._ended = threading.Event()
        self._servers: queue.SimpleQueue[Server | Peer] = queue.SimpleQueue()
        self._most = options.senders or (1 if is_dimse(str(options.to)) else _SENDERS)
        for _ in range(self._most):
            self._servers.put(_server(options, RetryPolicy(options.wait, self._ended)))
        self._pool = ThreadPoolExecutor(self._most, "sender")
        self._sending: dict[Future[None], tuple[Sequence[Chosen], int]] = {}

    def __enter__(self) -> "Senders":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._ended.set()  # nobody waits any longer for a server that is down
        try:
            self._finish(reraise=kind is None)
        finally:
            self._pool.shutdown()
            while not self._servers.empty():
                with closing(self._servers.get()):
                    pass

    def has(self, row: Chosen) -> bool:
        """Whether the server has a scan from an earlier call; it is counted so."""
        known = self._ledger.has(row)
        self._counts.sent_before += known
        return known

    def send(self, rows: Sequence[Chosen], made: Sequence[Dataset]) -> None:
        """Send the objects of a scan, or of a series of scans, or wait for a sender that is free.

        Raises:
            PublishError: of an earlier scan: the server is down for too long, refuses access, or
                its TLS is not verified.
        """
        while len(self._sending) >= self._most:
            self._take(wait(self._sending, return_when=FIRST_COMPLETED).done)
        self._sending[self._pool.submit(self._store, made)] = (rows, len(made))

    def _store(self, objects: Sequence[Dataset]) -> None:
        server = self._servers.get()
        try:
            for start in range(0, len(objects), _AT_ONCE):
                server.store(objects[start : start + _AT_ONCE])
        finally:
            self._servers.put(server)

    def _take(self, done: set[Future[None]]) -> None:
        """Note what was sent; all that is done is noted before an error of one is raised."""
        failures = [error for each in done if (error := self._noted(each)) is not None]
        if failures:
            raise failures[0]

    def _noted(self, done: Future[None]) -> BaseException | None:
        rows, objects = self._sending.pop(done)
        error = done.exception()
        if isinstance(error, Refused):
            self._counts.refused[str(error)] += len(rows)
        elif error is None:
            self._ledger.add(rows)
            self._counts.published(objects, len(rows))
        return None if isinstance(error, Refused) else error

    def _finish(self, reraise: bool) -> None:
        """Wait for the last scans; an error of theirs is not raised over another one."""
        failures = [error for each in wait(self._sending).done if (error := self._noted(each))]
        if failures and reraise:
            raise failures[0]


def _server(options: PublishOptions, patience: RetryPolicy) -> Server | Peer:
    if is_dimse(str(options.to)):
        return Peer(str(options.to), patience, options.aet, options.tls)
    return Server(str(options.to), patience)
