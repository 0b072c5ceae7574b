"""Run a decoder in a process of its own, so that a file can kill or stall only that.

One child per `DecodeSandbox`, fed ahead so that parent and child work at the same time. A child
that dies or stalls is replaced; the item at fault is tried again in the fresh one and then given
up with a true reason; all other items come through, each once and in order.

A subprocess with pipes rather than multiprocessing: it must work inside Ray workers, whose
``__main__`` cannot be imported again.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from braintumor_ray.data.sandbox_process import Child, ChildGone, Item, Outcome, SandboxError

__all__ = ["DecodeSandbox", "Item", "Outcome", "SandboxError"]

_AHEAD = 20  # items in flight: over two batches of replies, few enough to requeue cheaply
_AHEAD_BYTES = 64 * 2**20
_TIMES = {1: "once", 2: "twice"}


@dataclass
class _Job:
    item: Item
    causes: list[str] = field(default_factory=list)


class DecodeSandbox:
    """A worker function in a child process that may crash, stall or run out of memory.

    Not thread-safe, and one `map` at a time.

    Args:
        worker: ``module:function``; takes ``(bytes | None, options dict)`` and returns anything
            that pickles. NumPy arrays come back without being copied into a pickle.
        timeout_s: Longest time for one item, in seconds.
        tries: How often an item may kill or stall a child before it is given up.
        memory_bytes: Private memory the child may hold. An item that wants more gets a reason.
    """

    def __init__(
        self,
        worker: str,
        timeout_s: float = 30.0,
        tries: int = 2,
        memory_bytes: int = 4 * 2**30,
    ) -> None:
        if tries < 1 or timeout_s <= 0:
            raise SandboxError(f"tries={tries}, timeout_s={timeout_s}: both must be positive")
        self._worker = worker
        self._timeout_s = timeout_s
        self._tries = tries
        self._memory_bytes = memory_bytes
        self._child: Child | None = self._start()  # it imports while the caller goes on

    def run(self, data: bytes | None, options: dict[str, Any] | None = None) -> Outcome:
        """Run the worker on one item."""
        return next(self.map([(data, options or {})]))

    def map(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """Run the worker on each item; yields one outcome per item, in order.

        Items are taken a few ahead of the outcomes. Leaving the iterator early ends the child.

        Raises:
            SandboxError: if the worker cannot be imported or no child can be started.
        """
        if self._child is not None and self._child.is_dead():
            self._drop_child()  # it died idle: no item's fault
        source = iter(items)
        flying: deque[_Job] = deque()
        try:
            while self._fill(flying, source):
                outcome = self._first_outcome(flying)
                flying.popleft()
                yield outcome
        finally:
            if flying:  # replies still to come belong to nobody: never let them meet the next map
                self._drop_child()

    def close(self) -> None:
        """End the child; the sandbox starts a new one if it is used again."""
        self._drop_child()

    def __enter__(self) -> "DecodeSandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> Child:
        # The fuse is longer than the timeout: it matters only when no parent is left.
        return Child(self._worker, self._memory_bytes, self._timeout_s * 1.5 + 5)

    def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _fill(self, flying: deque[_Job], source: Iterator[Item]) -> bool:
        """Top up the items in flight; False when there are none left."""
        n_bytes = sum(len(job.item[0] or b"") for job in flying)
        while len(flying) < _AHEAD and (not flying or n_bytes < _AHEAD_BYTES):
            item = next(source, None)
            if item is None:
                break
            flying.append(_Job(item))
            n_bytes += len(item[0] or b"")
            if self._child is not None:
                self._child.queue(item)
        return bool(flying)

    def _first_outcome(self, flying: deque[_Job]) -> Outcome:
        """The outcome of the first item in flight, in as many children as that takes."""
        while len(flying[0].causes) < self._tries:
            child = self._child or self._restart(flying)
            try:
                child.wait_ready()
                return child.reply(self._timeout_s)
            except ChildGone as gone:
                self._blame(flying, child.n_unread(), gone.cause)
                self._drop_child()
        return Outcome(reason=_failure(flying[0].causes))

    def _blame(self, flying: deque[_Job], n_done: int, cause: str) -> None:
        """Note `cause` with the item at work: `n_done` before it were done, but lost unread."""
        sent = [job for job in flying if len(job.causes) < self._tries]
        sent[min(n_done, len(sent) - 1)].causes.append(cause)

    def _restart(self, flying: deque[_Job]) -> Child:
        self._child = self._start()
        for job in flying:
            if len(job.causes) < self._tries:
                self._child.queue(job.item)
        return self._child


def _failure(causes: list[str]) -> str:
    """One sentence: ``decoder died twice (exit code -11)``."""
    times = _TIMES.get(len(causes), f"{len(causes)} times")
    if len(set(causes)) > 1:
        return f"decoder failed {times}: " + ", then ".join(causes)
    verb, _, detail = causes[0].partition(" (")
    if detail:
        return f"decoder {verb} {times} ({detail}"
    return f"decoder {verb}, {times}"
