"""Files out of a multipart/form-data body (RFC 7578) that is already in memory and bounded."""

from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser

from braintumor_ray.serving.problems import ProblemError

_MOST_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Part:
    """One file of a form.

    Attributes:
        name: the file's name as the client gave it, for the client alone: never logged or opened.
        data: its content, a view into the body.
    """

    name: str
    data: memoryview


def is_multipart(content_type: str) -> bool:
    """Whether a Content-Type says multipart/form-data."""
    return content_type.split(";", maxsplit=1)[0].strip().lower() == "multipart/form-data"


def parse_files(body: bytearray, content_type: str, most: int) -> list[Part]:
    """The files of a form, in order.

    Args:
        body: the whole body.
        content_type: the request's header, with the boundary.
        most: files allowed.

    Raises:
        ProblemError: 'bad-request' for a malformed form, 'parameter' for a field that is not a
            file, 'too-large' for too many files.
    """
    mark = b"--" + _boundary(content_type)
    parts: list[Part] = []
    for start, end in _segments(body, mark):
        if len(parts) == most:
            raise ProblemError("too-large", f"over {most} files in one body; send fewer at a time")
        parts.append(_part(body, start, end))
    if not parts:
        raise ProblemError("bad-request", "the form holds no file; send one as field 'file'")
    return parts


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


def _segments(body: bytearray, mark: bytes) -> list[tuple[int, int]]:
    """Start and end of what stands between the delimiters, headers included."""
    if not body.startswith(mark):
        raise _malformed("it does not begin with its boundary")
    at, segments, delimiter = len(mark), [], b"\r\n" + mark
    while body[at : at + 2] != b"--":
        if body[at : at + 2] != b"\r\n":
            raise _malformed("a boundary is not followed by a line's end")
        # From the line's end itself: an empty part has its delimiter right there.
        end = body.find(delimiter, at)
        if end < 0:
            raise _malformed("it ends inside a part")
        segments.append((at + 2, end))
        at = end + len(delimiter)
    return segments


def _part(body: bytearray, start: int, end: int) -> Part:
    blank = body.find(b"\r\n\r\n", start, min(end, start + _MOST_HEADER_BYTES))
    if blank < 0:
        raise _malformed("a part has no headers, or over 4096 bytes of them")
    text = body[start:blank].decode("utf-8", errors="replace")
    headers = HeaderParser().parsestr(text)
    name = headers.get_filename()
    if name is None:
        raise ProblemError(
            "parameter",
            "a field of the form is not a file (it has no filename); options go into the query",
        )
    return Part(name, memoryview(body)[blank + 4 : end])


def _malformed(cause: str) -> ProblemError:
    return ProblemError("bad-request", f"malformed multipart/form-data: {cause}")
