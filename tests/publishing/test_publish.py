"""Results of DICOM scans become DICOM objects that lie where their scans lie."""

import io
import json
import warnings
from datetime import datetime, timezone

import cv2
import highdicom as hd
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from braintumor_ray.audit.fingerprints import fingerprint_file_and_text
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.redaction import UriRedaction, redact_catalog
from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.hashes import pixel_sha256
from braintumor_ray.decode.types import DecodeOptions
from braintumor_ray.errors import CatalogError, PublishError, UsageError
from braintumor_ray.explain.overlay import upsampled
from braintumor_ray.predict.results import read_results
from braintumor_ray.publishing.objects import Scored, derived_objects
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from braintumor_ray.publishing.source import source_of
from tests.builders import write_archive
from tests.publishing.scans import (
    ORIENTATIONS,
    SHAPE,
    enhanced_dataset,
    plant,
    scan_dataset,
    scored,
    uid,
    write,
)

KINDS = {"map_gradcam", "map_gradcam_pp", "report", "capture"}


def archive_table(folder):
    options = CatalogOptions(identity=IdentityHash(b"other"), probe_headers=False)
    return load_catalog(folder, options)


def published(results, archive, output, **options):
    return publish(str(results), archive_table(archive), PublishOptions(str(output), **options))


def objects(output):
    """Every object by its source's SOP Instance UID, frame and kind."""
    found = {}
    for path in output.rglob("*.dcm"):
        found[path.parent.name, path.stem] = pydicom.dcmread(path)
    return found


@pytest.fixture
def archive(tmp_path):
    for number, (name, orientation) in enumerate(ORIENTATIONS.items()):
        write(tmp_path / "archive", f"{name}.dcm", scan_dataset(number, orientation))
    return tmp_path / "archive"


@pytest.fixture
def results(tmp_path, archive):
    return scored(tmp_path / "results", archive)


def rows_by_name(results):
    rows = read_results(results).to_pylist()
    return {f"{row['scan_id'] % 2**64:016x}": row for row in rows}


def test_each_scan_gets_its_objects_with_the_patient_and_references_of_its_source(
    tmp_path, archive, results
):
    found = published(results, archive, tmp_path / "out")
    assert found == {"scans": 3, "objects": 12, "sent_before": 0, "refused": {}}
    made = objects(tmp_path / "out")
    for name, row in rows_by_name(results).items():
        source = pydicom.dcmread(row["uri"])
        for kind in KINDS:
            each = made[name, kind]
            for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID"):
                assert each[keyword].value == source[keyword].value
            assert source.SOPInstanceUID in str(each)
            assert source.SeriesInstanceUID in str(each)
            assert each.SeriesInstanceUID != source.SeriesInstanceUID
            assert each.ContentDate == "20261101"
        assert made[name, "map_gradcam"].FrameOfReferenceUID == source.FrameOfReferenceUID
    assert len({each.SOPInstanceUID for each in made.values()}) == 12


def test_the_frame_of_a_map_is_the_upsampled_map(tmp_path, archive, results):
    published(results, archive, tmp_path / "out")
    for name, row in rows_by_name(results).items():
        for method in ("gradcam", "gradcam_pp"):
            read = hd.imread(tmp_path / "out" / name / f"map_{method}.dcm")
            cam = np.asarray(row[method], np.float16).reshape(7, 7)
            np.testing.assert_array_equal(read.pixel_array.reshape(SHAPE), upsampled(cam, SHAPE))
            np.testing.assert_allclose(
                read.get_frame(1, apply_real_world_transform=True), upsampled(cam, SHAPE)
            )


def hottest(path):
    """Patient coordinates (mm) of the hottest pixel, computed by highdicom from the object."""
    image = hd.imread(path)
    place = np.unravel_index(image.pixel_array.squeeze().argmax(), SHAPE)
    transform = hd.spatial.PixelToReferenceTransformer.for_image(image, frame_number=1)
    return transform(np.array([place[::-1]]))[0]


def place_of_cell(position, orientation, spacing):
    """Patient coordinates (mm) of the middle of the cell (2, 5) of a map of 7 x 7."""
    row, column = (2.5 / 7 * SHAPE[0] - 0.5, 5.5 / 7 * SHAPE[1] - 0.5)
    along_row, along_column = np.array(orientation, float).reshape(2, 3)
    between_rows, between_columns = map(float, spacing)
    place = along_row * column * between_columns + along_column * row * between_rows
    return np.array(position, float) + place


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless])
def test_a_hot_cell_lies_at_its_place_in_the_patient(tmp_path, name, syntax):
    source = scan_dataset(3, ORIENTATIONS[name])
    place = source.ImagePositionPatient, source.ImageOrientationPatient, source.PixelSpacing
    if syntax:
        source.compress(syntax)
    write(tmp_path / "archive", "scan.dcm", source)
    results = scored(tmp_path / "results", tmp_path / "archive")
    plant(results, 2, 5)
    published(results, tmp_path / "archive", tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("map_gradcam.dcm")
    distance = hottest(path) - place_of_cell(*place)
    assert np.linalg.norm(distance) <= 0.6  # within a pixel of 0.9 x 0.7 mm


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_hot_cell_of_each_frame_lies_at_its_place_in_the_patient(tmp_path, name):
    orientation = ORIENTATIONS[name]
    write(tmp_path / "archive", "enhanced.dcm", enhanced_dataset(orientation))
    results = scored(tmp_path / "results", tmp_path / "archive")
    plant(results, 2, 5)
    published(results, tmp_path / "archive", tmp_path / "out")
    for folder, row in rows_by_name(results).items():
        position = (-40, 15, 7 + 5 * row["frame"])
        distance = hottest(tmp_path / "out" / folder / "map_gradcam.dcm") - place_of_cell(
            position, orientation, (0.9, 0.7)
        )
        assert np.linalg.norm(distance) <= 0.6


def test_frames_of_an_enhanced_object_have_maps_at_their_own_places(tmp_path):
    write(tmp_path / "archive", "enhanced.dcm", enhanced_dataset(ORIENTATIONS["oblique"]))
    results = scored(tmp_path / "results", tmp_path / "archive")
    assert published(results, tmp_path / "archive", tmp_path / "out")["objects"] == 8
    for name, row in rows_by_name(results).items():
        made = pydicom.dcmread(tmp_path / "out" / name / "map_gradcam.dcm")
        place = made.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
        assert place.ImagePositionPatient[2] == (7, 12)[row["frame"]]
        derivation = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        assert derivation.SourceImageSequence[0].ReferencedFrameNumber == row["frame"] + 1


def test_published_again_the_objects_are_the_same_to_the_byte(tmp_path, archive, results):
    for name in ("one", "two"):
        published(results, archive, tmp_path / name)
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.dcm")}
        for n in ("one", "two")
    )
    assert one == two


def test_the_report_tells_the_figures_and_what_it_is_not_for(tmp_path, archive, results):
    published(results, archive, tmp_path / "out")
    for name, row in rows_by_name(results).items():
        read = hd.sr.srread(tmp_path / "out" / name / "report.dcm")
        (group,) = read.content.get_image_measurement_groups()
        assert len(read.content.get_planar_roi_measurement_groups()) == 2
        values = {m.name.meaning: m.value for m in group.get_measurements()}
        assert values["Probability of glioma_tumor"] == pytest.approx(row["probabilities"][0])
        told = {e.name.meaning: e.value.meaning for e in group.get_qualitative_evaluations()}
        assert told["Likeliest class"] == row["predicted_class"]
        assert told["Intended use"] == "Research use, not for diagnosis"
        assert told["Decision: tumor"] == ("Yes" if row["decision"] else "No")
        assert "f" * 32 in str(read)
        assert read.VerificationFlag == "UNVERIFIED"


def test_the_report_marks_the_hottest_cell_on_the_scan(tmp_path, archive, results):
    plant(results, 2, 5)
    published(results, archive, tmp_path / "out", limit=1)
    (path,) = (tmp_path / "out").rglob("report.dcm")
    groups = hd.sr.srread(path).content.get_planar_roi_measurement_groups()
    (group,) = [g for g in groups if g.tracking_identifier == "Hottest cell, Grad-CAM"]
    box = group.roi.value  # column, row
    height, width = SHAPE
    np.testing.assert_allclose(box.min(axis=0), [5 / 7 * width, 2 / 7 * height], rtol=1e-6)
    np.testing.assert_allclose(box.max(axis=0), [6 / 7 * width, 3 / 7 * height], rtol=1e-6)
    (measured,) = group.get_measurements()
    assert measured.value == 1
    source = pydicom.dcmread(archive / "axial.dcm")
    referenced = group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert referenced in {source.SOPInstanceUID, *(uid("scan", n) for n in range(3))}


def test_the_scans_of_a_study_are_chosen_by_its_uid_and_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINTUMOR_HASH_KEY", "key")
    for number in range(3):
        study = uid("one" if number else "other")
        dataset = scan_dataset(number, ORIENTATIONS["axial"], StudyInstanceUID=study)
        write(tmp_path / "archive", f"{number}.dcm", dataset)
    results = scored(tmp_path / "results", tmp_path / "archive")
    found = published(results, tmp_path / "archive", tmp_path / "out", study=uid("one"))
    assert found["scans"] == 2
    assert {each.StudyInstanceUID for each in objects(tmp_path / "out").values()} == {uid("one")}
    with pytest.raises(PublishError, match="no predicted DICOM scan of this choice"):
        published(results, tmp_path / "archive", tmp_path / "no", study=uid("third"))
    (results / "hash_key.json").write_text(json.dumps({"check": IdentityHash(b"key").check}))
    monkeypatch.setenv("BRAINTUMOR_HASH_KEY", "another")
    with pytest.raises(CatalogError, match="hashed with another key"):
        published(results, tmp_path / "archive", tmp_path / "no", study=uid("one"))


def test_another_source_is_refused_and_the_others_are_published(tmp_path, archive, results):
    write(archive, "axial.dcm", scan_dataset(9, ORIENTATIONS["axial"]))
    with pytest.raises(PublishError, match=r"1 scans were not published, 2 were: .*hash differs"):
        published(results, archive, tmp_path / "out")
    assert len(objects(tmp_path / "out")) == 8


def test_burned_in_annotation_is_refused_unless_it_is_allowed(tmp_path):
    dataset = scan_dataset(0, ORIENTATIONS["axial"], BurnedInAnnotation="YES")
    write(tmp_path / "archive", "a.dcm", dataset)
    results = scored(tmp_path / "results", tmp_path / "archive")
    with pytest.raises(PublishError, match="burned-in text, by tag 0028,0301"):
        published(results, tmp_path / "archive", tmp_path / "out")
    assert not objects(tmp_path / "out")
    assert published(results, tmp_path / "archive", tmp_path / "out", allow_burned_in=True)


@pytest.mark.parametrize(
    ("characters", "patient"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (None, "Planted^Name"),
    ],
)
def test_letters_of_any_language_are_carried_over(characters, patient):
    tags = {"SpecificCharacterSet": characters} if characters else {}
    scan = as_bytes(scan_dataset(0, ORIENTATIONS["axial"], PatientName=patient, **tags))
    name = "膠腫 (bösartig)"
    for kind, read in objects_of_class(name, scan).items():
        assert (str(read.PatientName), read.SpecificCharacterSet) == (patient, "ISO_IR 192"), kind
        assert name in str(read) or kind == "capture"


def test_a_class_may_have_any_name():
    scan = as_bytes(scan_dataset(0, ORIENTATIONS["axial"]))
    for kind, read in objects_of_class("WHO\\III/IV\n?", scan).items():
        assert "WHO/III/IV ?" in str(read) or kind == "capture"
    assert objects_of_class("n" * 100, scan)


def objects_of_class(name, scan):
    """The objects of a row with a class of this name, as they are read again."""
    row = {
        "frame": 0,
        "pixel_sha256": pixel_sha256(decode(scan).gray),
        "predicted_class": name,
        "cam_class": name,
        "probabilities": [0.75, 0.25],
    }
    scored_row = Scored(row, [name, "no_tumor"], {"gradcam": np.eye(7, dtype=np.float16)}, "f" * 32)
    made = derived_objects(scored_row, source_of(scan, row))
    return {kind: pydicom.dcmread(io.BytesIO(as_bytes(each))) for kind, each in made.items()}


def as_bytes(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_a_scan_without_a_place_in_the_patient_is_refused(tmp_path):
    dataset = scan_dataset(0, ORIENTATIONS["axial"])
    del dataset.ImagePositionPatient
    write(tmp_path / "archive", "a.dcm", dataset)
    results = scored(tmp_path / "results", tmp_path / "archive")
    with pytest.raises(PublishError, match="no ImagePositionPatient"):
        published(results, tmp_path / "archive", tmp_path / "out")


def test_redacted_results_and_other_formats_are_refused(tmp_path, archive, results):
    for path in results.glob("catalogs/*/*.parquet"):
        table = redact_catalog(pq.read_table(path), UriRedaction(b"key"))
        pq.write_table(table, path)
    with pytest.raises(PublishError, match="--redact-uri"):
        published(results, archive, tmp_path / "out")
    write_archive(tmp_path / "png", 2)
    pictures = scored(tmp_path / "pictures", tmp_path / "png")
    with pytest.raises(PublishError, match="no predicted DICOM scan"):
        published(pictures, tmp_path / "png", tmp_path / "out")


def test_rows_are_chosen_by_decision_date_worklist_and_number(tmp_path, archive, results):
    rows = read_results(results).to_pylist()
    positive = sum(row["decision"] for row in rows)
    assert published(results, archive, tmp_path / "a", decision="positive")["scans"] == positive
    assert published(results, archive, tmp_path / "b", limit=2)["scans"] == 2
    wanted = [rows[2], rows[0]]
    lines = ["scan_id,rank", *(f"{row['scan_id']},1" for row in wanted)]
    (tmp_path / "worklist.csv").write_text("\n".join(lines))
    chosen = {"worklist": str(tmp_path / "worklist.csv"), "limit": 1}
    published(results, archive, tmp_path / "c", **chosen)
    assert {n for n, _ in objects(tmp_path / "c")} == {f"{rows[2]['scan_id'] % 2**64:016x}"}
    late = datetime(2026, 11, 2, tzinfo=timezone.utc)
    with pytest.raises(PublishError, match="no predicted DICOM scan"):
        published(results, archive, tmp_path / "d", since=late)
    with pytest.raises(UsageError, match="nowhere to publish"):
        publish(str(results), archive_table(archive), PublishOptions())


def test_no_id_of_the_patient_is_in_names_of_files(tmp_path, archive, results):
    found = published(results, archive, tmp_path / "out")
    names = json.dumps([str(p.relative_to(tmp_path)) for p in (tmp_path / "out").rglob("*")])
    source = pydicom.dcmread(archive / "axial.dcm")
    for secret in ("PLANTED", "Planted", source.StudyInstanceUID, source.SOPInstanceUID):
        assert secret not in names + json.dumps(found)


def test_warnings_of_the_libraries_do_not_name_the_patient(tmp_path, capfd):
    dataset = scan_dataset(0, ORIENTATIONS["axial"], PatientName="Planted_Name")  # one component
    write(tmp_path / "archive", "one.dcm", dataset)
    results = scored(tmp_path / "results", tmp_path / "archive")
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        published(results, tmp_path / "archive", tmp_path / "out")
    assert not [each for each in raised if "Planted" in str(each.message)]
    assert "Planted" not in "".join(capfd.readouterr())


def annotated(number=0, **tags):
    """A scan with a name in its picture, at its foot."""
    dataset = scan_dataset(number, ORIENTATIONS["axial"], **tags)
    picture = dataset.pixel_array.copy()
    text = np.zeros(SHAPE, np.uint8)
    cv2.putText(text, "DOE^JANE 70", (4, SHAPE[0] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.3, 255)
    picture[text > 100] = picture.max()
    dataset.PixelData = picture.tobytes()
    return dataset


@pytest.fixture
def named(tmp_path):
    write(tmp_path / "named", "a.dcm", annotated())
    return tmp_path / "named", scored(tmp_path / "named results", tmp_path / "named")


def test_text_in_a_picture_is_refused_and_can_be_masked_or_allowed(tmp_path, named):
    archive, results = named
    with pytest.raises(PublishError, match=r"burned-in text.*--mask-burned-in"):
        published(results, archive, tmp_path / "refused")
    assert not objects(tmp_path / "refused")
    for way in ("mask_burned_in", "allow_burned_in"):
        published(results, archive, tmp_path / way, **{way: True})
    made = {way: objects(tmp_path / way) for way in ("mask_burned_in", "allow_burned_in")}
    (mask,) = [each for (_, kind), each in made["mask_burned_in"].items() if kind == "capture"]
    (open_,) = [each for (_, kind), each in made["allow_burned_in"].items() if kind == "capture"]
    assert (mask.BurnedInAnnotation, open_.BurnedInAnnotation) == ("NO", "YES")
    assert mask.SOPInstanceUID != open_.SOPInstanceUID
    assert mask.SeriesInstanceUID == open_.SeriesInstanceUID
    changed = np.any(mask.pixel_array != open_.pixel_array, axis=-1)
    assert 0 < changed.mean() < 0.3


def test_our_own_captures_are_excepted_from_the_audit(tmp_path, named):
    archive, results = named
    published(results, archive, tmp_path / "out", allow_burned_in=True)
    (capture,) = (tmp_path / "out").rglob("capture.dcm")
    assert fingerprint_file_and_text(capture.read_bytes(), DecodeOptions())[0]["burned_in"] is None
    source = (archive / "a.dcm").read_bytes()
    assert fingerprint_file_and_text(source, DecodeOptions())[0]["burned_in"] == "picture"
    tagged = scan_dataset(1, ORIENTATIONS["axial"], BurnedInAnnotation="YES")
    write(tmp_path, "tagged.dcm", tagged)
    content = (tmp_path / "tagged.dcm").read_bytes()
    assert fingerprint_file_and_text(content, DecodeOptions())[0]["burned_in"] == "tag"
