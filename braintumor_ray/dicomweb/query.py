"""The objects that a DICOMweb service has, study by study and by pages (QIDO-RS, PS3.18, 10.6).

Only one page and one study are in memory, and the UIDs of the studies that came already.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from braintumor_ray.dicomweb.session import DicomwebService
from braintumor_ray.dicomweb.uid_tokens import is_uid
from braintumor_ray.errors import ServerError, UsageError
from braintumor_ray.storage import DICOMWEB, split_uri
from braintumor_ray.types import MANUFACTURER

PAGE = 500  # results that are asked for at a time
STUDY_KEYS = (
    "StudyDate", "StudyTime", "StudyInstanceUID", "StudyID", "StudyDescription", "AccessionNumber",
    "ModalitiesInStudy", "PatientID", "PatientName", "ReferringPhysicianName",
)  # fmt: skip
SERIES_KEYS = (
    "Modality", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "BodyPartExamined",
    "ProtocolName", "PerformedProcedureStepStartDate",
)  # fmt: skip
_STUDY, _SERIES, _SOP, _CLASS = "0020000D", "0020000E", "00080018", "00080016"
_MANUFACTURER = "00080070"
_MODALITY, _SERIES_COUNT, _INSTANCE_COUNT = "00080060", "00201206", "00201209"
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)
NO_IMAGE = "objects that are no images"
OURS = "objects published by braintumor-ray"
NO_UID = "objects whose UIDs are not valid"


@dataclass(frozen=True)
class Query:
    """What a DICOMweb source asks for.

    Attributes:
        root: of the service as a URI, such as dicomweb+https://host/dicom-web.
        studies, series: keys and values to match, by level.
    """

    root: str
    studies: Mapping[str, str]
    series: Mapping[str, str]

    @property
    def url(self) -> str:
        """The service's root as its server knows it."""
        return service_url(self.root)

    def __str__(self) -> str:
        """Without the values: they may name a patient."""
        return f"'{self.root}' ({', '.join([*self.studies, *self.series])})"


def is_dicomweb(source: str) -> bool:
    """Whether a source or file is on a DICOMweb service."""
    return source.startswith(tuple(f"{scheme}://" for scheme in DICOMWEB))


def service_url(root: str) -> str:
    """The web address of a DICOMweb URI.

    Raises:
        UsageError: patients' data would go over a network as they are.
    """
    scheme, _, rest = root.partition("://")
    if scheme == "dicomweb+http" and not _LOOPBACK.fullmatch(rest.partition("/")[0]):
        raise UsageError(
            f"'{root}' would send patients' data unencrypted; write dicomweb+https:// (http is for "
            "localhost only)"
        )
    return f"{scheme.removeprefix('dicomweb+')}://{rest}"


def parse_query(source: str) -> Query:
    """The parts of `dicomweb+https://host/dicom-web?StudyDate=20261101-&Modality=MR`.

    Without `Modality` it is MR.

    Raises:
        UsageError: no such URI, or a key that is not matched.
    """
    root, _, text = source.partition("?")
    uri = split_uri(root)
    if uri is None or not uri.authority or "@" in uri.authority:
        raise UsageError(
            "a DICOMweb source is written dicomweb+https://host/dicom-web?StudyDate=20261101-; "
            "credentials come from the environment"
        )
    asked = dict(parse_qsl(text.replace("+", "%2B"), keep_blank_values=True))
    for key in asked:
        if key not in STUDY_KEYS + SERIES_KEYS:
            raise UsageError(
                f"'{key}' is no key of a DICOMweb source; use {', '.join(STUDY_KEYS + SERIES_KEYS)}"
            )
    studies = {key: value for key, value in asked.items() if key in STUDY_KEYS}
    series = {"Modality": "MR"} | {k: v for k, v in asked.items() if k in SERIES_KEYS}
    return Query(root.rstrip("/"), {"ModalitiesInStudy": series["Modality"]} | studies, series)


@dataclass(frozen=True)
class Instance:
    """Where an object is: three UIDs."""

    study: str
    series: str
    sop: str


class Lister:
    """Lists the images of a service that match a query; counts what it leaves out."""

    def __init__(self, service: DicomwebService, query: Query) -> None:
        self._service, self._query = service, query
        self.left_out: Counter[str] = Counter()

    def studies(self) -> Iterator[list[Instance]]:
        """The images of each study."""
        for found in self._pages("/studies", self._query.studies, _STUDY):
            study = _value(found, _STUDY)
            if self._valid(study):
                yield list(self._of_study(study, found))

    def _of_study(self, study: str, found: Mapping[str, Any]) -> Iterator[Instance]:
        path = f"/studies/{study}/series"
        told = _number(found, _SERIES_COUNT)
        # Some servers return the manufacturer only if asked; else the header has it.
        keys = {**self._query.series, "includefield": _MANUFACTURER}
        for each in self._pages(path, keys, _SERIES, told):
            series, modality = _value(each, _SERIES), _value(each, _MODALITY)
            wanted = self._query.series["Modality"]
            if modality and _is_plain(wanted) and modality != wanted:
                continue  # a server may ignore a key that it does not match
            count = _number(each, _INSTANCE_COUNT)
            if not self._valid(series):
                continue
            if _value(each, _MANUFACTURER) == MANUFACTURER:
                self.left_out[OURS] += self._size(study, series, count)
            else:
                yield from self._of_series(study, series, count)

    def _size(self, study: str, series: str, told: int | None) -> int:
        """How many objects a series has."""
        path = f"/studies/{study}/series/{series}/instances"
        return told if told is not None else sum(1 for _ in self._pages(path, {}, _SOP))

    def _of_series(self, study: str, series: str, told: int | None) -> Iterator[Instance]:
        path = f"/studies/{study}/series/{series}/instances"
        for each in self._pages(path, {}, _SOP, told):
            sop = _value(each, _SOP)
            if not _may_be_image(_value(each, _CLASS)):
                self.left_out[NO_IMAGE] += 1
            elif self._valid(sop):
                yield Instance(study, series, sop)

    def _valid(self, uid: str) -> bool:
        if not is_uid(uid):
            self.left_out[NO_UID] += 1
        return is_uid(uid)

    def _pages(
        self, path: str, keys: Mapping[str, str], tag: str, told: int | None = None
    ) -> Iterator[Mapping[str, Any]]:
        """All results, each once; asked for until a page brings nothing new, or `told` are there.

        Raises:
            ServerError: the server gives its first page again instead of the next.
        """
        seen: set[str] = set()
        count = 0
        while told is None or count < told:
            page = self._results(path, {**keys, "limit": PAGE, "offset": count})
            fresh = [each for each in page if _value(each, tag) not in seen]
            if page and not fresh and len(page) == PAGE:
                raise ServerError(
                    f"'{self._service.url}' gives no more than its first {len(page)} results "
                    "(it ignores 'offset'); ask for less at a time, such as one day of StudyDate"
                )
            if not fresh:
                return
            seen.update(_value(each, tag) for each in fresh)
            count += len(page)
            yield from fresh

    def _results(self, path: str, query: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        with self._service.get(path, query) as answer:
            if answer.status_code == 204 or not answer.content:
                return []
            try:
                found = answer.json()
            except ValueError:
                found = None
        if isinstance(found, dict):  # some send a single result so
            found = [found]
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise ServerError(
                f"'{self._service.url}' does not answer in DICOM JSON; write the address of a "
                "DICOMweb root (behind a login page it is none)"
            )
        return found


def _value(found: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON (PS3.18, F.2); empty where there is none."""
    values = (found.get(tag) or {}).get("Value") or [""]
    return str(values[0] or "").strip()


def _number(found: Mapping[str, Any], tag: str) -> int | None:
    text = _value(found, tag)
    return int(text) if text.isdecimal() else None


def _is_plain(value: str) -> bool:
    return not set(value) & set("*?\\,")


def _may_be_image(sop_class: str) -> bool:
    """Not so: reports, segmentations, presentation states, and the maps that we publish."""
    from pydicom.uid import UID  # a third of a second, for those who list no PACS

    name = UID(sop_class).name if sop_class else ""
    return not name or is_uid(name) or "Image Storage" in name  # a UID: pydicom has no name for it
