"""Phantom data: same seed, same bytes; exact masks; patients on one side; bad files truly bad."""

import csv
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from braintumor_ray.cli.data import phantom_catalog
from braintumor_ray.errors import UsageError
from braintumor_ray.phantom.dataset import CLASS_NAMES, patient_slices, write_phantoms
from braintumor_ray.phantom.planted import oversized_png
from braintumor_ray.phantom.slices import draw_slice

TUMORS = [name for name in CLASS_NAMES if name != "no_tumor"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Forty patients, the default, written once."""
    folder = tmp_path_factory.mktemp("phantom") / "set"
    return folder, write_phantoms(folder, seed=3)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def all_bytes(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def drawn(class_name, numbers=range(8), level=0.5):
    return [draw_slice((9, number), class_name, level) for number in numbers]


def head_axes(part):
    """Center and long axis (unit vector) of a slice's brain, and its half width, in pixels."""
    points = np.argwhere(part.brain_mask).astype(float)
    center = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - center).T))
    return center, vectors[:, 1], 2 * np.sqrt(values[0])


# determinism


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_phantoms(tmp_path / name, patients=5, seed=4, slices=(1, 2))
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_another_seed_writes_other_scans(tmp_path):
    for seed in (0, 1):
        write_phantoms(tmp_path / str(seed), patients=4, seed=seed, slices=(1, 1), bad_files=False)
    one, two = all_bytes(tmp_path / "0" / "masks"), all_bytes(tmp_path / "1" / "masks")
    assert not set(one.values()) & set(two.values())


def test_a_patient_does_not_depend_on_how_many_there_are(tmp_path):
    for patients in (5, 9):
        write_phantoms(tmp_path / str(patients), patients=patients, slices=(1, 2))
    few, many = all_bytes(tmp_path / "5"), all_bytes(tmp_path / "9")
    own = [path for path in few if "/p000" in path]
    assert len(own) >= 15
    assert all(few[path] == many[path] for path in own)


def test_slices_of_one_patient_are_alike_and_not_equal():
    for number in range(4):
        parts = patient_slices(number, slices=(5, 5))
        assert len({part.image.tobytes() for part in parts}) == 5
        assert len({part.image.shape for part in parts}) == 1
        overlap = parts[1].brain_mask & parts[2].brain_mask
        assert overlap.sum() > 0.9 * parts[1].brain_mask.sum()


# anatomy and masks


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_images_are_gray_of_varied_size(class_name):
    parts = drawn(class_name, range(12))
    assert all(part.image.dtype == np.uint8 and part.image.ndim == 2 for part in parts)
    sides = [side for part in parts for side in part.image.shape]
    assert min(sides) >= 180
    assert max(sides) <= 320
    assert len({part.image.shape for part in parts}) > 6
    assert any(part.image.shape[0] != part.image.shape[1] for part in parts)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("class_name", TUMORS)
def test_every_slice_of_a_tumor_patient_shows_the_tumor_inside_the_head(class_name, level):
    for part in drawn(class_name, level=level):
        assert part.tumor_mask.sum() > 20
        assert not (part.tumor_mask & part.skull_mask).any()
        head, _ = cv2.findContours(
            part.skull_mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        filled = cv2.drawContours(np.zeros(part.image.shape, np.uint8), head, -1, 1, -1)
        assert filled[part.tumor_mask].all()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_no_tumor_is_marked_where_there_is_none(level):
    assert not any(part.tumor_mask.any() for part in drawn("no_tumor", level=level))


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_the_skull_is_one_closed_ring_around_the_brain_within_the_picture(class_name):
    for part in drawn(class_name):
        ring = part.skull_mask.astype(np.uint8)
        assert not (part.skull_mask & part.brain_mask).any()
        assert cv2.connectedComponents(ring)[0] == 2
        outside, labels = cv2.connectedComponents(1 - ring, connectivity=4)
        assert outside == 3  # nothing, ring, air around it and what it encloses
        assert len(np.unique(labels[part.brain_mask])) == 1
        assert labels[part.brain_mask][0] != labels[0, 0]
        border = np.concatenate([ring[0], ring[-1], ring[:, 0], ring[:, -1]])
        assert not border.any()


def test_the_air_around_the_head_is_dark_and_the_scalp_is_not():
    for part in drawn("no_tumor"):
        air = ~(part.skull_mask | cv2.dilate(part.brain_mask.astype(np.uint8), None).astype(bool))
        corner = part.image[:12, :12]
        assert not part.skull_mask[:12, :12].any()
        assert corner.mean() < 0.3 * part.image[part.brain_mask].mean()
        assert air.any()


def test_a_meningioma_lies_on_the_dura_with_a_broad_base():
    for part in drawn("meningioma_tumor", range(16)):
        bone = cv2.dilate(part.skull_mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        base = (part.tumor_mask & bone).sum()
        assert base > 0.5 * np.sqrt(part.tumor_mask.sum())


def test_a_glioma_lies_within_the_brain():
    shares = [
        (part.tumor_mask & part.brain_mask).sum() / part.tumor_mask.sum()
        for part in drawn("glioma_tumor", range(16))
    ]
    assert min(shares) > 0.9
    assert np.median(shares) == 1


def test_a_pituitary_tumor_is_small_round_and_on_the_midline():
    for part in drawn("pituitary_tumor", range(16)):
        center, axis, half_width = head_axes(part)
        points = np.argwhere(part.tumor_mask)
        offset = points.mean(axis=0) - center
        across = abs(offset[0] * axis[1] - offset[1] * axis[0])
        assert across < 0.12 * half_width
        assert np.hypot(*offset) < 0.6 * half_width
        assert 0.005 < len(points) / part.brain_mask.sum() < 0.08
        spread = np.linalg.eigvalsh(np.cov(points.T))
        assert spread[0] / spread[1] > 0.5


def test_a_lesion_is_largest_in_the_middle_of_its_levels():
    for class_name in TUMORS:
        areas = [
            sum(part.tumor_mask.sum() for part in drawn(class_name, level=level))
            for level in (0.0, 0.5, 1.0)
        ]
        assert areas[1] > 1.2 * max(areas[0], areas[2])


@pytest.mark.parametrize("class_name", TUMORS)
def test_a_tumor_can_be_seen_against_the_brain(class_name):
    differences = []
    for part in drawn(class_name, range(16)):
        brain = part.image[part.brain_mask & ~part.tumor_mask].astype(float)
        lesion = part.image[part.tumor_mask].astype(float)
        differences.append(abs(np.percentile(lesion, 90) - np.median(brain)) / np.median(brain))
    assert np.median(differences) > 0.25
    assert min(differences) < 0.5 * max(differences)  # some are faint, some are plain


# the data set


def test_classes_are_even_and_a_fifth_of_the_patients_is_in_testing(written):
    folder, summary = written
    rows = rows_of(folder / "scans.csv")
    patients = {(row["patient_id"], row["label"], row["split"]) for row in rows}
    for label in CLASS_NAMES:
        assert len([1 for _, of, split in patients if of == label and split == "Testing"]) == 2
        assert len([1 for _, of, split in patients if of == label and split == "Training"]) == 8
    assert summary.scans == len(rows) == summary.training + summary.testing
    assert 110 <= len(rows) <= 170
    assert sum(summary.scans_per_class.values()) == len(rows)


def test_even_eight_patients_put_each_class_on_both_sides(tmp_path):
    write_phantoms(tmp_path, patients=8, slices=(1, 1), bad_files=False, duplicates=False)
    sides = {(row["label"], row["split"]) for row in rows_of(tmp_path / "scans.csv")}
    assert len(sides) == 8


def test_no_patient_is_in_both_splits(written):
    folder, _ = written
    rows = rows_of(folder / "scans.csv")
    sides = {}
    for row in rows:
        sides.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(sides) == 40
    assert all(len(side) == 1 for side in sides.values())
    counts = [sum(row["patient_id"] == patient for row in rows) for patient in sides]
    assert min(counts) >= 2
    assert max(counts) <= 5


def test_the_table_says_what_lies_in_the_folders(written):
    folder, _ = written
    for row in rows_of(folder / "scans.csv"):
        assert row["path"].startswith(f"{row['split']}/{row['label']}/{row['patient_id']}_s")
        with Image.open(folder / "scans" / row["path"]) as image:
            assert image.size == (int(row["width"]), int(row["height"]))
    listed = {row["path"] for row in rows_of(folder / "scans.csv")}
    planted = {row["path"] for row in rows_of(folder / "planted.csv")}
    found = set(all_bytes(folder / "scans"))
    assert found == listed | planted
    assert not listed & planted


def test_masks_lie_outside_the_scans_and_match_them(written):
    folder, _ = written
    for row in rows_of(folder / "scans.csv"):
        stem = Path(row["path"]).with_suffix(".png")
        tumor = cv2.imread(str(folder / "masks" / "tumour" / stem), cv2.IMREAD_UNCHANGED)
        skull = cv2.imread(str(folder / "masks" / "skull" / stem), cv2.IMREAD_UNCHANGED)
        assert tumor.shape == skull.shape == (int(row["height"]), int(row["width"]))
        assert tumor.any() == (row["label"] != "no_tumor")
        assert set(np.unique(skull)) == {0, 255}


def test_formats_and_modes_are_mixed_in_every_class(written):
    folder, _ = written
    modes = set()
    for label in CLASS_NAMES:
        paths = [row["path"] for row in rows_of(folder / "scans.csv") if row["label"] == label]
        assert {Path(path).suffix for path in paths} == {".jpg", ".png"}
        modes |= {Image.open(folder / "scans" / path).mode for path in paths}
    assert modes == {"L", "RGB"}


def test_it_says_that_the_images_are_synthetic(written):
    folder, _ = written
    assert "SYNTHETIC" in (folder / "README.txt").read_text(encoding="utf-8")


def test_progress_is_told_after_every_patient(tmp_path):
    told = []
    write_phantoms(
        tmp_path, patients=4, slices=(1, 1), progress=lambda done, all_: told.append((done, all_))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# planted files


def planted_path(written, kind):
    folder, _ = written
    row = next(row for row in rows_of(folder / "planted.csv") if row["kind"] == kind)
    return folder / "scans" / row["path"]


@pytest.mark.parametrize("kind", ["corrupt", "truncated", "empty", "text", "oversized"])
def test_pillow_refuses_every_planted_bad_file(written, kind):
    path = planted_path(written, kind)
    with pytest.raises((OSError, Image.DecompressionBombError)), Image.open(path) as image:
        image.load()


@pytest.mark.parametrize("kind", ["corrupt", "empty", "text"])
def test_opencv_reads_no_pixel_of_unreadable_files(written, kind):
    assert cv2.imread(str(planted_path(written, kind))) is None


def test_the_oversized_file_is_small_and_claims_gigapixels(written):
    content = planted_path(written, "oversized").read_bytes()
    assert len(content) < 500_000
    assert int.from_bytes(content[16:20], "big") == 60_000
    assert int.from_bytes(content[20:24], "big") == 60_000


def test_the_oversized_file_is_a_whole_png(tmp_path):
    path = tmp_path / "small.png"
    path.write_bytes(oversized_png(2_500))
    with Image.open(path) as image:
        assert image.size == (2_500, 2_500)
        assert image.getextrema() == (0, 0)
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    assert len(zlib.decompress(data[start : start + length])) == 2_500 * 314  # Adler-32 is checked


def test_one_copy_has_the_same_bytes_and_one_only_the_same_picture(written):
    folder, _ = written
    rows = {row["kind"]: row for row in rows_of(folder / "planted.csv")}
    scans = folder / "scans"
    same, changed = rows["duplicate-bytes"], rows["duplicate-reencoded"]
    for row in (same, changed):
        assert row["path"].startswith("Testing/")
        assert row["source"].startswith("Training/")
    assert (scans / same["path"]).read_bytes() == (scans / same["source"]).read_bytes()
    copy = cv2.imread(str(scans / changed["path"]), cv2.IMREAD_GRAYSCALE).astype(float)
    original = cv2.imread(str(scans / changed["source"]), cv2.IMREAD_GRAYSCALE).astype(float)
    assert 0 < np.abs(copy - original).mean() < 4


def test_nothing_is_planted_when_not_asked_for(tmp_path):
    summary = write_phantoms(tmp_path, patients=4, slices=(1, 1), bad_files=False, duplicates=False)
    assert summary.planted == ()
    assert rows_of(tmp_path / "planted.csv") == []
    assert len(all_bytes(tmp_path / "scans")) == 4


# arguments


@pytest.mark.parametrize(
    "wrong", [{"patients": 3}, {"seed": -1}, {"slices": (0, 2)}, {"slices": (3, 2)}]
)
def test_arguments_that_cannot_be_meant_are_refused_before_writing(tmp_path, wrong):
    with pytest.raises(UsageError, match="give"):
        write_phantoms(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


def test_an_interrupted_attempt_is_not_taken_for_a_data_set_and_is_begun_again(tmp_path):
    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "one", patients=8, slices=(1, 2), progress=interrupt)
    assert len(phantom_catalog(tmp_path / "one", 4)) == len(phantom_catalog(tmp_path / "two", 4))
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_scans_of_somebody_else_are_no_interrupted_attempt(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "mine.png").touch()
    with pytest.raises(UsageError, match="already holds scans"):
        write_phantoms(tmp_path)
    assert (tmp_path / "scans" / "mine.png").exists()


def test_a_folder_that_holds_scans_is_left_alone(tmp_path):
    write_phantoms(tmp_path, patients=4, slices=(1, 1))
    before = all_bytes(tmp_path)
    with pytest.raises(UsageError, match="already holds scans"):
        write_phantoms(tmp_path, patients=4, seed=1)
    assert all_bytes(tmp_path) == before


def test_an_unknown_class_or_level_is_named():
    with pytest.raises(UsageError, match=r"'glioma'.*glioma_tumor"):
        draw_slice(0, "glioma", 0.5)
    with pytest.raises(UsageError, match=r"level 1\.5"):
        draw_slice(0, "no_tumor", 1.5)
