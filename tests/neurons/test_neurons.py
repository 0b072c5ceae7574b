"""The neurons of a small random network over phantoms."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import BundleFields, load_bundle, save_bundle
from braintumor_ray.models.classifier import Architecture, Classifier
from braintumor_ray.neurons.neurons import ACTIVATIONS, run_neurons
from braintumor_ray.neurons.options import NeuronOptions
from braintumor_ray.neurons.pictures import activation_maps
from braintumor_ray.phantom.dataset import write_phantoms
from braintumor_ray.predict.predictor import Predictor


def read_activations(output):
    """The array (n_scans, n_neurons) in [0, 1], rows as in activations.parquet."""
    column = pq.read_table(output / ACTIVATIONS, columns=["activation"])["activation"]
    flat = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(column), -1)


CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    architecture = Architecture("small-cnn", "linear", 4, 64)
    fields = BundleFields(
        architecture=architecture.to_dict(),
        preprocessing={
            "image_size": 64,
            "interpolation": "area",
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
        },
        class_names=CLASSES,
        positive_classes=("glioma_tumor", "meningioma_tumor", "pituitary_tumor"),
        cam_layer="last",
        threshold=0.5,
        temperature=1.0,
        recipe={},
        data_fingerprint="none",
        metrics={},
        versions={},
    )
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    save_bundle(path, fields, Classifier(architecture).eval(), None, "random weights")
    return path


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "p"
    write_phantoms(folder, patients=8, seed=2, slices=(2, 2))
    for scan in list((folder / "scans").rglob("p*_s*.*")):
        shutil.copy(scan, scan.with_name(f"copy_of_{scan.name}"))
    return load_catalog(folder / "scans")


@pytest.fixture(scope="module")
def written(bundle, catalog, tmp_path_factory):
    output = tmp_path_factory.mktemp("neurons") / "out"
    steps = []
    summary = run_neurons(
        catalog,
        bundle,
        output,
        NeuronOptions(device="cpu", top=3, examples=2, batch_size=5),
        lambda done, total: steps.append((done, total)),
    )
    return output, summary, steps


def test_activations_are_the_softmax_over_pooled_neurons(written, bundle, catalog):
    output, summary, _ = written
    table = pq.read_table(output / "activations.parquet")
    array = read_activations(output)
    assert array.shape == (table.num_rows, 96) == (summary["scans"], summary["neurons"])
    assert array.sum(axis=1) == pytest.approx(1, abs=1e-5)
    uri = dict(zip(catalog["path"].to_pylist(), catalog["uri"].to_pylist(), strict=True))
    from braintumor_ray.decode.decode import decode
    from braintumor_ray.storage import read_bytes

    predictor = Predictor.from_bundle(bundle, "cpu", precision="fp32")
    gray = decode(read_bytes(uri[table["path"][3].as_py()])).gray
    square = predictor.bundle.preprocessing.resize(gray)[np.newaxis]
    pooled = predictor.forward(square).pooled[0].astype(np.float64)
    expected = np.exp(pooled) / np.exp(pooled).sum()
    assert array[3] == pytest.approx(expected, rel=2e-2)


def test_unreadable_scans_are_counted_and_left_out(written, catalog):
    _, summary, steps = written
    labeled = sum(label is not None for label in catalog["label"].to_pylist())
    assert summary["unreadable"] > 0  # phantoms come with planted bad files
    assert summary["scans"] + summary["unreadable"] == labeled
    assert steps[-1] == (labeled, labeled)


def test_table_and_summary_agree(written):
    output, summary, _ = written
    assert json.loads((output / "neurons.json").read_text()) == summary
    rows = list(csv.DictReader((output / "neurons.csv").open()))
    assert len(rows) == 96 * len(summary["classes"])
    for name, neurons in summary["classes"].items():
        best = max((r for r in rows if r["class"] == name and r["r"]), key=lambda r: float(r["r"]))
        assert int(best["neuron"]) == neurons[0]["neuron"]
        assert float(best["auroc"]) == neurons[0]["auroc"]


def test_examples_excite_the_neuron_most_and_are_no_copies(written):
    output, summary, _ = written
    array = read_activations(output)
    for neurons in summary["classes"].values():
        for found in neurons:
            shown = [example["activation"] for example in found["examples"]]
            assert shown == sorted(shown, reverse=True)
            assert shown[0] == pytest.approx(float(array[:, found["neuron"]].max()))
            names = {Path(e["path"]).name.removeprefix("copy_of_") for e in found["examples"]}
            assert len(names) == 2
    sheets = sorted(path.name for path in output.glob("top_*.png"))
    assert len(sheets) == len(summary["classes"])


def test_activation_map_averages_to_the_pooled_feature(bundle):
    loaded = load_bundle(bundle)
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64), dtype=np.uint8)
    neurons = np.array([0, 95, 7, 7, 30])
    maps = activation_maps(loaded.build_model(), images, neurons, loaded.preprocessing, 2)
    pooled = Predictor(loaded, device="cpu", precision="fp32").forward(images).pooled
    assert maps.shape == (5, 8, 8)
    assert maps.mean(axis=(1, 2)) == pytest.approx(pooled[np.arange(5), neurons], abs=1e-5)


def test_limit_draws_a_seeded_sample(bundle, catalog, tmp_path):
    options = NeuronOptions(device="cpu", top=1, examples=1, limit=12, seed=3)
    summary = run_neurons(catalog, bundle, tmp_path / "n", options)
    assert summary["scans"] + summary["unreadable"] == 12


def test_catalog_of_one_class_is_refused_before_any_work(bundle, catalog, tmp_path):
    import pyarrow.compute as pc

    one = catalog.filter(pc.equal(catalog["label"], "no_tumor"))
    with pytest.raises(UsageError, match="1 class"):
        run_neurons(one, bundle, tmp_path / "n")
    assert not (tmp_path / "n").exists()
