"""DICOM objects of one row: a Parametric Map per map, a report by TID 1500, a capture.

highdicom writes them. UIDs follow from the row (`Scored.digest`), its source and the bundle, so
that the same row published again gives the same objects. Dates are those of the scoring.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from braintumor_ray import __version__
from braintumor_ray.explain.overlay import METHOD_LABELS, panel, upsampled
from braintumor_ray.extras import require
from braintumor_ray.publishing.source import Refused, SourceFrame
from braintumor_ray.types import MANUFACTURER

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, ComprehensiveSR, MeasurementReport

INTENDED_USE = "Research use, not for diagnosis"
SCHEME = "99BTRAY"  # of codes for which the standard has none (PS3.16, 8.2)
_NAMES = uuid.UUID("5f0a6c1e-92cf-5be1-8b5c-5f9d8a3c7a10")  # of uids; another one: other objects
_SERIES_NUMBERS = {"map": 9100, "report": 9200, "capture": 9300}


@dataclass(frozen=True, eq=False)
class Scored:
    """A row of results with the names that its columns need.

    Attributes:
        row: as in `predict.schema.result_schema`.
        class_names: in the order of `probabilities`.
        cams: raw map (h, w) of the whole picture per method.
        fingerprint: of the bundle.
    """

    row: Mapping[str, Any]
    class_names: Sequence[str]
    cams: Mapping[str, NDArray[Any]]
    fingerprint: str

    @property
    def digest(self) -> str:
        """Of all that is published of the row; no id goes into it."""
        told = ("pixel_sha256", "frame", "predicted_class", "decision", "out_of_domain",
                "cam_class", "prediction_set")  # fmt: skip
        text = repr([self.fingerprint, *self.class_names, *(self.row.get(name) for name in told)])
        found = hashlib.sha256(text.encode())
        found.update(np.asarray(self.row["probabilities"], "<f4").tobytes())
        for method, cam in self.cams.items():
            found.update(method.encode())
            found.update(np.asarray(cam, "<f2").tobytes())
        return found.hexdigest()[:32]


Frame: TypeAlias = tuple[Scored, SourceFrame]


def derived_objects(
    scored: Scored, source: SourceFrame, *, maps: bool = True
) -> dict[str, Dataset]:
    """All objects of a row by their name: `map_METHOD`, `report`, `capture`.

    Args:
        scored: the row.
        source: its scan.
        maps: also the Parametric Maps of this scan alone.

    Raises:
        Refused: the source's header cannot be carried over.
        UsageError: highdicom is not installed.
    """
    with _carried_over():
        own: dict[str, Dataset] = {"report": report(scored, source)}
        if scored.cams:
            own["capture"] = capture(scored, source)
    made = map_objects(scored, source) if maps else {}
    return made | _finished(own, scored, source)


def map_objects(scored: Scored, source: SourceFrame) -> dict[str, Dataset]:
    """The Parametric Maps of a row alone, as `derived_objects` makes them.

    Raises:
        Refused, UsageError: see `derived_objects`.
    """
    with _carried_over():
        made: dict[str, Dataset] = {
            f"map_{method}": parametric_map(scored, source, method) for method in scored.cams
        }
    return _finished(made, scored, source)


def series_maps(frames: Sequence[Frame]) -> dict[str, Dataset]:
    """A Parametric Map per method, with a frame for each slice of a series.

    Its UIDs follow from all of its frames: later slices of the series make another object, in a
    series of its own.

    Args:
        frames: of one series and one geometry, at different positions.

    Raises:
        Refused, UsageError: see `derived_objects`.
    """
    ordered = sorted(frames, key=_along_normal)
    first, source = ordered[0]
    text = repr([(str(s.header.SOPInstanceUID), s.frame, scored.digest) for scored, s in ordered])
    whole = hashlib.sha256(text.encode()).hexdigest()
    made = {}
    for method in first.cams:
        instance = _instance(first, source, "map", method) | {
            "series_instance_uid": _named_uid(f"series of {whole} {method}"),
            "sop_instance_uid": _named_uid(f"map of {whole} {method}"),
            "instance_number": 1,
        }
        with _carried_over():
            dimensions = _named_uid(f"dimensions of {whole}")
            made[f"map_{method}"] = _map_of(ordered, method, instance, dimensions)
        dates = [scored.row["scored_at"] for scored, _ in ordered if scored.row.get("scored_at")]
        _finish(made[f"map_{method}"], source, max(dates, default=None))
    return made


def _along_normal(frame: Frame) -> float:
    """Where a slice lies on the normal of its plane, in mm."""
    orientation = np.array(frame[1].orientation)
    return float(np.cross(orientation[:3], orientation[3:]) @ np.array(frame[1].position))


@contextmanager
def _carried_over() -> Iterator[None]:
    """What the libraries do not take of a header, as a refusal."""
    require("highdicom")
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The message may repeat values of the header: only its kind is reported.
        raise Refused(f"source: its header is not carried over ({type(error).__name__})") from error


def parametric_map(scored: Scored, source: SourceFrame, method: str) -> Dataset:
    """A map at its source's resolution and place, in its own values: float32, one frame."""
    instance = _instance(scored, source, "map", method)
    return _map_of([(scored, source)], method, instance, _uid(scored, source, "dimensions"))


def _map_of(
    frames: Sequence[Frame], method: str, instance: Mapping[str, Any], dimensions: UID
) -> Dataset:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    first, source = frames[0]
    heats = np.stack([_heat(scored, each, method) for scored, each in frames])
    low, high = float(heats.min()), float(heats.max())
    label = METHOD_LABELS.get(method, method)
    names = {scored.row["cam_class"] for scored, _ in frames}
    name = first.row["cam_class"] if len(names) == 1 else "each slice"
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="ACTIVATION",
        lut_explanation=_long_string(f"{label}, class {name}"),
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.ClassActivation,
    )
    width = (high - low) or 1.0  # a flat map; a window of no width is not valid
    window = hd.VOILUTTransformation(
        window_center=low + width / 2,
        window_width=width,
        voi_lut_function="LINEAR_EXACT",  # LINEAR allows no width below 1 (PS3.3, C.11.2.1.2)
    )
    made: Dataset = hd.pm.ParametricMap(
        source_images=list({s.header.SOPInstanceUID: s.header for _, s in frames}.values()),
        pixel_array=heats,
        **instance,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label=method.upper()[:16],
        content_description=_long_string(f"{label} of {name}"),
        content_creator_name=f"{MANUFACTURER}^",  # a name of one part
        image_flavor=hd.pm.ImageFlavorValues.VOLUME,
        pixel_measures=hd.PixelMeasuresSequence(source.spacing, source.thickness),
        plane_orientation=hd.PlaneOrientationSequence("PATIENT", source.orientation),
        plane_positions=[hd.PlanePositionSequence("PATIENT", s.position) for _, s in frames],
        series_description=_described(f"{label} map"),
    )
    _mend_map(made, dimensions)
    return made


def _heat(scored: Scored, source: SourceFrame, method: str) -> NDArray[np.float32]:
    return upsampled(scored.cams[method], (source.gray.shape[0], source.gray.shape[1]))


def _mend_map(made: Dataset, organization: UID) -> None:
    """Take out what highdicom makes up: a UID that differs each time, a distance of one slice."""
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    shared = made.SharedFunctionalGroupsSequence[0]
    if made.NumberOfFrames == 1:
        shared.PixelMeasuresSequence[0].pop("SpacingBetweenSlices", None)


def report(scored: Scored, source: SourceFrame) -> "ComprehensiveSR":
    """The row's figures as a measurement report (PS3.16, TID 1500)."""
    from highdicom.sr import ComprehensiveSR

    evidence = Dataset()
    evidence.update(source.header)
    read = source.header.original_character_set  # of the elements that are still bytes
    evidence.set_original_encoding(None, None, read)
    return ComprehensiveSR(
        evidence=[evidence],
        content=_content(scored, source),
        is_complete=True,
        is_final=False,
        is_verified=False,
        **_instance(scored, source, "report", version=" with regions"),
        series_description=_described("report"),
    )


def capture(scored: Scored, source: SourceFrame) -> Dataset:
    """A picture of scan and maps, for viewers that show nothing else; the disclaimer is in it."""
    import highdicom as hd

    probabilities = dict(zip(scored.class_names, scored.row["probabilities"], strict=True))
    predicted = scored.row["predicted_class"]
    picture = panel(
        source.gray,
        scored.cams,
        predicted=predicted,
        probability=float(probabilities[predicted]),
        layout="compact",
    )
    made: Dataset = hd.sc.SCImage.from_ref_dataset(
        source.header,
        pixel_array=np.ascontiguousarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # highdicom wants one; see below
        **_instance(scored, source, "capture", version="masked" * (source.text == "masked")),
        series_description=_described("overlay"),
    )
    made.PatientOrientation = None  # several pictures in one, with captions
    # Our own text names nobody (PS3.3, C.7.6.1); what the scan shows may.
    made.BurnedInAnnotation = "YES" if source.text == "shown" else "NO"
    made.DerivationDescription = INTENDED_USE
    made.SourceImageSequence = [_reference(source)]
    series = Dataset()
    series.SeriesInstanceUID = source.header.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(source)]
    made.ReferencedSeriesSequence = [series]
    return made


def _reference(source: SourceFrame) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.header.SOPClassUID
    item.ReferencedSOPInstanceUID = source.header.SOPInstanceUID
    if source.is_multiframe:
        item.ReferencedFrameNumber = source.frame + 1
    return item


def _content(scored: Scored, source: SourceFrame) -> "MeasurementReport":
    from highdicom import sr
    from pydicom.sr.codedict import codes

    header = source.header
    frames = [source.frame + 1] if source.is_multiframe else None
    image = sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID, frames)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid(scored, source, "tracking"), identifier="Classification of the slice"
        ),
        finding_type=_class_code(scored.row["predicted_class"]),
        algorithm_id=sr.AlgorithmIdentification(
            name=MANUFACTURER, version=__version__, parameters=[f"bundle {scored.fingerprint}"]
        ),
        measurements=_measurements(scored),
        qualitative_evaluations=_evaluations(scored),
        source_images=[image],
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_named_uid(scored.fingerprint),
        name=f"{MANUFACTURER} {__version__}",
        manufacturer_name=MANUFACTURER,
        model_name=f"bundle {scored.fingerprint}"[:64],
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_code("MRHEAD", "MR of the head"),
        imaging_measurements=[group, *_hottest_cells(scored, source)],
        referenced_images=None,
    )


def _hottest_cells(scored: Scored, source: SourceFrame) -> list[Any]:
    """The hottest cell of each map, as a region of interest of the scan (PS3.16, TID 1410)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    header = source.header
    frames = [source.frame + 1] if source.is_multiframe else None
    image = sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID, frames)
    found = []
    for method, cam in scored.cams.items():
        if np.ptp(np.asarray(cam, np.float32)) == 0:
            continue  # a flat map has no hottest cell
        label = METHOD_LABELS.get(method, method)
        hottest = sr.Measurement(codes.DCM.ClassActivation, float(np.max(cam)), codes.UCUM.NoUnits)
        found.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(
                    uid=_uid(scored, source, f"tracking {method}"),
                    identifier=f"Hottest cell, {label}",
                ),
                referenced_region=sr.ImageRegion("POLYLINE", _hottest_box(cam, source), image),
                finding_type=_class_code(scored.row["cam_class"]),
                measurements=[hottest],
            )
        )
    return found


def _hottest_box(cam: NDArray[Any], source: SourceFrame) -> NDArray[np.float64]:
    """Corners (column, row) of the hottest cell, closed; 0 is the edge of the first pixel."""
    row, column = np.unravel_index(int(np.argmax(cam)), cam.shape)
    size = np.array(source.gray.shape[::-1]) / np.array(cam.shape[::-1])
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    return np.asarray((corners + np.array([column, row])) * size, np.float64)


def _measurements(scored: Scored) -> list[Any]:
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    unit = codes.UCUM.NoUnits
    found = [
        Measurement(_class_code(name, "Probability of "), float(value), unit)
        for name, value in zip(scored.class_names, scored.row["probabilities"], strict=True)
    ]
    if scored.row.get("entropy") is not None:
        entropy = _code("ENTROPY", "Uncertainty: normalized entropy, 0 to 1")
        found.append(Measurement(entropy, float(scored.row["entropy"]), unit))
    return found


def _evaluations(scored: Scored) -> list[Any]:
    from highdicom.sr import QualitativeEvaluation

    row = scored.row
    found = [
        (_code("USE", "Intended use"), _code("RESEARCH", INTENDED_USE)),
        (_code("CLASS", "Likeliest class"), _class_code(row["predicted_class"])),
    ]
    for column, code, meaning in (
        ("decision", "DECISION", "Decision: tumor"),
        ("out_of_domain", "DOMAIN", "Out of domain: unlike the training scans"),
    ):
        if row.get(column) is not None:
            found.append((_code(code, meaning), _yes_or_no(row[column])))
    if row.get("prediction_set") is not None:
        name = _code("SET", "Member of the prediction set")
        members = [_class_code(each) for each in row["prediction_set"]]
        found += [(name, each) for each in members or [_code("NONE", "No class")]]
    return [QualitativeEvaluation(name, value) for name, value in found]


def _yes_or_no(value: bool) -> Any:  # noqa: ANN401 - pydicom's code
    from pydicom.sr.codedict import codes

    return codes.SCT.Yes if value else codes.SCT.No


def _class_code(name: str, prefix: str = "") -> "CodedConcept":
    """The code of a class or of its probability; a bundle names classes as it likes."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12].upper()
    return _code(f"{'P' if prefix else 'C'}{digest}", _long_string(f"{prefix}{name}"))


def _long_string(text: str) -> str:
    """Text as a value of VR LO: 64 characters, none of control (PS3.5, 6.2).

    A backslash separates values and has no escape; a slash takes its place. Codes of classes are
    by the true name, so that no two become one.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.replace("\\", "/"))[:64]


def _code(value: str, meaning: str) -> "CodedConcept":
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, meaning)


def _instance(
    scored: Scored, source: SourceFrame, kind: str, method: str = "", version: str = ""
) -> dict[str, Any]:
    """Who made an object, and its UIDs and numbers: a series per source series, kind and bundle.

    Another `version` of the content of an object has another UID.
    """
    series = f"{source.header.SeriesInstanceUID} {kind} {method} {scored.fingerprint}"
    number = _SERIES_NUMBERS[kind] + (sorted(scored.cams).index(method) if method else 0)
    made = {
        "series_instance_uid": _named_uid(series),
        "series_number": number,
        "sop_instance_uid": _uid(scored, source, f"{kind} {method}{version}"),
        "instance_number": int(source.header.get("InstanceNumber") or 1) + source.frame,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": __version__,
        "device_serial_number": scored.fingerprint,
    }
    return made


def _uid(scored: Scored, source: SourceFrame, kind: str) -> UID:
    return _named_uid(f"{source.header.SOPInstanceUID} {source.frame} {scored.digest} {kind}")


def _named_uid(name: str) -> UID:
    """A UID by name (PS3.5, B.2)."""
    return UID(f"2.25.{uuid.uuid5(_NAMES, name).int}")


def _described(what: str) -> str:
    return f"{what} - research, not for diagnosis"[:64]


def _finished(made: dict[str, Dataset], scored: Scored, source: SourceFrame) -> dict[str, Dataset]:
    for each in made.values():
        _finish(each, source, scored.row.get("scored_at"))
    return made


def _finish(made: Dataset, source: SourceFrame, scored_at: datetime | None) -> None:
    """Set the body part, and the dates: highdicom takes the present, which differs each time."""
    if made.Modality != "SR":  # an unpaired part: else Laterality is missing
        made.BodyPartExamined = source.header.get("BodyPartExamined") or "HEAD"
    if scored_at is None:
        return
    date, time = scored_at.strftime("%Y%m%d"), scored_at.strftime("%H%M%S.%f")
    for kind in ("Series", "Content", "InstanceCreation"):
        if f"{kind}Date" in made:
            setattr(made, f"{kind}Date", date)
            setattr(made, f"{kind}Time", time)
    if "DateOfSecondaryCapture" in made:
        made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = date, time
    for item in made.get("ContributingEquipmentSequence") or ():
        item.ContributionDateTime = date + time
