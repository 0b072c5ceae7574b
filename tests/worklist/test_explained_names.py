"""Names of the pictures that `explain` writes."""

import shutil
from pathlib import Path

import pytest

from braintumor_ray.worklist.explained import distinct_stems, explain_files
from braintumor_ray.worklist.options import ExplainOptions
from tests.builders import write_archive


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        ("a/1.png", "1"),
        ("a/1.png b/1.png", "a_1 b_1"),
        ("a/1.png b/1.png 2.png", "a_1 b_1 2"),
        ("1.png a/1.png", "1 a_1"),
        ("x/a/1.png y/a/1.png", "x_a_1 y_a_1"),
        ("s3://b/x/1.png s3://b/y/1.png", "x_1 y_1"),
        ("a/1.png a/1.png", "1 1_2"),
        ("1.png 1.jpg", "1 1_2"),
        ("A.png a.png", "A a_2"),
        ("脑.png 瘤.png", "_ __2"),
        ("contact_sheet.png b.png", "contact_sheet_2 b"),
        ("a\\1.png b\\1.png", "a_1 b_1"),
    ],
)
def test_every_picture_has_a_name_of_its_own(names, stems):
    assert distinct_stems(names.split()) == stems.split()


def test_no_picture_takes_the_place_of_another_or_of_a_scan(tmp_path, bundle_path):
    scans = []
    for folder, path in zip(("glioma", "no", "out"), write_archive(tmp_path / "x", 3), strict=True):
        (tmp_path / folder).mkdir()
        scans.append(shutil.copy(path, tmp_path / folder / "1.png"))
    scans.append(shutil.copy(scans[0], tmp_path / "out" / "glioma_1.png"))
    before = [Path(scan).read_bytes() for scan in scans]
    found = explain_files(
        [str(scan) for scan in scans],
        *(str(bundle_path), tmp_path / "out", ExplainOptions(methods=("gradcam",), device="cpu")),
    )
    assert len(set(found["pictures"])) == len(scans) + 1
    assert not {*found["pictures"]} & {str(scan) for scan in scans}
    assert [Path(scan).read_bytes() for scan in scans] == before
