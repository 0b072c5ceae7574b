"""How a DICOMweb server is reached: credentials of the environment, what its codes mean."""

import os
import time
from collections.abc import Callable, Container, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from braintumor_ray.errors import ServerError, UsageError
from braintumor_ray.extras import require

if TYPE_CHECKING:
    from requests import Response, Session

TOKEN, USER, PASSWORD = (f"BRAINTUMOR_DICOMWEB_{n}" for n in ("TOKEN", "USER", "PASSWORD"))
CERTIFICATE, KEY = (f"BRAINTUMOR_DICOMWEB_{n}" for n in ("CERT", "KEY"))
CREDENTIALS = f"{TOKEN}, or {USER} and {PASSWORD}, or {CERTIFICATE} and {KEY}"
WAIT = "BRAINTUMOR_DICOMWEB_WAIT"  # seconds
BUSY = {408, 429, 502, 503, 504}
NO_ACCESS = {401, 403}
# Opening a file waits a tenth of the time, 30 s, as for an object store: the archive job and the
# catalog try again.
ATTEMPTS = 10
_CONNECTIONS = 16  # more than threads that read at a time: else urllib3 warns
_TIMEOUT_S = (10.0, 60.0)  # to connect; without a byte
_LONGEST_PAUSE_S = 30.0


def patience_s() -> float:
    """How long a server that is down is waited for, in seconds.

    Raises:
        UsageError: the environment has no number there.
    """
    text = os.environ.get(WAIT) or "300"
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{WAIT} '{text}' is no number of seconds") from error


class RefusedError(OSError):
    """A server answers, but not with what it was asked for; asking again is of no use."""


ANSWERS = (FileNotFoundError, PermissionError, RefusedError)  # of a server that is not down


class DicomwebService:
    """A DICOMweb service that is read.

    Args:
        url: its root, such as https://host/dicom-web.
        wait: how long it is waited for while it is down, in seconds.
        sleep: pauses; tests give another one.
    """

    def __init__(self, url: str, wait: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url, self._wait, self._sleep = url.rstrip("/"), wait, sleep
        self._session = session()

    def get(
        self,
        path: str,
        query: Mapping[str, Any] | None = None,
        accept: str = "application/dicom+json",
        also: Container[int] = (),
    ) -> "Response":
        """An answer whose body is not read yet, waiting for a server that is down.

        Messages name the service and the code, never the path, which has UIDs.

        Args:
            path: below the root, with a slash in front.
            query: what follows the question mark.
            accept: media types.
            also: codes of errors that the caller understands.

        Raises:
            ServerError: no access, TLS that is not verified, or an address that is none.
            RefusedError: another code.
            OSError: it is down for longer than `wait`.
        """
        deadline, pause = time.monotonic() + self._wait, 1.0
        while True:
            found = self._once(path, query, accept)
            if not isinstance(found, str):
                if found.ok or found.status_code in also:
                    return found
                found = self._cause(found)
            if time.monotonic() + pause > deadline:
                raise OSError(f"'{self.url}' is down ({found}) and was waited for {self._wait:g} s")
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _once(self, path: str, query: Mapping[str, Any] | None, accept: str) -> "Response | str":
        """An answer, or why there is none now."""
        import requests

        try:
            return self._session.get(
                f"{self.url}{path}",
                # Not encoded: Orthanc 1.10 takes %2A for a text and finds nothing.
                params=urlencode(query or {}, safe="*?,", quote_via=quote),
                headers={"Accept": accept},
                stream=True,
                timeout=_TIMEOUT_S,
            )
        except requests.exceptions.SSLError as error:
            raise ServerError(tls_failure(self.url, str(error))) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            return type(error).__name__
        except requests.RequestException as error:  # their texts have the path
            raise ServerError(f"'{self.url}' cannot be asked: {type(error).__name__}") from None

    def _cause(self, answer: "Response") -> str:
        """What to write of a server that is busy; raises where it is not."""
        code = answer.status_code
        answer.close()
        if code in BUSY:
            return f"HTTP {code}"
        if code in NO_ACCESS:
            raise ServerError(f"'{self.url}' refuses access (HTTP {code}); set {CREDENTIALS}")
        if code == HTTPStatus.NOT_FOUND:
            raise ServerError(
                f"'{self.url}' is no DICOMweb service (HTTP 404); write the address of its root, "
                "such as dicomweb+https://host/dicom-web"
            )
        raise RefusedError(f"'{self.url}' refuses: HTTP {code}")


def session() -> "Session":
    """Credentials of the environment; none are given on the command line, where others see them.

    Raises:
        UsageError: a file that the environment names is not there, or the extra is missing.
    """
    requests = require("requests")
    made: Session = requests.Session()
    for scheme in ("https://", "http://"):
        made.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
    token, user = os.environ.get(TOKEN), os.environ.get(USER)
    if token:
        made.headers["Authorization"] = f"Bearer {token}"
    elif user:
        made.auth = (user, os.environ.get(PASSWORD, ""))
    made.cert = client_certificate()
    return made


def client_certificate() -> tuple[str, str] | None:
    """Files of certificate and key from the environment; without a key, it is with the certificate.

    Raises:
        UsageError: one of them is not there.
    """
    certificate, key = os.environ.get(CERTIFICATE), os.environ.get(KEY) or None
    for name, path in ((CERTIFICATE, certificate), (KEY, key)):
        if path and not os.path.isfile(path):
            raise UsageError(f"{name} names '{path}', which is no file")
    return (certificate, key or certificate) if certificate else None


def tls_failure(url: str, cause: str) -> str:
    """One line for a TLS connection that failed on either side."""
    if "CERTIFICATE_VERIFY_FAILED" in cause:
        return (
            f"TLS of '{url}' is not verified; set REQUESTS_CA_BUNDLE to the certificate of its "
            "authority"
        )
    return (
        f"'{url}' refuses the TLS connection; if it wants a client certificate, set {CERTIFICATE} "
        f"and {KEY}"
    )
