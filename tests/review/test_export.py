"""Labels and predictions in the files of other tools, read back as those read them."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.cli import app
from tests.evaluation.make_results import CLASSES, make_results

BOX = [0.25, 0.5, 0.75, 1.0]


def line(path, **said):
    return json.dumps({"id": path, "path": path, "frame": 0, "reviewer": "R", "time": "t"} | said)


@pytest.fixture
def labeled(results):
    """Three of twelve scans reviewed: a label with a box, a box alone, a class of its own."""
    file = results / "review" / "labels.jsonl"
    file.parent.mkdir()
    lines = [
        line("s0000/slice 0.png", label="glioma_tumor", verdict="wrong", boxes=[BOX]),
        line("s0000/slice 1.png", boxes=[BOX, [0.0, 0.0, 0.5, 0.5]]),
        line("s0000/slice 2.png", label="abscess", verdict="wrong", note="odd"),
    ]
    file.write_text("\n".join(lines) + "\n")
    return results


def export(*arguments):
    return CliRunner().invoke(app, ["review", *map(str, arguments)])


def test_coco_is_read_by_its_own_library(labeled, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    target = tmp_path / "labels.json"
    assert export(labeled, "--export", "coco", "--output", target).exit_code == 0
    data = coco.COCO(str(target))
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == [*CLASSES, "abscess"]
    (image,) = (i for i in data.imgs.values() if i["file_name"] == "s0000/slice 0.png")
    (found,) = data.loadAnns(data.getAnnIds(image["id"]))
    assert (image["width"], image["height"]) == (56, 48)
    assert found["bbox"] == [14.0, 24.0, 28.0, 24.0]
    assert found["area"] == 28 * 24
    assert data.cats[found["category_id"]]["name"] == "glioma_tumor"
    mask = data.annToMask(found)
    assert mask[24:, 14:42].all()
    assert mask.sum() == found["area"]


def test_coco_holds_every_scan_with_what_was_predicted_and_said(labeled, tmp_path):
    target = tmp_path / "labels.json"
    export(labeled, "--export", "coco", "--output", target)
    images = {i["file_name"]: i for i in json.loads(target.read_text())["images"]}
    assert len(images) == 12
    said = images["s0000/slice 2.png"]
    assert (said["label"], said["verdict"], said["note"]) == ("abscess", "wrong", "odd")
    assert max(said["probabilities"], key=said["probabilities"].get) == said["predicted_class"]
    assert images["s0001/slice 0.png"]["label"] is None


def read_fiftyone(folder):
    """As its importers do: data.json names the picture, labels.json the index of a class."""
    data, found = (json.loads((folder / f"{n}.json").read_text()) for n in ("data", "labels"))
    assert data.keys() == found["labels"].keys()
    return data, found["classes"], found["labels"]


def test_fiftyone_gets_predictions_labels_and_boxes_over_the_scans_own_files(labeled, tmp_path):
    assert export(labeled, "--export", "fiftyone", "--output", tmp_path / "f").exit_code == 0
    data, classes, predictions = read_fiftyone(tmp_path / "f" / "predictions")
    assert len(predictions) == 12
    assert all(Image.open(path).size == (56, 48) for path in data.values())
    assert not (tmp_path / "f" / "pictures").exists()
    assert all(0 < p["confidence"] <= 1 for p in predictions.values())

    data, classes, labels = read_fiftyone(tmp_path / "f" / "labels")
    named = {data[n].split("/")[-1]: classes[v["label"]] for n, v in labels.items()}
    assert named == {"slice 0.png": "glioma_tumor", "slice 2.png": "abscess"}

    data, classes, boxes = read_fiftyone(tmp_path / "f" / "boxes")
    (one,) = (v for n, v in boxes.items() if data[n].endswith("slice 0.png"))
    assert one[0]["bounding_box"] == [0.25, 0.5, 0.5, 0.5]
    assert sorted(map(len, boxes.values())) == [1, 2]


def test_what_fiftyone_cannot_draw_is_written_as_a_picture_and_what_is_gone_is_told(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    gray = np.arange(48 * 56, dtype=np.uint8).reshape(48, 56)
    for name in ("kept.tif", "gone.tif", os.fsdecode(b"no UTF-8 \xff.png")):
        Image.fromarray(gray).save(folder / name)
    results = make_results(tmp_path / "results", load_catalog(folder))
    (folder / "gone.tif").unlink()
    found = export(results, "--export", "fiftyone", "-o", tmp_path / "f")
    assert "1 scans cannot be read" in found.stderr
    data, _, _ = read_fiftyone(tmp_path / "f" / "predictions")
    assert len(data) == 2
    for path in data.values():
        assert np.array_equal(np.asarray(Image.open(path)), gray)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--export", "coco"), "needs --output"),
        (("--output", "labels.json"), "is of --export"),
        (("--export", "coco", "--output", "labels.csv"), "no .json file"),
        (("--export", "fiftyone", "--output", "s3://bucket/f"), "local folders"),
        (("--export", "coco", "--output", "a.json", "--labels", "none.jsonl"), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_line(results, arguments, words):
    found = export(results, *arguments)
    assert found.exit_code != 0
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_an_export_leaves_no_trace_in_the_results(results, tmp_path):
    before = sorted(results.rglob("*"))
    export(results, "--export", "coco", "--output", tmp_path / "a.json")
    assert sorted(results.rglob("*")) == before
