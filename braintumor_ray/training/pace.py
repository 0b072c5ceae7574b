"""How many epochs fit before a deadline, from those that were timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

CLOSING_S = 15.0  # workers that end, files of the run
_RECENT = 3  # epochs whose mean counts: others may have begun to use the machine


@dataclass(frozen=True)
class Deadline:
    """When a run should be finished.

    Attributes:
        at: seconds since 1970, on every machine's clock.
        predictions: scans that are predicted after the last epoch.
    """

    at: float
    predictions: int


class Pace:
    """Times epochs.

    Args:
        deadline: of the run.
        clock: gives seconds since 1970; for tests.
    """

    def __init__(self, deadline: Deadline, clock: Callable[[], float] = time.time) -> None:
        self._deadline, self._clock = deadline, clock
        self.start_stage()

    def start_stage(self) -> None:
        """Forget epochs: in another stage other layers learn."""
        self._seconds: list[float] = []
        self._mark = self._clock()

    def epochs_left(self, predict_s: float) -> float:
        """An epoch has ended: how many more fit, 0 or more.

        Args:
            predict_s: seconds of a scan's prediction.
        """
        now = self._clock()
        self._seconds.append(now - self._mark)
        self._mark = now
        known = self._seconds[1:] or self._seconds  # the first one starts the readers, too
        recent = known[-_RECENT:]
        left = self._deadline.at - now - CLOSING_S - predict_s * self._deadline.predictions
        return max(0.0, left * len(recent) / sum(recent))
