"""The audit finds what was planted, and nothing else."""

import json
import re
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from braintumor_ray.audit.audit import audit_scans, combine, copy_keys, run_audit
from braintumor_ray.audit.fingerprints import (
    FINGERPRINT_SCHEMA,
    FingerprintStage,
    fingerprint_catalog,
)
from braintumor_ray.audit.shortcuts import MAX_ROWS, shortcut_scores, usable_rows
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.errors import CatalogError, UsageError
from tests.builders import write_archive


@pytest.fixture(scope="module")
def audited(fingerprinted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return run_audit([("phantoms", fingerprinted)], folder), folder


def test_planted_copies_in_the_test_split_are_found(audited):
    audit, _ = audited
    assert audit["cross_split"] == {
        "byte_identical": 1,
        "pixel_identical": 1,
        "near_identical": 2,
    }
    assert audit["surplus"]["byte_identical"] == 1


def test_every_unreadable_file_is_counted_with_its_reason(audited):
    audit, _ = audited
    assert audit["unreadable"]["quarantined"] == 5
    assert sum(audit["unreadable"]["by_reason"].values()) == 5
    assert audit["readable"] == audit["rows"] - 5


def test_patients_on_one_side_only_are_not_reported(audited):
    audit, _ = audited
    assert audit["patients"]["known"] == 20
    assert audit["patients"]["across_splits"] == 0


def test_the_file_holds_what_was_returned(audited):
    audit, folder = audited
    assert json.loads((folder / "audit.json").read_text()) == audit


def test_the_page_needs_no_network_and_shows_the_planted_pairs(audited):
    _, folder = audited
    page = (folder / "audit.html").read_text()
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "<script" not in page
    assert len(re.findall(r"data:image/jpeg;base64,", page)) >= 2
    assert "copy_" in page
    assert (folder / "pairs.png").stat().st_size > 0


def test_the_page_counts_groups_that_have_copies_and_names_frames_and_missing_labels(tmp_path):
    pictures = [Image.open(path) for path in write_archive(tmp_path / "archive", 8)]
    stack = tmp_path / "archive" / "stack.tif"
    pictures[0].save(stack, save_all=True, append_images=[pictures[1]])
    audit = run_audit([("a", load_catalog(tmp_path / "archive"))], tmp_path, shortcuts=False)
    page = (tmp_path / "audit.html").read_text()
    assert (audit["groups"]["count"], audit["groups"]["with_copies"]) == (8, 2)
    assert "of 2 groups of copies" in page
    assert "stack.tif, frame 1" in page
    assert "None" not in page


def test_a_patient_on_both_sides_is_reported(fingerprinted):
    split = ["train" if i % 2 else "test" for i in range(fingerprinted.num_rows)]
    scans = combine([("a", fingerprinted.append_column("split", pa.array(split)))])
    audit = audit_scans(scans, copy_keys(scans), shortcuts=False)
    assert audit["patients"]["across_splits"] == 20


def test_a_study_on_both_sides_is_a_patient_on_both_sides(fingerprinted):
    split = ["train" if i % 2 else "test" for i in range(fingerprinted.num_rows)]
    scans = combine([("a", fingerprinted.append_column("split", pa.array(split)))])
    index = scans.schema.get_field_index
    patients, none = scans["patient_key"], pa.nulls(scans.num_rows, pa.string())
    scans = scans.set_column(index("study_key"), "study_key", patients)
    scans = scans.set_column(index("patient_key"), "patient_key", none)
    audit = audit_scans(scans, copy_keys(scans), shortcuts=False)
    assert (audit["patients"]["known"], audit["patients"]["across_splits"]) == (0, 20)


def test_one_image_under_two_labels_is_a_conflict(fingerprinted):
    labels = fingerprinted["label"].to_pylist()
    copy = next(i for i, p in enumerate(fingerprinted["path"].to_pylist()) if "copy_" in p)
    labels[copy] = "something_else"
    index = fingerprinted.schema.get_field_index("label")
    scans = combine([("a", fingerprinted.set_column(index, "label", pa.array(labels)))])
    groups = audit_scans(scans, copy_keys(scans), shortcuts=False)["groups"]
    assert groups["conflicting_labels"] == 1


def test_copies_between_data_sets_are_counted_whatever_they_call_their_classes(
    fingerprinted, tmp_path
):
    readable = fingerprinted.filter(
        pa.array(s == "ok" for s in fingerprinted["status"].to_pylist())
    )
    other = readable.slice(0, 3)
    index = other.schema.get_field_index("label")
    other = other.set_column(index, "label", pa.array(["yes"] * 3))
    scans = combine([("a", readable), ("b", other)])
    audit = audit_scans(scans, copy_keys(scans), shortcuts=False)
    assert audit["between_datasets"][0]["pixel_identical"] == 3
    assert audit["groups"]["conflicting_labels"] == 0


def test_two_files_of_one_name_in_different_formats_share_pixels_not_bytes(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)
    for path in ("train/a/x.png", "test/a/x.bmp"):
        (tmp_path / path).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / path), image)
    audit = run_audit([("a", load_catalog(tmp_path))], tmp_path / "out", workers=1)
    assert audit["cross_split"]["pixel_identical"] == 1
    assert audit["cross_split"]["byte_identical"] == 0


def test_a_stage_keeps_rows_in_order_and_can_be_used_again(phantoms):
    stage = FingerprintStage()
    try:
        first, second = stage(phantoms.slice(0, 5)), stage(phantoms.slice(5, 5))
    finally:
        stage.close()
    assert pa.concat_tables([first, second])["path"].equals(phantoms["path"].slice(0, 10))
    assert set(FINGERPRINT_SCHEMA.names) <= set(first.column_names)


def test_several_workers_give_what_one_gives(phantoms, fingerprinted):
    assert fingerprint_catalog(phantoms, workers=3).equals(fingerprinted)


def test_a_deleted_file_is_counted_not_fatal(phantoms, tmp_path):
    uri = phantoms["uri"][0].as_py().removeprefix("file://")
    shutil.copy(uri, tmp_path / "a.jpg")
    catalog = load_catalog(tmp_path)
    (tmp_path / "a.jpg").unlink()
    audit = run_audit([("a", catalog)], tmp_path / "out", workers=1)
    assert "file not found" in next(iter(audit["unreadable"]["by_reason"]))


def test_an_empty_catalog_and_two_of_one_name_are_refused(phantoms, tmp_path):
    with pytest.raises(CatalogError, match="no rows"):
        run_audit([("a", phantoms.slice(0, 0))], tmp_path)
    with pytest.raises(UsageError, match="its own name"):
        run_audit([("a", phantoms), ("a", phantoms)], tmp_path)


def _scans(n, heights, labels):
    """Fingerprints of n scans that differ in height alone."""
    constant = {name: [1.0] * n for name in ("border_mean", "border_black", "jpeg_luma")}
    return pa.table(
        {
            **constant,
            "label": labels,
            "status": ["ok"] * n,
            "dataset": ["a"] * n,
            "decoded_height": heights,
            "decoded_width": [100] * n,
            "decoded_mode": ["L"] * n,
            "decoded_format": ["png"] * n,
            "n_bytes": np.array(heights) * 100,
            "margin_vertical": [0.0] * n,
            "margin_horizontal": [0.0] * n,
            "jpeg_chroma": [0.0] * n,
            "jpeg_progressive": [False] * n,
        }
    )


def test_a_class_with_a_size_of_its_own_is_a_shortcut():
    rng = np.random.default_rng(0)
    labels = ["tumor", "none"] * 100
    heights = [rng.integers(100, 200) + (80 if name == "tumor" else 0) for name in labels]
    scores = shortcut_scores(_scans(200, heights, labels), np.arange(200))
    assert scores["features"]["size"]["notable"]
    assert scores["features"]["size"]["balanced_accuracy"] > 0.7
    assert scores["features"]["mode"]["constant"]
    assert scores["baseline"]["balanced_accuracy"] == 0.5


def test_sizes_that_have_nothing_to_do_with_the_class_are_none():
    rng = np.random.default_rng(0)
    heights = rng.integers(100, 200, 200).tolist()
    scores = shortcut_scores(_scans(200, heights, ["tumor", "none"] * 100), np.arange(200))
    assert not scores["features"]["size"]["notable"]


def test_a_group_that_is_too_large_leaves_room_for_the_others():
    sizes = [MAX_ROWS + 1, *[1] * 300]
    groups = np.repeat(np.arange(301), sizes)
    labels = np.where(groups % 2, "tumor", "none").tolist()
    scans = pa.table({"label": labels, "status": ["ok"] * len(labels)})
    assert groups[usable_rows(scans, groups, MAX_ROWS)].tolist() == list(range(1, 301))


def test_copies_do_not_help_the_shortcut_classifier():
    # Each size occurs in two copies of one label: memorizing would be perfect, across groups not.
    rng = np.random.default_rng(0)
    heights = np.repeat(rng.permutation(1000)[:150], 2).tolist()
    labels = np.repeat(rng.choice(["tumor", "none"], 150), 2).tolist()
    scans = _scans(300, heights, labels)
    together = shortcut_scores(scans, np.repeat(np.arange(150), 2))["features"]["size"]
    apart = shortcut_scores(scans, np.arange(300))["features"]["size"]
    assert not together["notable"]
    assert apart["balanced_accuracy"] > together["balanced_accuracy"] + 0.1


def test_too_few_groups_are_said_not_guessed():
    scores = shortcut_scores(_scans(6, [1, 2, 3, 4, 5, 6], list("aaabbb")), np.arange(6))
    assert scores["features"] == {}
    assert "fewer than two classes" in scores["note"]


@pytest.mark.real
@pytest.mark.slow
def test_the_public_set_leaks_as_was_counted(real_data, tmp_path):
    audit = run_audit(
        [("mri4", load_catalog(real_data / "mri4"))], tmp_path, shortcuts=False, burned_in=False
    )
    assert audit["cross_split"]["pixel_identical"] == 206
    assert audit["cross_split"]["byte_identical"] == 72
    assert audit["surplus"]["pixel_identical"] == 325
    assert audit["surplus"]["byte_identical"] == 196
    assert audit["groups"]["conflicting_labels"] == 2


@pytest.mark.real
@pytest.mark.slow
def test_planted_copies_of_real_scans_are_found(real_data, tmp_path):
    originals, planted = tmp_path / "data" / "originals", tmp_path / "data" / "planted"
    originals.mkdir(parents=True)
    planted.mkdir()
    every = sorted((real_data / "mri4" / "Training").glob("*/*.jpg"))
    rng = np.random.default_rng(0)
    for number, index in enumerate(rng.permutation(len(every))[:600]):
        shutil.copy(every[index], originals / f"{number:04d}.jpg")
        if number < 200:
            _write_changed(every[index], planted / f"{number:04d}.jpg", rng, number % 3)
    scans = combine([("a", fingerprint_catalog(load_catalog(tmp_path / "data"), text=False))])
    groups = copy_keys(scans).near_identical
    by_path = dict(zip(scans["path"].to_pylist(), groups.tolist(), strict=True))
    found = [
        by_path[f"planted/{n:04d}.jpg"] == by_path[f"originals/{n:04d}.jpg"] for n in range(200)
    ]
    assert sum(found) >= 190
    alone = scans.filter(pa.array(path.startswith("originals") for path in by_path))
    without = len(set(copy_keys(alone).near_identical.tolist()))
    together = len({by_path[path] for path in by_path if path.startswith("originals")})
    assert without - together <= 2  # groups of originals joined by a planted copy: false joins
    print(f"found {sum(found)} of 200, false joins {without - together}")


def _write_changed(source, target, rng, kind):
    """Kind 0: compressed again, 1: resized, 2: brightened."""
    image = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
    quality = 92
    if kind == 0:
        quality = int(rng.integers(40, 85))
    elif kind == 1:
        image = cv2.resize(image, None, fx=(s := rng.uniform(0.5, 1.5)), fy=s)
    else:
        image = np.clip(image * rng.uniform(1.05, 1.3) + rng.uniform(0, 20), 0, 255).astype(
            np.uint8
        )
    cv2.imwrite(str(target), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
