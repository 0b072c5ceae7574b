"""`publish --map-per series`: one map of a series, with a frame for each of its slices."""

import signal
import subprocess
import sys

import numpy as np
import pydicom
import pytest

from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.explain.overlay import upsampled
from braintumor_ray.predict.results import read_results
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from tests.evaluation.make_results import add_generation
from tests.publishing.dicomweb import Store, serving
from tests.publishing.scans import (
    ORIENTATIONS,
    SHAPE,
    enhanced_dataset,
    scan_dataset,
    scored,
    uid,
    write,
)
from tests.publishing.test_publish import archive_table, published

SLICES = 4


@pytest.fixture
def archive(tmp_path):
    """Two series; the slices of one are written from the last to the first."""
    for name in ("sagittal", "oblique"):
        for number in range(SLICES):
            at = number if name == "sagittal" else SLICES - 1 - number
            dataset = scan_dataset(at, ORIENTATIONS[name])
            dataset.SOPInstanceUID = uid(name, at)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            write(tmp_path / "archive", f"{name}{number}.dcm", dataset)
    return tmp_path / "archive"


@pytest.fixture
def results(tmp_path, archive):
    return scored(tmp_path / "results", archive)


def maps(folder, method="gradcam"):
    return [pydicom.dcmread(path) for path in sorted(folder.rglob(f"map_{method}.dcm"))]


def frames(made):
    """Position, referenced object and pixels of each frame of a map."""
    values = made.pixel_array.reshape(-1, made.Rows, made.Columns)
    groups = made.PerFrameFunctionalGroupsSequence
    for group, heat in zip(groups, values, strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        yield group.PlanePositionSequence[0].ImagePositionPatient, source, heat


def cams(results):
    """Maps by the SOP Instance UID of their scan and the frame."""
    rows = read_results(results).to_pylist()
    uids = {row["uri"]: pydicom.dcmread(row["uri"]).SOPInstanceUID for row in rows}
    return {
        (uids[row["uri"]], row["frame"]): np.asarray(row["gradcam"], np.float16).reshape(7, 7)
        for row in rows
    }


def test_each_slice_is_a_frame_at_its_place_with_its_own_values(tmp_path, archive, results):
    found = published(results, archive, tmp_path / "out", map_per="series")
    assert found["scans"] == 2 * SLICES
    assert found["objects"] == 2 * 2 + 2 * SLICES * 2  # maps; reports and captures
    stored, seen = cams(results), set()
    sources = map(pydicom.dcmread, archive.glob("*.dcm"))
    places = {s.SOPInstanceUID: np.array(s.ImagePositionPatient, float) for s in sources}
    for made in maps(tmp_path / "out"):
        assert made.NumberOfFrames == SLICES
        (series,) = made.ReferencedSeriesSequence
        assert len(series.ReferencedInstanceSequence) == SLICES
        for position, reference, heat in frames(made):
            name = reference.ReferencedSOPInstanceUID
            np.testing.assert_allclose(np.array(position, float), places[name], atol=1e-4)
            np.testing.assert_array_equal(heat, upsampled(stored[name, 0], SHAPE))
            seen.add(name)
    assert len(seen) == 2 * SLICES


def test_frames_of_an_enhanced_object_are_frames_of_its_map(tmp_path):
    write(tmp_path / "archive", "enhanced.dcm", enhanced_dataset(ORIENTATIONS["oblique"]))
    results = scored(tmp_path / "results", tmp_path / "archive")
    published(results, tmp_path / "archive", tmp_path / "out", map_per="series")
    (made,) = maps(tmp_path / "out")
    stored = cams(results)
    for position, reference, heat in frames(made):
        at = reference.ReferencedFrameNumber - 1
        assert float(position[2]) == (7, 12)[at]
        key = (reference.ReferencedSOPInstanceUID, at)
        np.testing.assert_array_equal(heat, upsampled(stored.pop(key), SHAPE))
    assert not stored


def test_published_again_the_maps_are_the_same_to_the_byte(tmp_path, archive, results):
    for name in ("one", "two"):
        published(results, archive, tmp_path / name, map_per="series")
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.dcm")}
        for n in ("one", "two")
    )
    assert one == two


def test_a_slice_that_is_refused_is_left_out_of_the_map(tmp_path, archive, results):
    (archive / "sagittal1.dcm").write_bytes(b"no longer a scan")
    with pytest.raises(PublishError, match="1 scans were not published, 7 were"):
        published(results, archive, tmp_path / "out", map_per="series")
    assert sorted(made.NumberOfFrames for made in maps(tmp_path / "out")) == [3, 4]


def test_slices_of_one_position_are_in_maps_of_their_own(tmp_path):
    for echo in range(2):
        for number in range(SLICES):
            dataset = scan_dataset(number, ORIENTATIONS["axial"])
            dataset.SOPInstanceUID = uid(echo, number)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.PixelData = bytes(v ^ (echo + number) for v in dataset.PixelData)
            write(tmp_path / "archive", f"{echo}{number}.dcm", dataset)
    results = scored(tmp_path / "results", tmp_path / "archive")
    published(results, tmp_path / "archive", tmp_path / "out", map_per="series")
    made = maps(tmp_path / "out")
    assert [each.NumberOfFrames for each in made] == [SLICES, SLICES]
    assert len({each.SeriesInstanceUID for each in made}) == 2


def sent(results, archive, url, **options):
    given = PublishOptions(to=url, map_per="series", **options)
    return publish(str(results), archive_table(archive), given)


def test_a_later_night_adds_a_map_of_its_slices_and_repeats_none(tmp_path, archive, results):
    store = Store()
    with serving(store) as url:
        assert sent(results, archive, url)["scans"] == 2 * SLICES
        first = len(store.arrived)
        assert sent(results, archive, url)["scans"] == 0
        assert len(store.arrived) == first == 4 + 2 * SLICES * 2
        late = scan_dataset(9, ORIENTATIONS["sagittal"])
        write(archive, "zlate.dcm", late)
        every = archive_table(archive)
        is_new = [path == "zlate.dcm" for path in every["path"].to_pylist()]
        add_generation(results, 2, every.filter(is_new))
        again = sent(results, archive, url)
    assert (again["scans"], again["objects"], again["sent_before"]) == (1, 4, 2 * SLICES)
    assert len(set(store.arrived)) == len(store.arrived) == first + 4


@pytest.mark.chaos
def test_a_killed_publish_sends_a_series_again_as_the_same_objects(archive, results):
    store, each = Store(), 2 + 2 * SLICES

    def kill():
        if process:
            process.send_signal(signal.SIGKILL)
            process.wait()

    with serving(store) as url:
        command = [sys.executable, "-m", "braintumor_ray.cli", "publish", str(results)]
        command += ["--source", str(archive), "--to", url, "--senders", "1"]
        process, store.after = None, kill
        process = subprocess.Popen([*command, "--map-per", "series"])
        assert process.wait(timeout=120) == -signal.SIGKILL
        assert len(store.arrived) == each  # the server has a series, and the ledger does not
        process, store.conflict = None, True
        assert sent(results, archive, url)["scans"] == 2 * SLICES
    assert len(set(store.arrived)) == 2 * each
    lines = "\n".join(p.read_text() for p in results.glob("published/*/*")).split("\n")
    assert len({line for line in lines if line}) == 2 * SLICES


def test_maps_per_scan_do_not_count_as_those_of_a_series(archive, results):
    store = Store()
    with serving(store) as url:
        publish(str(results), archive_table(archive), PublishOptions(to=url))
        assert sent(results, archive, url)["scans"] == 2 * SLICES
    reports_and_captures = 2 * SLICES * 2
    assert len(set(store.arrived)) == 2 * SLICES * 4 + 4
    assert len(store.arrived) == len(set(store.arrived)) + reports_and_captures


def test_a_folder_and_a_server_at_once_are_refused(tmp_path, archive, results):
    with pytest.raises(UsageError, match="leave out one of them"):
        sent(results, archive, "http://127.0.0.1:9", output=str(tmp_path / "out"))
