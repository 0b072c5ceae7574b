"""Reading a request's body: streamed, counted, refused before the rest of it is read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request

from braintumor_ray.serving.problems import ProblemError, busy

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget:
    """A number of bytes that all bodies in hand share; used from one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    @contextmanager
    def share(self) -> "Iterator[Share]":
        """A share that grows as a body comes in; given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._used -= share.taken

    def _take(self, n_bytes: int) -> None:
        if self._used + n_bytes > self._limit:
            raise busy("the bodies in hand fill the memory set aside for them; try again shortly")
        self._used += n_bytes


class Share:
    """One body's part of a `Budget`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.taken = 0

    def reserve(self, n_bytes: int) -> None:
        """Hold `n_bytes` in all.

        Raises:
            ProblemError: 'busy', the budget is used up.
        """
        if n_bytes > self.taken:
            self._budget._take(n_bytes - self.taken)
            self.taken = n_bytes


async def read_body(request: Request, limit: int, share: Share, silence_s: float) -> bytearray:
    """The whole body.

    Args:
        request: its body not yet read.
        limit: most bytes; one more is refused, by the declared length where there is one.
        share: grows with the body.
        silence_s: longest wait for more of it, seconds.

    Raises:
        ProblemError: 'too-large', 'slow-body', 'busy', or 'bad-request' for a wrong length.
    """
    declared = _declared_length(request)
    if declared > limit:
        raise _too_large(f"{declared} bytes are declared", limit)
    share.reserve(declared)
    body = bytearray()
    async for chunk in _chunks(request, silence_s):
        if len(body) + len(chunk) > limit:
            raise _too_large(f"over {limit} bytes were sent", limit)
        share.reserve(len(body) + len(chunk))
        body += chunk
    return body


async def _chunks(request: Request, silence_s: float) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), silence_s)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise ProblemError(
                "slow-body", f"nothing came for {silence_s:g} s; send the body without pauses"
            ) from error
        except ClientDisconnect as error:
            raise ProblemError("bad-request", "the client hung up inside the body") from error
        yield chunk


def _declared_length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise ProblemError("bad-request", "Content-Length is not a number of bytes")
    return int(text[:20])


def _too_large(cause: str, limit: int) -> ProblemError:
    return ProblemError(
        "too-large",
        f"{cause}, the limit is {limit}; send a smaller file, or one frame of the volume",
        {"Connection": "close"},
        {"limit": limit},
    )
