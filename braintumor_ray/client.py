"""A small client of the service, for scripts; the standard library alone.

`address` is the URL of the service, such as http://127.0.0.1:8000, and `paths` is a list of files:

>>> with Client(address) as client:
...     client.predict(paths[0])["predicted_class"]
'no_tumor'
>>> with Client(address) as client:
...     for entry in client.predict_many(paths, explain="none", batch_size=2):
...         answer = entry.get("result")
...         print(entry["index"], answer["predicted_class"] if answer else entry["error"]["title"])
0 no_tumor
1 no_tumor
2 Not an image in a known format
3 no_tumor
"""

import http.client
import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlencode, urlsplit

from braintumor_ray.errors import BrainTumorError, UsageError

Content = bytes | str | Path
_Read = bytes | dict[str, Any]  # a scan's content, or the entry with its error
_BUSY = 503
_ANSWERED = range(200, 300)
_OF_ONE_REQUEST = {408, 413, 500, _BUSY}  # others would befall all of them
_BATCH_BYTES = 32 * 2**20
_TOLD = ("result", "error")


class ServiceError(BrainTumorError):
    """The service refused a request, or cannot be reached.

    Attributes:
        status: the HTTP status; None where nothing answered.
        problem: the problem document (RFC 9457); empty where there was none.
    """

    def __init__(
        self, message: str, status: int | None = None, problem: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = dict(problem or {})


class Client:
    """One connection, kept open; not for several threads at once.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        token: where the service asks for one; take it from a file or the environment.
        timeout_s: longest wait for an answer, seconds.
        retries: how often to ask a busy service again, after the wait it names (Retry-After).

    Raises:
        UsageError: the URL is none, or the token is not one word of ASCII.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout_s: float = 60.0, retries: int = 3
    ) -> None:
        self._url = url
        self._connection, self._prefix = _connection(url, timeout_s)
        self._headers = {"Authorization": f"Bearer {_one_word(token)}"} if token else {}
        self._retries = retries
        self._given = (token, timeout_s, retries)

    def predict(self, scan: Content, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Classify and explain one scan.

        Args:
            scan: the file's bytes, or its path.
            options: `explain`, `heatmap`, `frame`, `plane`, `volume`, `scan`; see docs/serving.md.

        Returns:
            The answer as plain values, see `Prediction` at the service's /docs.

        Raises:
            ServiceError: the service refused it (then with status and problem) or cannot be
                reached.
        """
        body = _content(scan)
        headers = {"Content-Type": "application/octet-stream"}
        return self._call("POST", f"/v1/predict{_query(options)}", body, headers)

    def predict_batch(
        self,
        scans: Sequence[Content],
        **options: Any,  # noqa: ANN401
    ) -> list[dict[str, Any]]:
        """Classify and explain several scans in one request.

        Returns:
            One entry per scan, in order, with `result` or `error`.

        Raises:
            ServiceError: as `predict`, for the request as a whole.
        """
        return self._entries([_content(scan) for scan in scans], options)

    def predict_zip(self, archive: Content, **options: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        """Classify and explain the files of a zip, such as a DICOM series.

        Returns:
            One entry per file, in the zip's order: `index`, `name`, and `result` or `error`.

        Raises:
            ServiceError: as `predict`, for the zip as a whole.
        """
        headers = {"Content-Type": "application/zip"}
        path = f"/v1/predict/batch{_query(options)}"
        found: list[dict[str, Any]] = self._call("POST", path, _content(archive), headers)[
            "results"
        ]
        return found

    def predict_many(
        self,
        scans: Iterable[Content],
        batch_size: int = 16,
        in_flight: int = 2,
        **options: Any,  # noqa: ANN401
    ) -> Iterator[dict[str, Any]]:
        """Classify and explain any number of scans, several in each request.

        Scans are read as they are needed: at most `in_flight` + 1 requests of them are in memory,
        a request holds at most 32 MiB (or one larger scan), and results wait to be taken.

        Args:
            scans: bytes or paths of files, not zips.
            batch_size: most scans in one request.
            in_flight: requests at the same time, each on a connection of its own.
            options: as for `predict`.

        Yields:
            One entry per scan, in order: `index`, and `result` or `error`. A scan that is refused,
            or a path that cannot be read, is an error of its own; so is each scan of a request that
            the service refuses as a whole, and of one that is still busy after all retries.

        Raises:
            ServiceError: the service cannot be reached.
            UsageError: a number is below 1.
        """
        if min(batch_size, in_flight) < 1:
            raise UsageError(f"batch_size={batch_size}, in_flight={in_flight}: both are at least 1")
        return self._many(_batches(scans, batch_size), in_flight, options)

    def _many(
        self, batches: Iterator[list[_Read]], in_flight: int, options: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        numbers, waiting = itertools.count(), deque[Future[list[dict[str, Any]]]]()
        with ExitStack() as stack:  # also where the caller takes no more of them
            idle: SimpleQueue[Client] = SimpleQueue()
            for _ in range(in_flight):
                idle.put(stack.enter_context(Client(self._url, *self._given)))
            threads = ThreadPoolExecutor(in_flight, thread_name_prefix="predict-many")
            stack.callback(threads.shutdown, cancel_futures=True)
            for batch in batches:
                if len(waiting) == in_flight:
                    yield from _numbered(numbers, waiting.popleft().result())
                waiting.append(threads.submit(_on_idle, idle, batch, options))
            while waiting:
                yield from _numbered(numbers, waiting.popleft().result())

    def _answered(self, batch: list[_Read], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """An entry per scan of a batch; scans that find the service busy are sent again."""
        entries = [each if isinstance(each, dict) else None for each in batch]
        for left in range(self._retries, -1, -1):
            asked = [at for at, entry in enumerate(entries) if entry is None or _is_busy(entry)]
            contents = [each for at in asked if isinstance(each := batch[at], bytes)]
            for at, entry in zip(asked, self._tolerant(contents, options), strict=True):
                entries[at] = entry
            if not any(entry and _is_busy(entry) for entry in entries):
                break
            time.sleep(1 if left else 0)
        return [entry for entry in entries if entry is not None]

    def _tolerant(self, contents: list[bytes], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `_entries`; what befalls one request becomes the error of each of its scans."""
        try:
            return self._entries(contents, options) if contents else []
        except ServiceError as error:
            if error.status not in _OF_ONE_REQUEST:
                raise
            problem = {"title": str(error), "status": error.status} | error.problem
            return [{"error": problem} for _ in contents]

    def _entries(
        self, contents: Sequence[bytes], options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        boundary = secrets.token_hex(16)
        parts = (_form_part(boundary, f"scan{at}", each) for at, each in enumerate(contents))
        body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        found = self._call("POST", f"/v1/predict/batch{_query(options)}", body, headers)
        results: list[dict[str, Any]] = found["results"]
        return results

    def model(self) -> dict[str, Any]:
        """The bundle that answers: classes, threshold, preprocessing, fingerprint, limits."""
        return self._call("GET", "/v1/model")

    def ready(self) -> bool:
        """Whether a predictor answers now; False too where nothing listens."""
        try:
            self._call("GET", "/readyz", retries=0)
        except ServiceError:
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _call(
        self,
        verb: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        retries: int | None = None,
    ) -> dict[str, Any]:
        left = self._retries if retries is None else retries
        sent = {**self._headers, **(headers or {})}
        while True:
            status, wait_s, found = self._exchange(verb, path, body, sent)
            if status in _ANSWERED and found:
                return found
            if status != _BUSY or left <= 0:
                # Such as a redirect or a page of what is in front of the service.
                other = "no detail was given" if status >= 400 else "no answer of this service"
                detail = found.get("detail", other)
                raise ServiceError(f"{found.get('title', status)}: {detail}", status, found)
            left -= 1
            time.sleep(wait_s)

    def _exchange(
        self, verb: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, float, dict[str, Any]]:
        """Status, seconds to wait before coming back, and the JSON."""
        try:
            response = self._send(verb, path, body, headers)
            content = _read_whole(response)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServiceError(
                f"{self._url} does not answer ({type(error).__name__}); is it running?"
            ) from error
        wait = response.headers.get("Retry-After", "1")
        wait_s = float(wait) if wait.isdigit() else 1.0
        return response.status, wait_s, _json(content)

    def _send(
        self, verb: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        reused = self._connection.sock is not None
        try:
            self._request(verb, self._prefix + path, body, headers)
            return self._connection.getresponse()
        except ConnectionError:
            if not reused:
                raise
            # The service may close an idle connection at any time: try once more on a new one.
            self._connection.close()
            return self._send(verb, path, body, headers)

    def _request(self, verb: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        try:
            self._connection.request(verb, path, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # The service refuses a body before it has all of it: its answer is there to be read.
            if self._connection.sock is None:
                raise


def _connection(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """The connection to be opened, and what paths begin with."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port or an IPv6 address that is none
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise UsageError(f"'{url}' is not a service's URL; use one as http://127.0.0.1:8000")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=timeout_s), parts.path.rstrip("/")


def _one_word(token: str) -> str:
    """The token as the service reads it of its file, without the end of the line."""
    word = token.strip()
    if not word.isascii() or not word.isprintable() or " " in word:
        raise UsageError("the token is not one word of ASCII; give that of the service")
    return word


def _read_whole(response: http.client.HTTPResponse) -> bytes:
    """The content; of a refusal as much as came before the service closed the connection."""
    try:
        return response.read()
    except http.client.IncompleteRead as error:
        if response.status < 400:
            raise
        return error.partial


def _content(scan: Content) -> bytes:
    return scan if isinstance(scan, bytes) else Path(scan).read_bytes()


def _batches(scans: Iterable[Content], size: int) -> Iterator[list[_Read]]:
    """Scans as they are read, in lists of at most `size` and `_BATCH_BYTES`."""
    batch, n_bytes = list[_Read](), 0
    for read in map(_read, scans):
        more = len(read) if isinstance(read, bytes) else 0
        if batch and (len(batch) == size or n_bytes + more > _BATCH_BYTES):
            yield batch
            batch, n_bytes = [], 0
        batch.append(read)
        n_bytes += more
    if batch:
        yield batch


def _read(scan: Content) -> _Read:
    try:
        content = _content(scan)
    except OSError as error:
        detail = f"'{scan!s}' cannot be read ({type(error).__name__}); check the path"
        return {"error": {"title": "The file cannot be read", "detail": detail}}
    if content[:4] == b"PK\3\4" and content[128:132] != b"DICM":
        return {"error": {"title": "A zip holds many scans", "detail": "send it by predict_zip"}}
    return content


def _on_idle(
    idle: SimpleQueue[Client], batch: list[_Read], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    client = idle.get()
    try:
        return client._answered(batch, options)
    finally:
        idle.put(client)


def _numbered(
    numbers: Iterator[int], entries: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Entries with the scan's number among all, without its name in its request."""
    for entry in entries:
        yield {"index": next(numbers)} | {name: entry[name] for name in _TOLD if name in entry}


def _is_busy(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("error", {}).get("status") == _BUSY)


def _query(options: Mapping[str, Any]) -> str:
    return f"?{urlencode(options)}" if options else ""


def _form_part(boundary: str, name: str, content: bytes) -> bytes:
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    )
    return head.encode() + content + b"\r\n"


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
