"""Reading a request's body: streamed, counted, refused before the rest of it is read."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import TypeAlias

from multipart import MultipartError, MultipartSegment, PushMultipartParser
from starlette.requests import Request

from braintumor_ray.serving.problems import ProblemError, busy

_MOST_HEADER_BYTES = 4096
_CHUNK = 1 << 16


class Budget:
    """The bytes that all bodies in memory may have together; used from one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one body takes of it; given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.settle(0)

    def take(self, n_bytes: int) -> None:
        """Reserve so many bytes more, or give some back (below 0).

        Raises:
            ProblemError: 'busy' where the budget is used up.
        """
        if n_bytes > 0 and self._used + n_bytes > self._limit:
            raise busy("the bodies in hand fill the memory set aside for them; try again shortly")
        self._used += n_bytes


class Share:
    """The bytes reserved for one body and what is made of it."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0

    def reserve(self, n_bytes: int) -> None:
        """Have at least so many bytes in all.

        Raises:
            ProblemError: 'busy' where the budget is used up.
        """
        self.settle(max(n_bytes, self._taken))

    def settle(self, n_bytes: int) -> None:
        """Have so many bytes in all; as `reserve`, but gives back what is over."""
        self._budget.take(n_bytes - self._taken)
        self._taken = n_bytes


async def read_body(request: Request, limit: int, share: Share, silence_s: float) -> bytearray:
    """The whole body.

    Args:
        request: its body not yet read.
        limit: most bytes; one more is refused, by the declared length where there is one.
        share: of the budget, which grows with the body.
        silence_s: longest wait for more of it, seconds.

    Raises:
        ProblemError: 'too-large', 'slow-body', 'busy', or 'bad-request' for a wrong length.
    """
    declared = _declared_length(request)
    if declared > limit:
        raise _too_large(f"{declared} bytes are declared", limit)
    # Before the first byte is read: a body that does not fit is refused at once.
    share.reserve(declared)
    body = bytearray()
    async for chunk in _chunks(request, silence_s):
        if len(body) + len(chunk) > limit:
            raise _too_large(f"over {limit} bytes were sent", limit)
        share.reserve(len(body) + len(chunk))
        body += chunk
    return body


async def _chunks(request: Request, silence_s: float) -> AsyncIterator[bytes]:
    more = True
    while more:
        try:
            message = await asyncio.wait_for(request.receive(), silence_s)
        except asyncio.TimeoutError as error:
            raise ProblemError(
                "slow-body", f"nothing came for {silence_s:g} s; send the body without pauses"
            ) from error
        if message["type"] == "http.disconnect":
            raise ProblemError("bad-request", "the client closed the connection inside the body")
        more = message.get("more_body", False)  # not waited for once more: each wait is a task
        yield message.get("body", b"")


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


Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Part:
    """One file of a form.

    Attributes:
        name: the file's name as the client gave it, for the client alone: never logged or opened.
        data: its content.
        problem: why it cannot be predicted, where that is known by now.
    """

    name: str
    data: Buffer = b""
    problem: ProblemError | None = None


def is_multipart(content_type: str) -> bool:
    """Whether a Content-Type is multipart/form-data."""
    return content_type.split(";", maxsplit=1)[0].strip().lower() == "multipart/form-data"


def parse_files(body: bytearray, content_type: str, most: int) -> list[Part]:
    """The files of a form, in order (RFC 7578).

    Args:
        body: the whole body; it is emptied, since it should not be in memory twice.
        content_type: the request's header, with the boundary.
        most: files allowed.

    Raises:
        ProblemError: 'bad-request' for a malformed form, 'parameter' for a field that is not a
            file, 'too-large' for too many files.
    """
    parts, content = list[Part](), bytearray()
    for event in _form_events(body, _boundary(content_type)):
        if isinstance(event, MultipartSegment):
            if len(parts) == most:
                raise ProblemError(
                    "too-large", f"over {most} files in one body; send fewer at a time"
                )
            content = bytearray()
            parts.append(Part(_file_name(event), content))
        elif event:
            content += event
    if not parts:
        raise ProblemError("bad-request", "the form holds no file; send one as field 'file'")
    return parts


def _form_events(body: bytearray, boundary: bytes) -> Iterator[MultipartSegment | bytes | None]:
    """What the parser finds: the headers of a part, pieces of its content, None at its end."""
    parser = PushMultipartParser(
        boundary,
        max_header_size=_MOST_HEADER_BYTES,
        header_charset="latin-1",  # any byte is allowed; see `_file_name`
    )
    try:
        with parser:
            while body:
                chunk = body[:_CHUNK]
                del body[:_CHUNK]
                yield from parser.parse(chunk)
    except MultipartError as error:
        raise ProblemError("bad-request", f"malformed multipart/form-data: {error}") from error


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary or len(boundary) > 70 or not boundary.isascii():
        raise ProblemError(
            "bad-request",
            "multipart/form-data without a valid boundary; let the HTTP library set Content-Type",
        )
    return boundary.encode()


def _file_name(segment: MultipartSegment) -> str:
    """The name as the client gave it: UTF-8, as browsers send it, or something near it."""
    if sum(len(name) + len(value) for name, value in segment.headerlist) > _MOST_HEADER_BYTES:
        raise ProblemError(
            "bad-request", f"a part of the form has over {_MOST_HEADER_BYTES} bytes of headers"
        )
    if segment.filename is None:
        raise ProblemError(
            "parameter",
            "a field of the form is not a file (it has no filename); options go into the query",
        )
    return segment.filename.encode("latin-1").decode("utf-8", errors="replace")
