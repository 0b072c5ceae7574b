"""Progress of long work: polled at intervals, and logged where there is no terminal."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Log = Callable[[str], None]
"""Takes a line for people."""


class TotalProgress:
    """Progress of several passes, one after another, as that of all.

    Args:
        progress: called with the steps done and the steps of all passes; None: nothing is reported.
        total: steps of all passes.
    """

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress, self._total, self._before = progress, total, 0

    def __call__(self, done: int, total: int) -> None:
        """Steps done of the current pass, and all of its steps."""
        if self._progress:
            self._progress(self._before + done, self._total)
        self._before += total if done == total else 0


class TenthLines:
    """Logs each further tenth of some work; calls come as often as they like.

    Args:
        title: what is done.
        log: takes a line.
        clock: gives seconds; for tests.
    """

    def __init__(
        self,
        title: str,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._log, self._clock = title, log, clock
        self._started, self._first, self._tenth = clock(), -1, 0

    def __call__(self, done: int, total: int) -> None:
        """So much is done of so much; what was done before the first call counts for no speed."""
        if self._first < 0:
            self._first = done if done < total else 0
        tenth = 10 * done // total if total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            self._log(f"{self._title}: {done} of {total} ({10 * tenth}%){self._left(done, total)}")

    def _left(self, done: int, total: int) -> str:
        passed, made = self._clock() - self._started, done - self._first
        if done >= total:
            return f", {duration(passed)} in all"
        return f", {duration(passed * (total - done) / made)} left" if made > 0 else ""


@contextmanager
def repeated(call: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Call something every so many seconds, in a thread of that name, until the block ends."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            call()

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def duration(seconds: float) -> str:
    """Seconds as people write them: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
