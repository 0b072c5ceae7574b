"""Figures per patient and study in `evaluate`, rule and threshold from validation; Cheng's set."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.evaluation.by_patient import per_study_and_patient
from braintumor_ray.evaluation.evaluate import EvaluateOptions, evaluate
from braintumor_ray.evaluation.evaluated import Evaluated
from tests.decode.mutations import slice_like
from tests.evaluation.make_bundle import make_bundle

NAMES = ("glioma", "meningioma", "none")
FEW = {"seed": 0, "n_boot": 20}


def scans(*patients):
    """Evaluated slices: per patient a key and (true class, probabilities) of each slice."""
    slices = [(key, *one) for key, those in patients for one in those]
    count = len(slices)
    keys = pa.array([key for key, _, _ in slices], pa.string())
    rows = pa.table(
        {
            "scan_id": range(count),
            "uri": [f"{i}.png" for i in range(count)],
            "frame": [0] * count,
            **dict.fromkeys(("patient_key", "study_key"), keys),
            "series_key": pa.nulls(count, pa.string()),
        }
    )
    indices = np.array([NAMES.index(name) for _, name, _ in slices])
    fields = SimpleNamespace(
        class_names=NAMES, positive_classes=NAMES[:2], threshold=0.5, temperature=1.0, recipe={}
    )
    probs = np.array([p for _, _, p in slices], np.float32)
    outputs = SimpleNamespace(
        ok=np.ones(count, bool), logits=np.log(probs), out_of_domain=np.zeros(count, bool)
    )
    truth = SimpleNamespace(indices=indices)
    return Evaluated(fields, rows, truth, outputs, np.arange(count), "patient")


G, M, N = (0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8)
WEAK = (0.45, 0.1, 0.45)
TEST = scans(
    ("a", [("glioma", G), ("none", N), ("none", N)]),
    ("b", [("meningioma", M), ("meningioma", G)]),
    ("c", [("none", N), ("none", WEAK)]),
    ("d", [("glioma", G), ("meningioma", M)]),
)
# The mean tells these apart, the most probable slice does not: healthy ones have odd slices.
VALIDATION = scans(
    *((f"t{i}", [("glioma", (0.6, 0.1, 0.3))] * 3) for i in range(4)),
    *((f"h{i}", [("none", (0.75, 0.1, 0.15)), *[("none", N)] * 5]) for i in range(4)),
)


def test_a_patient_has_the_class_of_its_tumor_slices_and_two_tumors_are_left_out():
    found = per_study_and_patient(TEST, None, **FEW)["patients"]
    classes = found["classes"]
    assert (classes["rows"], classes["mixed"], classes["undecided"]) == (4, 1, 0)
    # By mean a is called none (0.3, 0.13, 0.57); by its most suspicious slice glioma.
    assert classes["mean"]["confusion_matrix"] == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert classes["max"]["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert classes["mean"]["intervals"]["accuracy"]["estimate"] == pytest.approx(2 / 3)
    assert found["chosen"] is None
    assert classes["chosen"] is None


def test_rule_and_threshold_come_from_validation():
    found = per_study_and_patient(TEST, VALIDATION, **FEW)["patients"]
    chosen = found["chosen"]
    assert (chosen["aggregate"], chosen["chosen_on"], chosen["chosen_from"]) == ("mean", "val", 8)
    assert 0.31 < chosen["threshold"] <= 0.7  # between the means of healthy and tumor
    assert chosen["sensitivity"] == pytest.approx(2 / 3)  # a's mean is 0.43
    assert found["classes"]["chosen"] == "mean"
    flipped = replace(TEST, truth=SimpleNamespace(indices=TEST.truth.indices[::-1].copy()))
    other = per_study_and_patient(flipped, VALIDATION, **FEW)["patients"]["chosen"]
    assert {k: other[k] for k in ("aggregate", "threshold")} == {
        k: chosen[k] for k in ("aggregate", "threshold")
    }


def test_validation_of_one_kind_chooses_nothing():
    healthy = scans(("h", [("none", N)]), ("i", [("none", WEAK)]))
    found = per_study_and_patient(TEST, healthy, **FEW)["studies"]
    assert found["chosen"] is None
    assert found["mean"]["auroc"] is not None


def test_slices_out_of_domain_take_no_part():
    foreign = np.zeros(len(TEST.measured), bool)
    foreign[3:5] = True  # all of b
    outputs = SimpleNamespace(**{**vars(TEST.outputs), "out_of_domain": foreign})
    classes = per_study_and_patient(replace(TEST, outputs=outputs), None, **FEW)["patients"][
        "classes"
    ]
    assert (classes["rows"], classes["undecided"]) == (4, 1)


@pytest.fixture(scope="module")
def cheng(tmp_path_factory):
    """Files in the layout of Cheng's set: 18 patients, two slices each, split by patient."""
    pytest.importorskip("h5py", reason="reads MATLAB 7.3 files; the extra 'matlab'")
    from tests.decode.test_matlab import mat

    folder, rng = tmp_path_factory.mktemp("cheng"), np.random.default_rng(0)
    for number in range(36):
        gray = slice_like(np.random.default_rng(number), 64, 64)
        letters = np.array([[ord(letter)] for letter in f"MR{number // 2:04d}"], np.uint16)
        image = (gray.astype(np.int16) * 11 + rng.integers(0, 40, gray.shape)).T
        label = np.array([[float(number // 2 % 3 + 1)]])
        data = mat(image=image, PID=letters, label=label, tumorMask=(gray > 130).T)
        (folder / f"{number + 1}.mat").write_bytes(data)
    table = load_catalog(folder, CatalogOptions(identity=IdentityHash(clear=True)))
    patients = [int(key[2:]) for key in table["patient_key"].to_pylist()]
    split = ["test" if patient < 9 else "val" for patient in patients]
    return table.append_column("split", pa.array(split))


def test_cheng_s_set_is_measured_by_patient(cheng, tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    classes = "glioma_tumor=glioma,meningioma_tumor=meningioma,pituitary_tumor=pituitary"
    options = EvaluateOptions(
        n_boot=20, heatmaps=False, device="cpu", precision="fp32", classes=classes, per_gallery=0
    )
    found = evaluate(cheng, bundle, tmp_path / "out", options)
    assert found["studies"] is None
    patients = found["patients"]
    assert (patients["rows"], patients["positive"], patients["scans_without_key"]) == (9, 9, 0)
    assert patients["chosen"] is None  # nobody is healthy
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    probs, truth = {}, {}
    tested = cheng.filter(pc.equal(cheng["split"], "test")).to_pylist()
    for row, scan in zip(table, tested, strict=True):
        probs.setdefault(scan["patient_key"], []).append(row["probabilities"])
        truth[scan["patient_key"]] = row["true_class"]
    called = {key: found["class_names"][np.mean(p, axis=0).argmax()] for key, p in probs.items()}
    right = np.mean([called[key] == truth[key] for key in truth])
    assert patients["classes"]["mean"]["accuracy"] == pytest.approx(right)
    assert patients["classes"]["chosen"] in ("mean", "max")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h3>By patient</h3>" in page
    assert 'data-metric="patients/classes/mean/intervals/accuracy"' in page
