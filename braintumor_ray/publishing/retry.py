"""Waiting for a server that is down, alike for each way of sending."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from braintumor_ray.errors import PublishError

T = TypeVar("T")
_LONGEST_PAUSE_S = 30.0


class Busy(PublishError):
    """Why a server does not answer now; asking again later may help."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a server is waited for.

    Attributes:
        wait: in seconds, for each answer.
        ended: set when nothing is to be waited for any longer.
    """

    wait: float
    ended: threading.Event = field(default_factory=threading.Event)

    def call(self, server: str, request: Callable[[], T]) -> T:
        """The answer, asked for again while the request raises `Busy`.

        Raises:
            PublishError: it does so for longer than `wait`.
        """
        deadline, pause = time.monotonic() + self.wait, 1.0
        while True:
            try:
                return request()
            except Busy as error:
                cause = str(error)
            if time.monotonic() + pause > deadline or self.ended.is_set():
                raise PublishError(
                    f"'{server}' is down ({cause}) and was waited for {self.wait:g} s (--wait); "
                    "publish again: what was sent is not sent twice"
                )
            self.ended.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
