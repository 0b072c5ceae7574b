"""The maps of an upload as DICOM Parametric Maps; the header is read in the decoding process."""

import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["json", "dicom", "related"]
DICOM = "application/dicom"
RELATED = "multipart/related"
_FORMS: dict[str, tuple[Form, int]] = {  # media range: what it asks for, and how exactly
    "application/json": ("json", 2),
    DICOM: ("dicom", 2),
    RELATED: ("related", 2),
    "application/*": ("json", 1),
    "*/*": ("json", 0),
}
MOST_PIXELS = 2**24  # of a map: four bytes each, and several copies while it is made


@dataclass(frozen=True, eq=False)
class MakeMaps:
    """The work of making DICOM objects of a prediction's maps, for `upload.work`.

    Attributes:
        row: the predictor's columns, plain values, with `frame` and `pixel_sha256`.
        class_names: in the order of the probabilities.
        cams: raw map (h, w) of the whole picture per method.
        fingerprint: of the bundle.
    """

    row: Mapping[str, Any]
    class_names: Sequence[str]
    cams: Mapping[str, NDArray[np.float16]]
    fingerprint: str

    def __call__(self, data: bytes | None) -> "list[bytes] | str":
        """A DICOM file per map; or why the upload's header does not carry one."""
        from braintumor_ray.publishing.objects import Scored, map_objects
        from braintumor_ray.publishing.source import Refused, source_of

        scored = Scored(self.row, self.class_names, self.cams, self.fingerprint)
        try:
            # A map shows nothing of the scan: burned-in text does not matter.
            source = source_of(data or b"", self.row, allow_burned_in=True)
            made = map_objects(scored, source).values()
        except Refused as refused:
            return str(refused).removeprefix("source: ")
        return [_file(each) for each in made]


def make_maps(
    row: Mapping[str, Any],
    methods: Sequence[str],
    scan: Mapping[str, Any],
    card: Any,  # noqa: ANN401
) -> MakeMaps:
    """The work for one prediction.

    Args:
        row: the predictor's columns, with the maps of `methods` over the whole picture.
        methods: columns of maps.
        scan: `frame` and `pixel_sha256` of what was predicted.
        card: the model's, with `class_names` and `fingerprint`.
    """
    cams = {method: np.asarray(row[method]) for method in methods}
    plain = {
        name: value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        for name, value in row.items()
        if np.ndim(value) < 2
    }
    scored_at = {"scored_at": datetime.now(timezone.utc)}
    return MakeMaps(plain | dict(scan) | scored_at, card.class_names, cams, card.fingerprint)


def answer_form(accept: str) -> Form:
    """What an Accept header asks for (RFC 9110, 12.5.1); JSON where it names nothing we make."""
    found: list[tuple[float, int, Form]] = []
    for entry in accept.lower().split(","):
        media_range, *parameters = (text.strip() for text in entry.split(";"))
        weight = _weight(parameters)
        if media_range in _FORMS and weight > 0:
            form, exactness = _FORMS[media_range]
            found.append((weight, exactness, form))
    return max(found, key=lambda entry: entry[:2], default=(0, 0, "json"))[2]


def related(files: Sequence[bytes]) -> tuple[bytes, str]:
    """Several DICOM files as one body (PS3.18, 8.6.1.2.1), and its Content-Type."""
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    return body, f'{RELATED}; type="{DICOM}"; boundary={boundary}'


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def _file(made: Any) -> bytes:  # noqa: ANN401 - pydicom's dataset
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
