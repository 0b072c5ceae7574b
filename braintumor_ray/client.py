"""A small client of the service, for scripts; the standard library alone.

>>> client = Client("http://127.0.0.1:8000")
>>> client.predict(Path("scan.png").read_bytes())["predicted_class"]  # doctest: +SKIP
'no_tumor'
"""

import http.client
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from braintumor_ray.errors import BrainTumorError, UsageError

Content = bytes | str | Path
_BUSY = 503


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
    """

    def __init__(
        self, url: str, token: str | None = None, timeout_s: float = 60.0, retries: int = 3
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"'{url}' is not a service's URL; use one as http://127.0.0.1:8000")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._url = url
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_s)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._retries = retries

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
        boundary = secrets.token_hex(16)
        body = b"".join(
            _form_part(boundary, f"scan{index}", _content(scan)) for index, scan in enumerate(scans)
        )
        body += f"--{boundary}--\r\n".encode()
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
            if status < 400:
                return found
            if status != _BUSY or left <= 0:
                detail = found.get("detail", "no detail was given")
                raise ServiceError(f"{found.get('title', status)}: {detail}", status, found)
            left -= 1
            time.sleep(wait_s)

    def _exchange(
        self, verb: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, float, dict[str, Any]]:
        """Status, seconds to wait before coming back, and the JSON."""
        try:
            response = self._send(verb, path, body, headers)
            content = response.read()
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
            self._connection.request(verb, self._prefix + path, body, headers)
            return self._connection.getresponse()
        except ConnectionError:
            if not reused:
                raise
            # The service may close an idle connection at any time: try once more on a new one.
            self._connection.close()
            return self._send(verb, path, body, headers)


def _content(scan: Content) -> bytes:
    return scan if isinstance(scan, bytes) else Path(scan).read_bytes()


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
