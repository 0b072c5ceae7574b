"""Pictures of scored rows: few of them are drawn, and little is read for that."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.errors import ResultsError
from braintumor_ray.predict.results import ResultsFolder
from braintumor_ray.worklist import explained
from braintumor_ray.worklist.explained import explain_results
from braintumor_ray.worklist.options import ExplainOptions
from tests.builders import write_archive
from tests.evaluation.make_results import make_results


@pytest.fixture
def catalog(tmp_path):
    write_archive(tmp_path / "archive", 24)
    return load_catalog(tmp_path / "archive")


@pytest.fixture
def read(monkeypatch):
    """What is read of a results folder: (path, columns)."""
    asked, plain = [], ResultsFolder.read_parquet

    def spy(folder, paths, columns=None, where=None):
        asked.extend((path, columns) for path in paths)
        return plain(folder, paths, columns, where)

    monkeypatch.setattr(ResultsFolder, "read_parquet", spy)
    return asked


def draw(results, output, limit, methods=("gradcam",)):
    options = ExplainOptions(methods=methods, limit=limit, layout="compact")
    return explain_results(str(results), output, options)


def drawn(found):
    return [path.rsplit("/", 1)[-1][4:-4] for path in found["pictures"] if "sheet" not in path]


def test_maps_are_read_of_the_files_that_are_drawn_only(tmp_path, catalog, read):
    results = make_results(tmp_path / "results", catalog, generations=6)
    draw(results, tmp_path / "out", 2)
    with_maps = {path for path, columns in read if columns is None or "gradcam" in columns}
    assert 1 <= len(with_maps) <= 2
    assert not any(columns is None or "gradcam_pp" in columns for _, columns in read)


def test_reading_ends_when_there_are_enough_rows_to_choose_from(
    tmp_path, catalog, read, monkeypatch
):
    monkeypatch.setattr(explained, "ENOUGH", 5)
    results = make_results(tmp_path / "results", catalog, generations=6)  # of 4 scans each
    found = draw(results, tmp_path / "out", 2)
    assert {path.split("/")[1] for path, _ in read} <= {"000005", "000006"}
    newest = pq.read_table(results / "rows" / "000006" / "part.parquet")["uri"].to_pylist()
    newest += pq.read_table(results / "rows" / "000005" / "part.parquet")["uri"].to_pylist()
    assert len(drawn(found)) == 2
    assert set(drawn(found)) <= {uri.rsplit("/", 1)[-1].removesuffix(".png") for uri in newest}


def test_every_class_is_drawn_the_most_and_the_least_certain_scans(tmp_path, catalog):
    sure = np.linspace(0.3, 0.95, 24)
    probabilities = np.full((24, 4), 0.0)
    for index, share in enumerate(sure):
        probabilities[index] = (1 - share) / 3
        probabilities[index, index // 6] = share
    results = make_results(tmp_path / "results", catalog, probabilities, generations=5)
    found = draw(results, tmp_path / "out", 8)
    names = [uri.rsplit("/", 1)[-1].removesuffix(".png") for uri in catalog["uri"].to_pylist()]
    ends = {names[first + end] for first in (0, 6, 12, 18) for end in (0, 5)}
    assert set(drawn(found)) == ends


def test_rows_that_were_superseded_are_not_drawn(tmp_path, catalog):
    import json

    results = make_results(tmp_path / "results", catalog, generations=2)
    path = results / "manifests" / "000002.json"
    manifest = json.loads(path.read_text())
    gone = pq.read_table(results / "rows" / "000001" / "part.parquet")["scan_id"].to_pylist()
    path.write_text(json.dumps(manifest | {"supersedes": {"1": gone}}))
    found = draw(results, tmp_path / "out", 24)
    assert len(drawn(found)) == 12


def test_stored_maps_are_not_drawn_over_a_picture_that_was_not_scored(tmp_path, catalog):
    results = make_results(tmp_path / "results", catalog)
    changed, other = catalog["uri"].to_pylist()[:2]
    shutil.copy(other, changed)
    found = draw(results, tmp_path / "out", 24)
    assert found["unreadable"] == {changed: "the file has changed since it was scored"}
    assert len(drawn(found)) == 23


@pytest.mark.parametrize(
    ("folder", "true_class"),
    [("glioma_tumor", "glioma_tumor"), ("Glioma Tumor", "glioma_tumor"), ("astrocytoma", None)],
)
def test_right_or_wrong_is_told_of_labels_that_are_classes(
    tmp_path, monkeypatch, folder, true_class
):
    write_archive(tmp_path / "archive", 2, classes=(folder,))
    told, plain = [], explained.panel

    def spy(*arguments, **options):
        told.append(options["true_class"])
        return plain(*arguments, **options)

    monkeypatch.setattr(explained, "panel", spy)
    results = make_results(tmp_path / "results", load_catalog(tmp_path / "archive"))
    draw(results, tmp_path / "out", 4)
    assert told == [true_class, true_class]


def test_frames_of_one_file_are_told_apart_on_the_sheet(tmp_path, monkeypatch):
    pages = [Image.open(path) for path in write_archive(tmp_path / "made", 3)]
    (tmp_path / "archive").mkdir()
    pages[0].save(tmp_path / "archive" / "stack.tif", save_all=True, append_images=pages[1:])
    told, plain = [], explained.contact_sheet

    def spy(panels, columns, names, size):
        told.extend(names)
        return plain(panels, columns, names, size)

    monkeypatch.setattr(explained, "contact_sheet", spy)
    results = make_results(tmp_path / "results", load_catalog(tmp_path / "archive"))
    draw(results, tmp_path / "out", 4)
    assert sorted(told) == ["stack.tif", "stack.tif, frame 1", "stack.tif, frame 2"]


def test_nothing_that_can_be_drawn_is_one_line(tmp_path, catalog):
    results = make_results(tmp_path / "results", catalog)
    shutil.rmtree(tmp_path / "archive")
    with pytest.raises(ResultsError, match=r"can be drawn: .*scan0_.*: file not found"):
        draw(results, tmp_path / "out", 4)


def test_nothing_scored_is_one_line(tmp_path, catalog):
    results = make_results(tmp_path / "results", catalog, unreadable=range(24))
    with pytest.raises(ResultsError, match="no scan was scored 'ok'"):
        draw(results, tmp_path / "out", 4)
