"""Suspect labels: planted errors come first; no network judges a scan that it was trained on."""

import csv
import json
import sys

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.audit import labels as module
from braintumor_ray.audit.audit import combine, copy_keys, run_audit
from braintumor_ray.audit.labels import held_out_probabilities, suspect_labels
from braintumor_ray.audit.options import LabelOptions
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.predictor import Predictor
from tests.evaluation.make_bundle import make_bundle

pytest.importorskip("cleanlab", reason="needs the extra 'labels'")
ON = LabelOptions(labels=True, weights="none")


class Seen:
    """Features that tell the true class of phantoms well, whatever their labels claim."""

    line = "weights: of the test"

    def __init__(self, weights):
        pass

    def features(self, scans, progress):
        rng = np.random.default_rng(0)
        kinds = [path.rsplit("/", 2)[-2] for path in scans["path"].to_pylist()]
        names = sorted(set(kinds))
        own = np.array([names.index(kind) for kind in kinds])
        signal = np.tile(np.eye(len(names))[own], 40)  # as many weak features as a network has
        return signal + rng.normal(0, 0.4, signal.shape)


@pytest.fixture
def mislabeled(fingerprinted):
    """The phantoms with three wrong labels, and the paths of these scans."""
    given = fingerprinted["label"].to_pylist()
    readable = [i for i, s in enumerate(fingerprinted["status"].to_pylist()) if s == "ok"]
    wrong = [i for i in readable if given[i] == "glioma_tumor"][::5][:3]
    for row in wrong:
        given[row] = "no_tumor"
    index = fingerprinted.schema.get_field_index("label")
    table = fingerprinted.set_column(index, "label", pa.array(given, pa.string()))
    return table, {table["path"][row].as_py() for row in wrong}


def test_planted_errors_come_first_and_are_shown(mislabeled, tmp_path, monkeypatch):
    table, wrong = mislabeled
    monkeypatch.setattr(module, "_Extractor", Seen)
    found = run_audit([("phantoms", table)], tmp_path, shortcuts=False, labels=ON)
    part = found["labels"]["phantoms"]
    # How many are suspects is an estimate; that the wrong ones are first is not.
    assert {row["path"] for row in part["first"]} <= wrong
    assert all(row["likely"] == "glioma_tumor" for row in part["first"])
    assert 2 <= part["suspects"] <= 3
    assert part["accuracy"] > 0.9
    with (tmp_path / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == part["scans"]
    assert {row["path"] for row in rows[:3]} == wrong
    assert sum(row["suspect"] == "true" for row in rows) == part["suspects"]
    counts = {(row["split"], row["label"]): row for row in part["by_class"]}
    assert sum(row["suspects"] for row in counts.values()) == part["suspects"]
    assert sum(row["scans"] for row in counts.values()) == part["scans"]
    page = (tmp_path / "audit.html").read_text()
    assert "no_tumor, likely glioma_tumor" in page
    assert (tmp_path / "labels.png").is_file()
    assert json.loads((tmp_path / "audit.json").read_text())["labels"]["phantoms"]["suspects"]


def test_nothing_is_ranked_unless_asked_for(fingerprinted, tmp_path):
    found = run_audit([("phantoms", fingerprinted)], tmp_path, shortcuts=False)
    assert "labels" not in found
    assert not (tmp_path / "labels.csv").exists()


def test_features_of_a_network_rank_every_readable_scan(mislabeled):
    table = combine([("phantoms", mislabeled[0].slice(0, 24))])
    found, ranked = suspect_labels(table, np.arange(24), ON)
    part = found["phantoms"]
    assert ranked.num_rows == part["scans"] <= 24
    assert "mobilenetv2_100, weights: random, 5 folds" in part["source"]
    assert set(ranked["label"].to_pylist()) == set(part["classes"])


def test_a_copy_with_the_same_wrong_label_does_not_confirm_it():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 40)
    features = np.eye(2)[truth] * 2 + rng.normal(0, 0.5, (80, 2))
    given = truth.copy()
    given[[0, 1]] = 1  # scan 1 is a copy of scan 0: both wrong
    features[1] = features[0]
    folds = np.arange(80) % 5
    apart = held_out_probabilities(features, given, folds)[0, 1]
    folds[1] = folds[0]
    together = held_out_probabilities(features, given, folds)[0, 1]
    assert together < apart


def test_each_scan_is_judged_by_the_fold_that_held_it_out(fingerprinted, phantoms, tmp_path):
    scans = combine([("phantoms", fingerprinted)])
    digests = fingerprinted["pixel_sha256"].to_pylist()
    held = {digest: i % 2 for i, digest in enumerate(dict.fromkeys(filter(None, digests)))}
    known = fingerprinted.select([*phantoms.column_names, "status", "reason", "pixel_sha256"])
    known = known.append_column("class_name", known["label"])
    for fold in range(2):
        folder = tmp_path / f"fold-{fold + 1}"
        make_bundle(folder / "bundle", seed=fold)
        split = ["test" if held.get(digest) == fold else "train" for digest in digests]
        write_catalog(known.append_column("split", pa.array(split)), folder / "catalog.parquet")
    (tmp_path / "folds.json").write_text("{}")
    options = LabelOptions(labels=True, folds=str(tmp_path))
    found, ranked = suspect_labels(scans, copy_keys(scans).near_identical, options)
    assert found["folds"]["source"] == "2 folds of a training run"
    row = ranked.to_pylist()[5]
    fold = held[scans["pixel_sha256"][row["row"]].as_py()]
    bundle = load_bundle(tmp_path / f"fold-{fold + 1}" / "bundle")
    square = next(module._squares(scans.slice(row["row"], 1), bundle.preprocessing))
    columns = Predictor(bundle).predict(
        list(square), np.ones((1, 3, *bundle.cam_shape), np.float32), explain=False
    )
    names = bundle.fields.class_names
    assert row["likely"] == columns["predicted_class"][0]
    own = columns["probabilities"][0, names.index(row["label"])]
    assert row["quality"] == pytest.approx(own, abs=1e-5)


def test_copies_with_different_labels_each_have_their_own(fingerprinted, phantoms, tmp_path):
    """Exactly these must be found: the label of one copy is not that of the other."""
    readable = np.flatnonzero([s == "ok" for s in fingerprinted["status"].to_pylist()])
    rows = fingerprinted.take(pa.array([readable[0], *readable[:6]]))
    labels = ["no_tumor", "glioma_tumor", *rows["label"].to_pylist()[2:]]
    paths = ["copy.png", *rows["path"].to_pylist()[1:]]
    for name, values in (("label", labels), ("path", paths), ("scan_id", range(len(paths)))):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    known = rows.select([*phantoms.column_names, "status", "reason", "pixel_sha256"])
    known = known.append_column("class_name", known["label"])
    for fold in range(2):
        folder = tmp_path / f"fold-{fold + 1}"
        make_bundle(folder / "bundle", seed=fold)
        split = pa.array(["train" if fold else "test"] * len(paths))
        write_catalog(known.append_column("split", split), folder / "catalog.parquet")
    (tmp_path / "folds.json").write_text("{}")
    scans = combine([("phantoms", rows)])
    options = LabelOptions(labels=True, folds=str(tmp_path))
    _, ranked = suspect_labels(scans, np.arange(len(paths)), options)
    given = dict(zip(ranked["path"].to_pylist(), ranked["label"].to_pylist(), strict=True))
    assert [given[path] for path in paths] == labels


def test_what_cannot_be_ranked_is_said_in_one_line(fingerprinted, tmp_path, monkeypatch):
    scans = combine([("phantoms", fingerprinted)])
    groups = np.arange(scans.num_rows)
    with pytest.raises(UsageError, match="not a finished cross-validation"):
        suspect_labels(scans, groups, LabelOptions(labels=True, folds=str(tmp_path)))
    few, _ = suspect_labels(scans.slice(0, 4), groups[:4], ON)
    assert "fewer than two classes" in few["phantoms"]["note"]
    audit = run_audit([("few", fingerprinted.slice(0, 4))], tmp_path, shortcuts=False, labels=ON)
    assert audit["labels"]["few"]["note"] in (tmp_path / "audit.html").read_text()
    for name in ("cleanlab", "cleanlab.filter", "cleanlab.rank"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"braintumor-ray\[labels\]"):
        suspect_labels(scans, groups, ON)
