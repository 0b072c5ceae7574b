"""The exported graph against the predictor, run where there is no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from braintumor_ray import Predictor
from braintumor_ray.engines.export import export_bundle
from braintumor_ray.engines.options import ExportOptions
from braintumor_ray.errors import BundleError, UsageError
from braintumor_ray.models.bundle import save_bundle
from tests.builders import CLASSES, disc_scan, make_fields, make_model

TWO = ("no_tumor", "tumor")
REFINED = {"neck": "topdown", "neck_channels": 16, "gate": True}
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
NETWORKS = [
    pytest.param({}, id="linear"),
    pytest.param({"pooling": "lse"}, id="log-sum-exp"),
    pytest.param(
        {"backbone": "mobilenetv2_100", "pooling": "lse", **REFINED}, id="neck-gate-log-sum-exp"
    ),
    pytest.param({"head": "mlp"}, id="mlp"),
    pytest.param({"head": "attention"}, id="attention"),
    pytest.param({"head": "flatten"}, id="flatten"),
    pytest.param({"classes": 2, "sigmoid": True}, id="sigmoid"),
    pytest.param({"classes": 2, "sigmoid": True, "head": "mlp"}, id="sigmoid-mlp"),
    pytest.param({"backbone": "vit_tiny_patch16_224", "pooling": "lse"}, id="tokens-log-sum-exp"),
    pytest.param({"backbone": "vit_tiny_patch16_224", "head": "flatten"}, id="tokens-flatten"),
]
SCANS = np.stack([disc_scan(seed, (64, 64)) for seed in range(12)])
WITHOUT_TORCH = """
import sys
import numpy as np
kind, scans, *files = sys.argv[1:]
images = np.load(scans)
for file in files:
    if kind == "onnx":
        import onnx, onnxruntime
        onnx.checker.check_model(file, full_check=True)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        run = lambda images: session.run(names, {"images": images})
    else:
        import openvino
        model = openvino.Core().read_model(file)
        names = [output.get_any_name() for output in model.outputs]
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        run = lambda images: list(compiled(images).values())
    together, alone = run(images), run(images[:1])
    for whole, one in zip(together, alone):  # the number of scans is free
        np.testing.assert_allclose(whole[:1], one, rtol=1e-4, atol=1e-5)
    assert not {"torch", "braintumor_ray"} & set(sys.modules), sorted(sys.modules)
    np.savez(file + ".npz", **dict(zip(names, together)))
"""


def bundle_of(path, **options):
    """A bundle of a random network, normalized and with a temperature."""
    model = make_model(size=64, seed=3, **options)
    classes = TWO if model.architecture.classes == 2 else CLASSES
    preprocessing = {
        "image_size": 64,
        "interpolation": "area",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    changes = {"temperature": 1.7, "preprocessing": preprocessing}
    if classes == TWO:
        changes["positive_classes"] = ("tumor",)
    fields = make_fields(model.architecture, classes=classes, **changes)
    save_bundle(path, fields, model, None, "# card\n")
    return path


def run_without_torch(files, kind, images, folder):
    """What each graph gives for the same scans."""
    np.save(folder / "scans.npy", images)
    program = [sys.executable, "-c", WITHOUT_TORCH, kind, str(folder / "scans.npy")]
    subprocess.run([*program, *map(str, files)], check=True, cwd=folder, timeout=120)
    return [np.load(f"{file}.npz") for file in files]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Of each network, by its name."""
    folder = tmp_path_factory.mktemp("bundles")
    return {param.id: bundle_of(folder / param.id, **param.values[0]) for param in NETWORKS}


@pytest.fixture(scope="module")
def graphs(bundles, tmp_path_factory):
    """What the graphs of each kind give, by the network's name; one process for a kind."""
    found = {}
    for kind, suffix in SUFFIX.items():
        folder = tmp_path_factory.mktemp(kind)
        files = [folder / f"{name}{suffix}" for name in bundles]
        for bundle, file in zip(bundles.values(), files, strict=True):
            export_bundle(bundle, file, ExportOptions(kind, all_classes=True))
        given = run_without_torch(files, kind, SCANS, folder)
        found[kind] = dict(zip(bundles, given, strict=True))
    return found


@pytest.mark.parametrize("kind", list(SUFFIX))
@pytest.mark.parametrize("network", [param.id for param in NETWORKS])
def test_exported_graph_gives_what_the_predictor_gives(network, kind, bundles, graphs):
    found = graphs[kind][network]
    predictor = Predictor.from_bundle(bundles[network], "cpu", precision="fp32")
    raw = predictor.forward(SCANS)
    columns = predictor(list(SCANS))
    names = predictor.bundle.fields.class_names
    assert [names[i] for i in found["predicted_class"]] == columns["predicted_class"]
    np.testing.assert_allclose(found["probabilities"], columns["probabilities"], atol=1e-5)
    np.testing.assert_allclose(found["logits"], raw.logits, atol=1e-5)
    np.testing.assert_allclose(found["pooled"], raw.pooled, rtol=1e-4, atol=1e-5)
    scales = {name: float(raw.maps[name].max()) for name in raw.maps}
    assert max(scales.values()) > 0
    for name, maps in raw.maps.items():
        np.testing.assert_allclose(found[name], maps, rtol=0, atol=1e-4 * (scales[name] or 1))
        chosen = found[f"{name}_all"][np.arange(12), found["predicted_class"]]
        np.testing.assert_allclose(chosen, found[name], rtol=0, atol=1e-5 * (scales[name] or 1))


def test_maps_of_every_class_are_those_of_that_class(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", classes=2, head="mlp")
    export_bundle(bundle, tmp_path / "g.onnx", ExportOptions(all_classes=True))
    (found,) = run_without_torch([tmp_path / "g.onnx"], "onnx", SCANS[:4], tmp_path)
    positive = Predictor.from_bundle(bundle, "cpu", precision="fp32", cam_class="positive")
    wanted = positive.forward(SCANS[:4]).maps
    for name in ("gradcam", "gradcam_pp"):
        of_tumor = found[f"{name}_all"][:, 1]
        np.testing.assert_allclose(of_tumor, wanted[name], rtol=0, atol=1e-4 * wanted[name].max())
    assert not np.allclose(found["gradcam_pp_all"][:, 0], found["gradcam_pp_all"][:, 1])


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_example_runs_by_itself_and_reads_the_metadata(kind, tmp_path):
    bundle = bundle_of(tmp_path / "bundle")
    found = export_bundle(bundle, tmp_path / "out" / f"g{SUFFIX[kind]}", ExportOptions(kind))
    assert found["differences"]["maps"] < 1e-4
    example = found["files"][-1]
    assert len(Path(example).read_text().splitlines()) <= 24
    done = subprocess.run(
        [sys.executable, example], cwd=tmp_path / "out", capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.split()[0] in CLASSES for line in lines)
    card = (tmp_path / "out" / f"g{SUFFIX[kind]}.md").read_text()
    assert "not a medical device" in card
    assert "gradcam_all" not in card


def test_facts_are_in_the_file(tmp_path):
    import onnx

    bundle = bundle_of(tmp_path / "bundle")
    export_bundle(bundle, tmp_path / "g.onnx")
    model = onnx.load(tmp_path / "g.onnx")
    about = json.loads({p.key: p.value for p in model.metadata_props}["braintumor_ray"])
    predictor = Predictor.from_bundle(bundle)
    assert about["class_names"] == list(CLASSES)
    assert about["threshold"] == 0.5
    assert about["map_frame"] == list(predictor.bundle.map_frame)
    assert about["bundle_fingerprint"] == predictor.bundle.fingerprint
    assert "not a medical device" in about["note"]
    assert "license" in about


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", backbone="convnext_atto")
    with pytest.raises(UsageError, match=r"convnext_atto.*cannot be exported"):
        export_bundle(bundle, tmp_path / "out" / "g.onnx")
    assert not (tmp_path / "out").exists()


def test_file_names_that_do_not_fit_or_exist_are_refused(tmp_path):
    bundle = bundle_of(tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        export_bundle(bundle, tmp_path / "g.xml")
    (tmp_path / "g.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        export_bundle(bundle, tmp_path / "g.onnx")
    assert (tmp_path / "g.onnx").read_bytes() == b"mine"


def test_a_graph_that_differs_from_the_network_is_not_written(tmp_path, monkeypatch):
    from braintumor_ray.engines import export

    monkeypatch.setattr(export, "MAPS", -1.0)
    bundle = bundle_of(tmp_path / "bundle")
    with pytest.raises(BundleError, match="differs from the network"):
        export_bundle(bundle, tmp_path / "out" / "g.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    bundle = bundle_of(tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"pip install 'braintumor-ray\[onnx\]'"):
        export_bundle(bundle, tmp_path / "g.onnx")
