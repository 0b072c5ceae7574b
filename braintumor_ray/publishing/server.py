"""Sending objects to a DICOMweb server by STOW-RS (PS3.18, 10.5), each of them once."""

import os
import socket
import ssl
from collections.abc import Callable, Container, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydicom.dataset import Dataset

from braintumor_ray.dicomweb.session import (
    BUSY,
    CREDENTIALS,
    NO_ACCESS,
    client_certificate,
    session,
    tls_failure,
)
from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.extras import require
from braintumor_ray.publishing.retry import Busy, RetryPolicy
from braintumor_ray.publishing.source import Refused
from braintumor_ray.storage import without_password

if TYPE_CHECKING:
    from requests import Response, Session

DUPLICATE = 0x0111  # PS3.7, C.5.9: the server has an object of that UID
_REDIRECTS = range(300, 400)


class Server:
    """A DICOMweb server that objects are sent to.

    Args:
        url: of the service, such as https://host/dicom-web.
        patience: how long it is waited for while it is down.

    Raises:
        UsageError: dicomweb-client is not installed, or the URL is none of http or https.
    """

    def __init__(self, url: str, patience: RetryPolicy) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                f"--to '{without_password(url)}' is no server; write https://host/dicom-web or "
                "AE@HOST:PORT"
            )
        address = url.rstrip("/")
        self.url, self._retry = without_password(address), patience
        self._session = session()
        self._session.hooks["response"].append(_as_answered)
        self._client = _client(address, self._session)

    def store(self, objects: Sequence[Dataset]) -> None:
        """Send the objects of a scan; what the server has already is no error.

        Raises:
            Refused: the server does not take one of them; names its code.
            PublishError: it is down for longer than `wait`, refuses access, or TLS fails.
        """
        answer = self._with_retries(lambda: self._client.store_instances(list(objects)))
        if answer is None:  # 409: none was stored, or the server has them
            missing = [each for each in objects if not self._has(each)]
            if missing:
                raise Refused(f"server: refused {len(missing)} objects (409)")
            return
        for failed in answer.get("FailedSOPSequence") or ():
            code = int(failed.get("FailureReason") or 0)
            named = [e for e in objects if e.SOPInstanceUID == failed.ReferencedSOPInstanceUID]
            if code != DUPLICATE and not all(map(self._has, named)):
                raise Refused(f"server: refused an object (failure reason {code:#06x})")

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def _has(self, each: Dataset) -> bool:
        uids = (each.StudyInstanceUID, each.SeriesInstanceUID, each.SOPInstanceUID)
        try:
            found = self._with_retries(
                lambda: self._client.retrieve_instance_metadata(*uids), (404, 410)
            )
        except IndexError:  # of an empty list: the server answers so of what it does not have
            return False
        return bool(found)

    def _with_retries(
        self, ask: Callable[[], Any], none_for: Container[int] = (HTTPStatus.CONFLICT,)
    ) -> Any:  # noqa: ANN401 - what was asked for
        """An answer, waiting for a server that is down; None for these codes."""
        return self._retry.call(self.url, lambda: self._once(ask, none_for))

    def _once(self, ask: Callable[[], Any], none_for: Container[int]) -> Any:  # noqa: ANN401
        import requests
        from requests.exceptions import ChunkedEncodingError  # the server ended within its answer

        try:
            return ask()
        except requests.exceptions.SSLError as error:
            raise tls_error(self.url, error) from error
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if code in none_for:
                return None
            raise self._failure(code) from error
        except (requests.ConnectionError, requests.Timeout, ChunkedEncodingError) as error:
            if failed := self._failed_handshake():
                raise tls_error(self.url, failed) from error
            raise Busy(type(error).__name__) from error
        except requests.RequestException as error:  # their texts have the path, and so UIDs
            raise PublishError(f"'{self.url}' cannot be asked: {type(error).__name__}") from None

    def _failed_handshake(self) -> Exception | None:
        """Of https: a client certificate that is missing ends a connection without a reason."""
        from requests.utils import DEFAULT_CA_BUNDLE_PATH

        address = urlsplit(self.url)
        if address.scheme != "https" or address.hostname is None:
            return None
        return failed_handshake(
            address.hostname, address.port or 443, tls_context(DEFAULT_CA_BUNDLE_PATH)
        )

    def _failure(self, code: int) -> PublishError:
        """What an HTTP code means: `Busy`, `Refused` for this scan, or the end of the command."""
        if code in BUSY:
            return Busy(f"HTTP {code}")
        if code in NO_ACCESS:
            return PublishError(f"'{self.url}' refuses access (HTTP {code}); set {CREDENTIALS}")
        if code in _REDIRECTS:
            return PublishError(
                f"'{self.url}' redirects to another address (HTTP {code}), and nothing is sent "
                "there; write that address"
            )
        if code == HTTPStatus.NOT_FOUND:
            return PublishError(
                f"'{self.url}' is no DICOMweb service (HTTP 404); write the address of its root, "
                "such as https://host/dicom-web"
            )
        return Refused(f"server: HTTP {code}")


def tls_error(server: str, error: Exception) -> PublishError:
    """One line for a TLS connection that failed on either side."""
    return PublishError(tls_failure(server, str(error)))


def tls_context(authorities: str | None = None) -> ssl.SSLContext:
    """Verifies by REQUESTS_CA_BUNDLE, else by the given file, else by the system's authorities.

    Raises:
        UsageError: a file of the environment cannot be read.
    """
    certificate = client_certificate()
    try:
        context = ssl.create_default_context(
            cafile=os.environ.get("REQUESTS_CA_BUNDLE") or authorities
        )
        if certificate:
            context.load_cert_chain(*certificate)
    except OSError as error:  # also ssl.SSLError
        raise UsageError(f"certificate or key of TLS cannot be read ({error.strerror})") from error
    return context


def failed_handshake(host: str, port: int, context: ssl.SSLContext) -> Exception | None:
    """Why TLS fails: pynetdicom does not report it. None where something else is the matter."""
    try:
        with (
            socket.create_connection((host, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.recv(1)  # TLS 1.3: a missing client certificate is reported after the handshake
    except ssl.SSLError as error:
        return error
    except OSError:
        return None
    return None


def _as_answered(answer: "Response", **_: Any) -> None:  # noqa: ANN401 - of requests
    """Keep an answer to what was sent from becoming a success that it is not.

    Of a redirect requests makes a GET, whose answer is a list of studies, and of a media type with
    a parameter, such as a charset, dicomweb-client reads no failure.
    """
    import requests

    if answer.request.method != "POST":
        return
    if answer.status_code in _REDIRECTS:
        raise requests.HTTPError(response=answer)
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if answer.ok and media_type == "text/html":  # as of a page to log in
        raise PublishError("the server answers with a page; --to is the root of a DICOMweb service")
    answer.headers["Content-Type"] = media_type


def _client(url: str, connection: "Session") -> Any:  # noqa: ANN401 - an optional library
    try:
        client = require("dicomweb_client.api").DICOMwebClient(url, session=connection)
    except ValueError as error:
        raise UsageError(
            f"--to '{without_password(url)}' is no address of a server ({error}); write "
            "https://host/dicom-web"
        ) from error
    client.set_http_retry_params(retry=False)  # `_with_retries` waits, and knows for how long
    return client
