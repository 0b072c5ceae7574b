"""Sending objects to a DICOMweb server by STOW-RS (PS3.18, 10.5), each of them once."""

import os
import time
from collections.abc import Callable, Container, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset

from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.extras import require
from braintumor_ray.publishing.source import Refused

if TYPE_CHECKING:
    from requests import Session

TOKEN, USER, PASSWORD = (f"BRAINTUMOR_DICOMWEB_{n}" for n in ("TOKEN", "USER", "PASSWORD"))
CERTIFICATE, KEY = (f"BRAINTUMOR_DICOMWEB_{n}" for n in ("CERT", "KEY"))
_BUSY = {408, 429, 502, 503, 504}
_NO_ACCESS = {401, 403}
_DUPLICATE = 0x0111  # PS3.7, C.5.9: the server has an object of that UID
_LONGEST_PAUSE_S = 30.0


class Server:
    """A DICOMweb server that objects are sent to.

    Args:
        url: of the service, such as https://host/dicom-web.
        wait: how long it is waited for while it is down, in seconds.
        sleep: pauses; tests give another one.

    Raises:
        UsageError: dicomweb-client is not installed, or the URL is none of http or https.
    """

    def __init__(self, url: str, wait: float, sleep: Callable[[float], None] = time.sleep) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--to '{url}' is not a DICOMweb URL; write https://host/dicom-web")
        self.url, self._wait, self._sleep = url.rstrip("/"), wait, sleep
        self._client = _client(self.url)

    def store(self, objects: Sequence[Dataset]) -> None:
        """Send the objects of a scan; what the server has already is no error.

        Raises:
            Refused: the server does not take one of them; names its code.
            PublishError: it is down for longer than `wait`, refuses access, or TLS fails.
        """
        answer = self._patiently(lambda: self._client.store_instances(list(objects)))
        if answer is None:  # 409: none was stored, or the server has them
            missing = [each for each in objects if not self._has(each)]
            if missing:
                raise Refused(f"server: refused {len(missing)} objects (409)")
            return
        for failed in answer.get("FailedSOPSequence") or ():
            code = int(failed.get("FailureReason") or 0)
            named = [e for e in objects if e.SOPInstanceUID == failed.ReferencedSOPInstanceUID]
            if code != _DUPLICATE and not all(map(self._has, named)):
                raise Refused(f"server: refused an object (failure reason {code:#06x})")

    def _has(self, each: Dataset) -> bool:
        uids = (each.StudyInstanceUID, each.SeriesInstanceUID, each.SOPInstanceUID)
        found = self._patiently(lambda: self._client.retrieve_instance_metadata(*uids), (404, 410))
        return bool(found)

    def _patiently(
        self, ask: Callable[[], Any], none_for: Container[int] = (HTTPStatus.CONFLICT,)
    ) -> Any:  # noqa: ANN401 - what was asked for
        """An answer, waiting for a server that is down; None for these codes."""
        import requests

        deadline, pause = time.monotonic() + self._wait, 1.0
        while True:
            try:
                return ask()
            except requests.exceptions.SSLError as error:
                raise PublishError(
                    f"TLS of '{self.url}' is not verified; set REQUESTS_CA_BUNDLE to the "
                    "certificate of its authority"
                ) from error
            except requests.HTTPError as error:
                code = error.response.status_code if error.response is not None else 0
                if code in none_for:
                    return None
                cause = self._cause(code, error)
            except (requests.ConnectionError, requests.Timeout) as error:
                cause = type(error).__name__
            if time.monotonic() + pause > deadline:
                raise PublishError(
                    f"'{self.url}' is down ({cause}) and was waited for {self._wait:g} s (--wait); "
                    "publish again: what was sent is not sent twice"
                )
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _cause(self, code: int, error: Exception) -> str:
        """What to write of a server that is busy.

        Raises:
            Refused, PublishError: it is not, and asking again is of no use.
        """
        if code in _BUSY:
            return f"HTTP {code}"
        if code in _NO_ACCESS:
            raise PublishError(
                f"'{self.url}' refuses access (HTTP {code}); set {TOKEN}, or {USER} and {PASSWORD},"
                f" or {CERTIFICATE} and {KEY}"
            ) from error
        if code == HTTPStatus.NOT_FOUND:
            raise PublishError(
                f"'{self.url}' is no DICOMweb service (HTTP 404); write the address of its root, "
                "such as https://host/dicom-web"
            ) from error
        raise Refused(f"server: HTTP {code}") from error


def _client(url: str) -> Any:  # noqa: ANN401 - an optional library
    client = require("dicomweb_client.api").DICOMwebClient(url, session=_session())
    client.set_http_retry_params(retry=False)  # `_patiently` waits, and knows for how long
    return client


def _session() -> "Session":
    """Credentials of the environment; none are given on the command line, where others see them."""
    import requests

    session = requests.Session()
    token, user = os.environ.get(TOKEN), os.environ.get(USER)
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    elif user:
        session.auth = (user, os.environ.get(PASSWORD, ""))
    if certificate := os.environ.get(CERTIFICATE):
        session.cert = (certificate, os.environ[KEY]) if os.environ.get(KEY) else certificate
    return session
