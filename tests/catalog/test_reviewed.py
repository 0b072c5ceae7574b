"""Labels of reviewers over a catalog: the newest wins, by path and frame."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.reviewed import read_reviewed, with_reviewed_labels
from braintumor_ray.catalog.sources import combined
from braintumor_ray.errors import CatalogError
from braintumor_ray.localization.truth import load_truth, reviewed_truth
from tests.builders import write_archive


def lines(path, *events):
    path.write_text("".join(json.dumps({"frame": 0, **event}) + "\n" for event in events))
    return str(path)


@pytest.fixture
def catalog(tmp_path):
    write_archive(tmp_path / "archive", 8)
    return load_catalog(tmp_path / "archive")


def test_the_newest_label_wins_and_the_sources_own_is_kept(catalog, tmp_path):
    paths = catalog["path"].to_pylist()
    file = lines(
        tmp_path / "l.jsonl",
        {"path": paths[0], "label": "no_tumor", "verdict": "wrong"},
        {"path": paths[0], "label": "pituitary_tumor", "verdict": "wrong"},
        {"path": paths[1], "verdict": "wrong", "label": None},
        {"path": paths[2], "note": "odd"},
        {"path": "elsewhere.png", "label": "no_tumor", "verdict": "wrong"},
    )
    found, told = with_reviewed_labels(catalog, read_reviewed(file), file)
    assert found["label"].to_pylist() == ["pituitary_tumor", *catalog["label"].to_pylist()[1:]]
    assert found["label_of_source"].to_pylist() == catalog["label"].to_pylist()
    assert "1 labels" in told
    assert "1 differ" in told
    assert "1 are of no scan" in told
    again, _ = with_reviewed_labels(found, read_reviewed(file), file)
    assert again.equals(found)


def test_a_merged_class_means_its_first_label_and_sources_have_paths_of_their_own(
    catalog, tmp_path
):
    path = catalog["path"][0].as_py()
    file = lines(tmp_path / "l.jsonl", {"path": path, "label": "tumor", "verdict": "wrong"})
    groups = {"tumor": ["glioma_tumor", "pituitary_tumor"], "no_tumor": ["no_tumor"]}
    found, _ = with_reviewed_labels(catalog, read_reviewed(file), file, groups)
    assert found["label"][0].as_py() == "glioma_tumor"
    two = combined({"a": catalog, "b": catalog.slice(1)})
    found, _ = with_reviewed_labels(two, read_reviewed(file), file)
    assert found.filter(pa.compute.equal(found["label"], "tumor"))["path"].to_pylist() == [
        f"a/{path}"
    ]


def test_a_label_is_of_one_scan_of_several_sources(catalog, tmp_path):
    path = catalog["path"][0].as_py()
    two = combined({"a": catalog, "b": catalog})
    bare = lines(tmp_path / "bare.jsonl", {"path": path, "label": "odd"})
    with pytest.raises(CatalogError, match=rf"'a/{path}' or 'b/{path}'"):
        with_reviewed_labels(two, read_reviewed(bare), bare)
    whole = lines(tmp_path / "whole.jsonl", {"path": f"b/{path}", "label": "odd"})
    found, told = with_reviewed_labels(two, read_reviewed(whole), whole)
    assert found.filter(pa.compute.equal(found["label"], "odd"))["path"].to_pylist() == [
        f"b/{path}"
    ]
    assert "1 labels" in told


def test_labels_of_another_source_are_refused(catalog, tmp_path):
    file = lines(tmp_path / "l.jsonl", {"path": "x.png", "label": "a", "verdict": "wrong"})
    with pytest.raises(CatalogError, match=r"x\.png"):
        with_reviewed_labels(catalog, read_reviewed(file), file)
    with pytest.raises(CatalogError, match="cannot be read"):
        read_reviewed(str(tmp_path / "none.jsonl"))
    (tmp_path / "t.csv").write_text("path,class\na,b\n")
    with pytest.raises(CatalogError, match="'label'"):
        read_reviewed(str(tmp_path / "t.csv"))


def test_a_table_of_labels_is_taken_too(catalog, tmp_path):
    path = catalog["path"][3].as_py()
    (tmp_path / "t.csv").write_text(f"path,label\n{path},no_tumor\nx.png,\n")
    reviewed = read_reviewed(str(tmp_path / "t.csv"))
    assert [seen.label for seen in reviewed.values()] == ["no_tumor"]
    pq.write_table(pa.table({"path": [path], "label": ["a"]}), tmp_path / "t.parquet")
    assert read_reviewed(str(tmp_path / "t.parquet"))[path, 0].label == "a"


def test_a_table_of_parquet_has_its_own_types(catalog, tmp_path):
    paths = catalog["path"].to_pylist()
    boxes = [[[0.1, 0.2, 0.3, 0.4]], None, []]
    file = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"path": paths[:3], "label": [0, 1, 2], "boxes": boxes}), file)
    reviewed = read_reviewed(file)
    assert [seen.label for seen in reviewed.values()] == ["0", "1", "2"]
    assert reviewed[paths[0], 0].boxes == ((0.1, 0.2, 0.3, 0.4),)
    found, _ = with_reviewed_labels(catalog, reviewed, file)
    assert found["label"].to_pylist()[:3] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "said",
    [
        {"label": 3},
        {"boxes": None},
        {"boxes": [5]},
        {"boxes": [[0, 0, 1]]},
        {"boxes": "[[0, 0, 1, 1]]"},
    ],
)
def test_what_is_no_label_is_one_line(tmp_path, said):
    with pytest.raises(CatalogError, match=r"line 1 of .* is no label"):
        read_reviewed(lines(tmp_path / "l.jsonl", {"path": "a.png", **said}))
    if isinstance(said.get("boxes"), list):
        (tmp_path / "t.csv").write_text(f'path,label,boxes\na.png,x,"{said["boxes"]}"\n')
        with pytest.raises(CatalogError, match=r"row 1 of .* is no label"):
            read_reviewed(str(tmp_path / "t.csv"))


def test_boxes_are_truth_and_take_the_place_of_other_truth(tmp_path):
    file = lines(
        tmp_path / "l.jsonl",
        {"path": "s/a.png", "boxes": [[0, 0, 0.5, 0.5]]},
        {"path": "s/a.png", "boxes": [[0.5, 0.5, 1, 1]]},
        {"path": "s/b.png", "boxes": [[0, 0, 1, 1]]},
        {"path": "s/b.png", "boxes": []},
    )
    truth = load_truth(file)
    assert truth.mask("s/a.png", (4, 4))[2:, 2:].all()
    assert truth.mask("s/a.png", (4, 4)).sum() == 4
    assert truth.find("s/b.png") is None
    (tmp_path / "boxes.csv").write_text(
        "path,x_min,y_min,x_max,y_max\na.png,0,0,1,1\nb.png,0,0,1,1\n"
    )
    paths = ["s/a.png", "s/b.png"]
    both = load_truth(tmp_path / "boxes.csv").of(paths).under(reviewed_truth(file).of(paths))
    assert both.mask("s/a.png", (4, 4)).sum() == 4
    assert both.mask("s/b.png", (4, 4)).all()
