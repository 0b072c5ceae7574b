"""The objects of a DICOMweb service as files that fsspec opens (WADO-RS, PS3.18, 10.4).

A file is an object as it is stored, in its own transfer syntax: `ROOT/STUDY/SERIES/SOP`, where the
last three are tokens. Nothing is listed here (`query` does) and nothing can be written.
"""

import io
from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from braintumor_ray.dicomweb.query import service_url
from braintumor_ray.dicomweb.session import (
    ATTEMPTS,
    BUSY,
    DicomwebService,
    RefusedError,
    patience_s,
)
from braintumor_ray.dicomweb.uid_tokens import KINDS, is_hidden, show_uid
from braintumor_ray.errors import ServerError, UsageError
from braintumor_ray.storage import DICOMWEB

if TYPE_CHECKING:
    from requests import Response

MOST_BYTES = 512 * 2**20  # of an object; twice what the decoder takes
_MULTIPART = 'multipart/related; type="application/dicom"'
_ACCEPTED = (f"{_MULTIPART}; transfer-syntax=*", _MULTIPART, "application/dicom")
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_UNWILLING = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_ACCEPTABLE)  # to send it in this way
_ANSWERED = {*range(300, 600)} - BUSY  # whatever the root of a server answers, it exists
_CHUNK = 64 * 1024


class DicomwebFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no stubs
    """Objects of DICOMweb services by their URIs. What is stored under a UID does not change."""

    protocol = DICOMWEB

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:  # noqa: ANN401 - text, or a list as fsspec has it
        return path  # a URI names its service and whether that is encrypted

    def info(self, path: str, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - fsspec's
        """Without a request: a URI came from a listing, which has no sizes.

        Raises:
            FileNotFoundError: no URI of an object, and its server answers.
            OSError: its server does not.
        """
        try:
            _parts(path)
        except FileNotFoundError:
            _server(path).get("", also=_ANSWERED).close()
            raise
        return {"name": path, "type": "file", "size": None}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedIOBase:  # noqa: ANN401
        """The object's bytes, fetched as far as they are read.

        Raises:
            FileNotFoundError: the service has it no more.
            PermissionError: we may not have this one.
            UsageError: opened for writing, or hidden with a key that is not known here.
        """
        if mode != "rb":
            raise UsageError(f"'{path.rpartition('?')[0] or path}' is a DICOMweb source: read only")
        root, *tokens = _parts(path)
        study, series, sop = (
            show_uid(token, kind) for token, kind in zip(tokens, KINDS, strict=True)
        )
        place = f"/studies/{study}/series/{series}/instances/{sop}"
        return StoredObject(_object(_service(root), place))


def _parts(uri: str) -> tuple[str, str, str, str]:
    """Root and three tokens of an object's URI."""
    root, *tokens = uri.rsplit("/", 3)
    if len(tokens) != 3 or not all(map(is_hidden, tokens)):
        raise FileNotFoundError("not the URI of a DICOM object")
    return (root, *tokens)  # type: ignore[return-value]


def _server(uri: str) -> DicomwebService:
    scheme, _, rest = uri.partition("://")
    return _service(f"{scheme}://{rest.partition('/')[0]}")


@lru_cache(maxsize=16)
def _service(root: str) -> DicomwebService:
    """Its connections are used again by all threads of this process."""
    return DicomwebService(service_url(root), patience_s() / ATTEMPTS)


def _object(service: DicomwebService, place: str) -> "Response":
    """The object as stored, else as the server is willing to send it.

    Raises:
        FileNotFoundError, PermissionError: see `DicomwebFileSystem._open`.
        RefusedError: the server has no way to send it.
    """
    for accept in _ACCEPTED:
        answer = service.get(place, accept=accept, also=(*_GONE, *_UNWILLING, HTTPStatus.FORBIDDEN))
        if answer.ok:
            return answer
        answer.close()
        if answer.status_code in _GONE:
            raise FileNotFoundError(f"'{service.url}' has an object no more")
        if answer.status_code == HTTPStatus.FORBIDDEN:
            raise PermissionError(f"'{service.url}' refuses an object (HTTP 403)")
    raise RefusedError(f"'{service.url}' refuses an object: HTTP {answer.status_code}")


class StoredObject(io.BufferedIOBase):
    """A file whose bytes come with an answer; what came is kept, so that it can be read again.

    A header is read without fetching the pixels. `seek` to the end fetches all, up to
    `MOST_BYTES`.
    """

    def __init__(self, answer: "Response") -> None:
        self._answer, self._came, self._at = answer, bytearray(), 0
        self._rest = _content(answer)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Within what came, and to the end."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, from the start, from here or from the end."""
        if whence == io.SEEK_END:
            self._fetch(MOST_BYTES)
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._came)}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, fewer at the end only; all without a size."""
        end = MOST_BYTES if size is None or size < 0 else self._at + size
        self._fetch(end)
        found = bytes(self._came[self._at : end])
        self._at += len(found)
        return found

    def close(self) -> None:
        """End the answer, whatever has not come yet."""
        if not self.closed:
            self._answer.close()
        super().close()

    def _fetch(self, end: int) -> None:
        """Let bytes come until `end`.

        Raises:
            OSError: the answer breaks off.
        """
        import requests
        from urllib3.exceptions import HTTPError

        try:
            while len(self._came) < end and (chunk := next(self._rest, None)) is not None:
                self._came += chunk
        except (requests.RequestException, HTTPError) as error:  # their texts have the path
            raise OSError(f"an answer broke off ({type(error).__name__})") from None


def _content(answer: "Response") -> Iterator[bytes]:
    """The bytes of the object in an answer: its first part, or all of it.

    Raises:
        ServerError: it is a web page, such as a login.
        OSError: it broke off.
    """
    kind = answer.headers.get("Content-Type", "").lower()
    chunks = answer.iter_content(_CHUNK)
    if kind.startswith("multipart/"):
        return _first_part(chunks)
    if kind.startswith("text/"):
        raise ServerError(
            "a DICOMweb service answers with a page instead of an object; is it behind a login?"
        )
    return chunks


def _first_part(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What is between the first head and the next boundary (RFC 2046, 5.1).

    The boundary is taken from the body: its parameter in the header may be quoted in many ways.
    """
    held = b""
    while b"\r\n\r\n" not in held:
        if (chunk := next(chunks, None)) is None:
            raise OSError("an answer broke off (no part)")
        held = (held + chunk).lstrip(b"\r\n")
    boundary, _, held = held.partition(b"\r\n")
    end = b"\r\n" + boundary
    held = (b"\r\n" + held).partition(b"\r\n\r\n")[2]
    while (at := held.find(end)) < 0:
        ready = max(len(held) - len(end) + 1, 0)
        if ready:
            yield held[:ready]
        if (chunk := next(chunks, None)) is None:
            raise OSError("an answer broke off (no end)")
        held = held[ready:] + chunk
    yield held[:at]
