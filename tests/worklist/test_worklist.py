"""The worklist: order, patients, page and the way back of labels, from a results folder alone."""

import csv
import shutil
import sys
import time

import cv2
import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import brentq

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.errors import ResultsError, UsageError
from braintumor_ray.phantom.dataset import patient_slices
from braintumor_ray.worklist.worklist import make_worklist
from tests.evaluation.make_results import make_results

# glioma, meningioma, none, pituitary; urgency 0.9, 0.2, 0.6, 0.9, 0.5, 0.5
PROBABILITIES = np.array(
    [
        [0.90, 0.00, 0.10, 0.00],
        [0.10, 0.05, 0.80, 0.05],
        [0.20, 0.20, 0.40, 0.20],
        [0.30, 0.30, 0.10, 0.30],
        [0.50, 0.00, 0.50, 0.00],
        [0.25, 0.15, 0.50, 0.10],
    ]
)
PATIENTS = ["k1", "k1", "k2", None, None, "k2"]


@pytest.fixture
def archive(tmp_path):
    """Six phantom scans in two folders, a.png ... f.png."""
    folder = tmp_path / "archive"
    drawn = [image for number in range(6) for image in patient_slices(number, slices=(1, 1))]
    for name, item in zip("abcdef", drawn, strict=True):
        path = folder / ("images" if name < "d" else "scans") / f"{name} {ord(name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), item.image)
    return folder


@pytest.fixture
def catalog(archive):
    table = load_catalog(archive)
    index = table.column_names.index("patient_key")
    return table.set_column(index, "patient_key", pa.array(PATIENTS))


@pytest.fixture
def results(tmp_path, catalog):
    return make_results(tmp_path / "results", catalog, PROBABILITIES, generations=2)


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def names(rows):
    return "".join(row["path"].split("/")[1][0] for row in rows)


def test_urgency_is_the_summed_probability_of_the_positive_classes(results, tmp_path):
    summary = make_worklist(results, tmp_path / "w")
    rows = read(tmp_path / "w" / "worklist.csv")
    assert [float(row["urgency"]) for row in rows] == pytest.approx([0.9, 0.9, 0.6, 0.5, 0.5, 0.2])
    assert names(rows) == "adcefb"  # equal ones by path
    assert [row["rank"] for row in rows] == list("123456")
    assert float(rows[0]["prob_glioma_tumor"]) == pytest.approx(0.9)
    assert (summary["scans"], summary["patients"], summary["positive"]) == (6, 4, 5)


def test_usefulness_is_entropy_then_the_smaller_margin(tmp_path, catalog):
    probabilities = PROBABILITIES.copy()
    probabilities[5] = [0.2, 0.2, 0.2, 0.4]  # as undecided as row 2, permuted
    results = make_results(tmp_path / "r", catalog, probabilities)
    make_worklist(results, tmp_path / "w", by="usefulness")
    rows = read(tmp_path / "w" / "worklist.csv")
    entropies = [float(row["entropy"]) for row in rows]
    assert entropies == sorted(entropies, reverse=True)
    assert names(rows) == "cfdbea"
    assert [float(row["margin"]) for row in rows[:3]] == pytest.approx([0.2, 0.2, 0.0], abs=1e-6)


def test_equally_undecided_scans_stand_by_the_smaller_margin(tmp_path, catalog):
    def entropy(x):
        return -(x * np.log(x) + (1 - x) * np.log((1 - x) / 3)) - np.log(2)

    x = brentq(entropy, 0.6, 0.95)  # one class of x has the entropy of two of a half
    probabilities = PROBABILITIES.copy()
    probabilities[0] = [x, (1 - x) / 3, (1 - x) / 3, (1 - x) / 3]
    probabilities[5] = [0.5, 0.5, 0, 0]
    results = make_results(tmp_path / "r", catalog, probabilities)
    make_worklist(results, tmp_path / "w", by="usefulness")
    listed = names(read(tmp_path / "w" / "worklist.csv"))
    assert listed.index("e") < listed.index("f") < listed.index("a")  # e and f: margin 0


def test_patient_is_the_maximum_of_its_slices(results, tmp_path):
    make_worklist(results, tmp_path / "w")
    rows = read(tmp_path / "w" / "patients.csv")
    found = [(row["patient_key"], row["slices"], row["positive_slices"]) for row in rows]
    assert found == [("k1", "2", "1"), ("", "1", "1"), ("k2", "2", "2"), ("", "1", "1")]
    assert [float(row["urgency"]) for row in rows] == pytest.approx([0.9, 0.9, 0.6, 0.5])
    assert [row["scan_rank"] for row in rows] == ["1", "2", "3", "4"]
    assert names(rows) == "adce"
    slices = PROBABILITIES[[2, 5]]
    entropy = -(slices * np.log(slices)).sum(axis=1) / np.log(4)
    assert float(rows[2]["entropy"]) == pytest.approx(entropy.max(), abs=1e-6)


def test_labels_come_back_into_a_catalog(results, archive, tmp_path):
    make_worklist(results, tmp_path / "w")
    path = tmp_path / "w" / "worklist.csv"
    rows = read(path)
    assert {row["label"] for row in rows} == {""}
    for row, label in zip(rows, ["glioma_tumor", "no_tumor", "glioma_tumor"], strict=False):
        row["label"] = label
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    back = load_catalog(
        path, CatalogOptions(path_column="path", label_column="label", root=str(archive))
    )
    labels = {row["path"]: row["label"] for row in back.to_pylist()}
    assert labels == {row["path"]: row["label"] or None for row in rows}
    assert back["scan_id"].to_pylist() == load_catalog(archive)["scan_id"].to_pylist()
    assert back["height"].null_count == 0


def test_unreadable_scans_are_counted_not_ranked(tmp_path, catalog):
    results = make_results(tmp_path / "r", catalog, PROBABILITIES, unreadable=[0, 3])
    summary = make_worklist(results, tmp_path / "w")
    assert summary["not_ranked"] == {"quarantined": 2}
    assert names(read(tmp_path / "w" / "worklist.csv")) == "cefb"
    assert "quarantined, not ranked" in (tmp_path / "w" / "worklist.html").read_text()


def test_limit_cuts_the_lists_after_ranking(results, tmp_path):
    summary = make_worklist(results, tmp_path / "w", limit=2)
    assert names(read(tmp_path / "w" / "worklist.csv")) == "ad"
    assert len(read(tmp_path / "w" / "patients.csv")) == 2
    assert (summary["scans"], summary["ranked"]) == (2, 6)


def test_page_is_self_contained_sorted_and_says_what_it_is_not(results, tmp_path):
    summary = make_worklist(results, tmp_path / "w", overlays=3)
    page = (tmp_path / "w" / "worklist.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 == summary["scans_drawn"]
    for outside in ("http://", "https://", "<script", "<link"):
        assert outside not in page
    assert "not a medical" in page
    assert page.index("a 97.png") < page.index("d 100.png") < page.index("c 99.png")
    for trait in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert trait in page


def test_as_many_scans_are_drawn_as_are_asked_for(results, tmp_path, monkeypatch):
    monkeypatch.setattr("braintumor_ray.worklist.page.ROWS_ON_PAGE", 2)
    summary = make_worklist(results, tmp_path / "w", overlays=5)
    page = (tmp_path / "w" / "worklist.html").read_text()
    assert page.count("data:image/jpeg;base64,") == summary["scans_drawn"] == 5
    assert "First 5 scans" in page
    assert "The first 2; worklist.csv has all 6" in page


def test_names_are_escaped_on_the_page(tmp_path, archive):
    (archive / "images" / "a 97.png").rename(archive / "images" / "<b>&.png")
    results = make_results(tmp_path / "r", load_catalog(archive), PROBABILITIES)
    make_worklist(results, tmp_path / "w")
    page = (tmp_path / "w" / "worklist.html").read_text()
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>&.png" not in page


def test_heatmaps_stand_alone_where_the_file_is_gone_or_has_changed(results, archive, tmp_path):
    (archive / "images" / "a 97.png").unlink()
    shutil.copy(archive / "scans" / "f 102.png", archive / "scans" / "d 100.png")
    summary = make_worklist(results, tmp_path / "w")
    page = (tmp_path / "w" / "worklist.html").read_text()
    assert (summary["overlays"], summary["scans_drawn"]) == (6, 4)
    assert page.count("heatmaps alone: file not found") == 1
    assert page.count("heatmaps alone: the file has changed since it was scored") == 1


def test_no_model_is_loaded(results, tmp_path):
    import subprocess

    code = (
        "import sys; from braintumor_ray.worklist.worklist import make_worklist; "
        f"make_worklist({str(results)!r}, {str(tmp_path / 'w')!r}); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'ray', 'timm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SETS = [["glioma_tumor"], ["no_tumor"], [], ["glioma_tumor", "pituitary_tumor"], [], ["no_tumor"]]


@pytest.mark.parametrize(
    ("sets", "kept"),
    [("all", "adcefb"), ("single", "afb"), ("several", "d"), ("empty", "ce"), ("unsure", "dce")],
)
def test_scans_are_chosen_by_the_size_of_their_prediction_set(tmp_path, catalog, sets, kept):
    results = make_results(tmp_path / "r", catalog, PROBABILITIES, sets=SETS)
    summary = make_worklist(results, tmp_path / "w", sets=sets)
    rows = read(tmp_path / "w" / "worklist.csv")
    assert names(rows) == kept
    assert summary["ranked"] == len(kept)
    found = {row["path"].split("/")[1][0]: row["prediction_set"] for row in rows}
    assert found.get("d", "glioma_tumor+pituitary_tumor") == "glioma_tumor+pituitary_tumor"
    assert found.get("c", "") == ""
    page = (tmp_path / "w" / "worklist.html").read_text()
    assert ("glioma_tumor or pituitary_tumor" in page.replace("<wbr>", "")) == ("d" in kept)


def test_results_of_before_have_no_sets_to_choose_by(results, catalog, tmp_path):
    make_worklist(results, tmp_path / "w")
    assert "prediction_set" not in read(tmp_path / "w" / "worklist.csv")[0]
    with pytest.raises(ResultsError, match="evaluate --recalibrate"):
        make_worklist(results, tmp_path / "v", sets="unsure")
    with pytest.raises(UsageError, match="sets 'many' is unknown"):
        make_worklist(results, tmp_path / "v", sets="many")
    certain = make_results(tmp_path / "c", catalog, PROBABILITIES, sets=[["no_tumor"]] * 6)
    with pytest.raises(ResultsError, match="no scan whose prediction set is 'unsure'"):
        make_worklist(certain, tmp_path / "v", sets="unsure")
    assert not (tmp_path / "v").exists()


def test_what_cannot_be_listed_is_refused(results, catalog, tmp_path):
    with pytest.raises(UsageError, match="order 'name'"):
        make_worklist(results, tmp_path / "w", by="name")
    with pytest.raises(UsageError, match="limit 0"):
        make_worklist(results, tmp_path / "w", limit=0)
    with pytest.raises(UsageError, match="-1 overlays"):
        make_worklist(results, tmp_path / "w", overlays=-1)
    with pytest.raises(ResultsError, match="not a results folder"):
        make_worklist(tmp_path, tmp_path / "w")
    nothing = make_results(tmp_path / "n", catalog, PROBABILITIES, unreadable=range(6))
    with pytest.raises(ResultsError, match="no prediction among them"):
        make_worklist(nothing, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_thousand_scans_take_seconds(tmp_path, archive):
    first = load_catalog(archive).slice(0, 1).to_pylist()[0]
    rows = [first | {"scan_id": i, "path": f"x/{i:04d}.png", "frame": 0} for i in range(1000)]
    catalog = pa.Table.from_pylist(rows, load_catalog(archive).schema)
    results = make_results(tmp_path / "r", catalog)
    started = time.perf_counter()
    summary = make_worklist(results, tmp_path / "w")
    assert time.perf_counter() - started < 20  # about 1 s on an idle machine
    assert summary["scans"] == 1000
