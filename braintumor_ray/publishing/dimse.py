"""Sending objects by C-STORE (PS3.4, annex B) to a server that has no DICOMweb."""

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.extras import require
from braintumor_ray.publishing.retry import Busy, RetryPolicy
from braintumor_ray.publishing.server import (
    DUPLICATE,
    failed_handshake,
    tls_context,
    tls_error,
)
from braintumor_ray.publishing.source import Refused

if TYPE_CHECKING:
    from pynetdicom.association import Association

_ADDRESS = re.compile(r"(?P<title>[^@\\/]{1,16})@(?P<host>\[[^\]]+\]|[^:/@]+):(?P<port>\d{1,5})")
_NO_ACCESS = 0x0124
_NO_RESOURCES = range(0xA700, 0xA800)
_WARNINGS = range(0xB000, 0xC000)  # stored, with a remark (PS3.4, B.2.3)
_NOW_ONLY = 0x02  # a rejection that is transient (PS3.8, 9.3.4)


def is_dimse(address: str) -> bool:
    """Whether an address is AE@HOST:PORT."""
    return _ADDRESS.fullmatch(address) is not None


class Peer:
    """An application entity that objects are sent to; its association is kept while it lasts.

    Args:
        address: AE@HOST:PORT.
        patience: how long it is waited for while it is down.
        title: our own application entity title.
        tls: encrypt and verify; a client certificate comes from the environment.

    Raises:
        UsageError: pynetdicom is not installed, or a title is not valid.
    """

    def __init__(self, address: str, patience: RetryPolicy, title: str, tls: bool = False) -> None:
        found = _ADDRESS.fullmatch(address)
        assert found  # `is_dimse` was asked
        self.address, self._retry = address, patience
        self._title, self._host = found["title"], found["host"].strip("[]")
        self._port = int(found["port"])
        try:
            self._entity = require("pynetdicom").AE(title)
        except ValueError as error:
            raise UsageError(
                f"--aet '{title}' is no AE title; write 1 to 16 characters without backslash"
            ) from error
        self._entity.connection_timeout = 30
        self._tls = (tls_context(), self._host) if tls else None
        self._association: Association | None = None
        self._asked: set[UID] = set()

    def store(self, objects: Sequence[Dataset]) -> None:
        """Send the objects of a scan; what the server has already is no error.

        Raises:
            Refused: the server does not take one of them; names its code.
            PublishError: it is down for longer than `wait`, refuses access, or TLS fails.
        """
        classes = {each.SOPClassUID for each in objects}
        for each in objects:
            self._retry.call(self.address, partial(self._send, each, classes))

    def close(self) -> None:
        """Release the association."""
        if self._association is not None and self._association.is_established:
            self._association.release()
        self._association = None

    def _send(self, each: Dataset, classes: set[UID]) -> None:
        """One object, once; `classes` are asked for where a new association is made."""
        association = self._associated(classes)
        if each.SOPClassUID not in {c.abstract_syntax for c in association.accepted_contexts}:
            raise Refused(f"server: does not take {each.SOPClassUID.name}")
        try:
            status = association.send_c_store(each)
        except RuntimeError as error:  # it ended between our look at it and the sending
            raise self._lost() from error
        if "Status" not in status:  # no answer in time, or the connection ended
            raise self._lost()
        self._check(status, each)

    def _lost(self) -> Busy:
        """Give the association up: one that just ended is still called established for a while."""
        if self._association is not None:
            self._association.abort(block=False)
        self._association = None
        return Busy("association lost")

    def _check(self, status: Dataset, each: Dataset) -> None:
        """Take an answer, PS3.4, table B.2-1.

        Raises:
            Busy, Refused, PublishError: it is none that confirms that the object is stored.
        """
        code = int(status.Status)
        if code in (0, DUPLICATE) or code in _WARNINGS:
            return
        told = f"{code:#06x}, {_meaning(code)}"
        if code in _NO_RESOURCES:
            raise Busy(told)
        if code == _NO_ACCESS:
            raise PublishError(f"'{self.address}' refuses access ({told})")
        raise Refused(f"server: refused {each.SOPClassUID.name} ({told})")

    def _associated(self, classes: set[UID]) -> "Association":
        """The association, or a new one where it ended or did not ask for these classes."""
        if self._association and self._association.is_established and classes <= self._asked:
            return self._association
        self.close()
        self._asked |= classes
        self._association = self._new_association()
        return self._association

    def _new_association(self) -> "Association":
        from pynetdicom import build_context

        syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        contexts = [build_context(each, syntaxes) for each in sorted(self._asked)]
        made: Association = self._entity.associate(
            self._host, self._port, contexts, ae_title=self._title, tls_args=self._tls
        )
        if made.is_established:
            return made
        raise self._no_association(made)

    def _no_association(self, made: "Association") -> PublishError:
        if made.is_rejected:
            answer = made.acceptor.primitive
            told = f"{answer.result_str}: {answer.reason_str}"
            if answer.result == _NOW_ONLY:
                return Busy(told)
            return PublishError(
                f"'{self.address}' rejects the association ({told}); it must know our title "
                f"'{self._entity.ae_title}' (--aet), and --to its own"
            )
        if self._tls and (error := failed_handshake(self._host, self._port, self._tls[0])):
            return tls_error(self.address, error)
        if made.rejected_contexts:  # it accepted us and none of the classes: pynetdicom aborts
            names = ", ".join(sorted(each.name for each in self._asked))
            return Refused(f"server: does not take {names}")
        return Busy("no association")


def _meaning(code: int) -> str:
    from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

    return STORAGE_SERVICE_CLASS_STATUS.get(code, ("", "not in the standard"))[1]
