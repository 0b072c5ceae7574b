"""A bundle with int8 layers: its own file format, its own decisions, refused where it differs."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from braintumor_ray import Predictor
from braintumor_ray.cli import app
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.engines import quantize as engine_quantize
from braintumor_ray.engines.choice import possible_engine, resolve_engine
from braintumor_ray.engines.convert import to_openvino
from braintumor_ray.engines.export import export_bundle
from braintumor_ray.engines.graph import Normalized
from braintumor_ray.errors import BundleError, GateError, UsageError
from braintumor_ray.evaluation import quantization
from braintumor_ray.evaluation.evaluate import evaluate
from braintumor_ray.evaluation.options import EvaluateOptions, QuantizeOptions
from braintumor_ray.evaluation.quantization import correlations, quantize_bundle
from braintumor_ray.models.bundle import CARD, GRAPH, load_bundle
from braintumor_ray.models.hub import pull_bundle, push_bundle
from braintumor_ray.predict.results import results_folder
from braintumor_ray.scoring.job import _resolved
from braintumor_ray.scoring.options import PredictSettings, ScoreOptions
from tests.builders import disc_scan
from tests.evaluation.make_bundle import make_bundle

SCANS = [disc_scan(seed, (60 + 7 * seed, 110 - 5 * seed)) for seed in range(7)]
OPTIONS = QuantizeOptions(scans=12, precision="fp32", allow_drop=True)  # few scans, random network
QUICK = EvaluateOptions(
    engine="openvino", precision="fp32", n_boot=10, per_gallery=0, heatmaps=False, report=False
)


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """`bundle`: the run's in int8; `found`: what was told of it."""
    path = tmp_path_factory.mktemp("int8") / "bundle8"
    return SimpleNamespace(bundle=path, found=quantize_bundle(str(run.bundle), path, OPTIONS))


@pytest.fixture
def quickly(made, monkeypatch):
    """Quantization gives the graph that was made before."""
    graph = load_bundle(made.bundle).quantized
    monkeypatch.setattr(quantization, "quantize_backbone", lambda *_: graph)


def test_it_is_a_bundle_of_its_own_whose_format_tells_that_it_is_quantized(made, run):
    old, new = load_bundle(run.bundle), load_bundle(made.bundle)
    assert (old.fields.schema_version, new.fields.schema_version) == (1, 2)
    assert new.fields.quantization.made_of == old.fingerprint != new.fingerprint
    assert new.fields.quantization.calibration_scans == 12
    assert b'element_type="i8"' in new.quantized.xml
    assert made.found["fingerprint"] == new.fingerprint
    assert old.quantized is None


def test_openvino_runs_it_nearly_as_the_network_in_float(made, run):
    options = {"device": "cpu", "precision": "fp32"}
    wanted = Predictor.from_bundle(run.bundle, engine="openvino", **options)
    scans = decode_scans(run.catalog, wanted.bundle.preprocessing)
    images = np.stack([scan.image for scan in scans if scan.image is not None])
    exact = wanted.forward(images)
    for engine in ("openvino", "auto"):
        predictor = Predictor.from_bundle(made.bundle, engine=engine, **options)
        assert predictor.runs_in["engine"] == "openvino"
        rough = predictor.forward(images)
        difference = np.abs(rough.pooled - exact.pooled).max() / np.abs(exact.pooled).max()
        assert 0 < difference < 0.2
        same = rough.cam_classes == exact.cam_classes
        alike = correlations(*(torch.from_numpy(r.maps["gradcam"][same]) for r in (rough, exact)))
        assert alike.mean() > 0.9
    assert len(predictor(SCANS)["predicted_class"]) == len(SCANS)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_other_engines_refuse_it_in_one_line(made, engine):
    message = rf"quantized \(int8\) and engine '{engine}' cannot run it; use --engine openvino"
    with pytest.raises(UsageError, match=message):
        Predictor.from_bundle(made.bundle, engine=engine)
    with pytest.raises(UsageError, match=message):
        resolve_engine(engine, str(made.bundle))


def test_a_job_settles_on_openvino_or_refuses_before_it_starts(made, tmp_path):
    bundle, folder = load_bundle(made.bundle), results_folder(str(tmp_path / "results"))
    auto = ScoreOptions(PredictSettings(str(made.bundle), engine="auto", precision="fp32"))
    assert _resolved(folder, bundle, auto)[0].predict.engine == "openvino"
    with pytest.raises(UsageError, match="use --engine openvino"):
        _resolved(folder, bundle, ScoreOptions(PredictSettings(str(made.bundle))))
    assert possible_engine("auto", bundle.fields) == "openvino"


def test_what_needs_the_network_in_float_refuses_it(made, run, tmp_path):
    predictor = Predictor.from_bundle(made.bundle, engine="openvino")
    fingerprint = load_bundle(run.bundle).fingerprint
    name = predictor.bundle.fields.class_names[0]
    with pytest.raises(UsageError, match=f"'eigencam' .* in float .*{fingerprint}"):
        predictor.library_map(SCANS[0], name, "eigencam")
    with pytest.raises(UsageError, match="export needs the network in float"):
        export_bundle(made.bundle, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="quantize needs the network in float"):
        quantize_bundle(str(made.bundle), tmp_path / "again", OPTIONS)


def test_evaluation_finds_what_quantization_told_and_recalibration_keeps_the_graph(
    made, run, tmp_path
):
    found = evaluate(
        run.catalog,
        made.bundle,
        tmp_path / "val",
        EvaluateOptions(**vars(QUICK) | {"split": "val"}),
    )
    assert found["n"] == made.found["n"] > 0
    assert found["accuracy"] == pytest.approx(made.found["accuracy"])
    again = EvaluateOptions(**vars(QUICK) | {"recalibrate": tmp_path / "again"})
    evaluate(run.catalog, made.bundle, tmp_path / "test", again)
    new, old = load_bundle(tmp_path / "again"), load_bundle(made.bundle)
    assert new.quantized == old.quantized
    assert new.fields.threshold == pytest.approx(old.fields.threshold)  # the same scans and rule
    assert new.fields.temperature == pytest.approx(old.fields.temperature)


def test_the_model_card_has_the_figures(made):
    card = (made.bundle / CARD).read_text()
    found = made.found
    assert "Quantized to int8" in card
    assert f"| {found['accuracy_before']:.4f} | {found['accuracy']:.4f} |" in card
    assert f"gradcam_pp {found['map_correlation']['gradcam_pp']['mean']:.4f}" in card


def test_another_network_is_refused_and_nothing_is_written(run, tmp_path, monkeypatch):
    other = load_bundle(make_bundle(tmp_path / "other", seed=5))
    network = Normalized(other.build_model(), other.preprocessing).eval()
    graph = engine_quantize._packed(to_openvino(network, 32, ("features",)))
    monkeypatch.setattr(quantization, "quantize_backbone", lambda *_: graph)
    strict = QuantizeOptions(scans=4)
    with pytest.raises(GateError, match=r"gradcam maps 0\.\d+ \(at least 0\.98\).*--allow-drop"):
        quantize_bundle(str(run.bundle), tmp_path / "q", strict)
    assert not (tmp_path / "q").exists()
    told = quantize_bundle(str(run.bundle), tmp_path / "q", OPTIONS)
    assert told["map_correlation"]["gradcam"]["mean"] < 0.98
    assert "differs by more" in (tmp_path / "q" / CARD).read_text()


def test_a_drop_of_accuracy_is_refused():
    maps = {"gradcam": {"mean": 0.99, "low": 0.9}}
    figures = {"n": 268, "accuracy_before": 0.94, "accuracy": 0.934, "map_correlation": maps}
    assert "0.60 points, at most 0.5" in quantization._too_far(figures | {"drop_points": 0.6})
    assert quantization._too_far(figures | {"drop_points": 0.4}) == ""


def test_without_scans_it_is_refused_in_one_line(lone_bundle, tmp_path):
    done = CliRunner().invoke(app, ["quantize", str(lone_bundle), "-o", str(tmp_path / "q")])
    assert done.exit_code == 2
    assert "give --calibrate SOURCE" in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_scans_may_come_from_a_source_with_splits(lone_bundle, run, quickly, tmp_path):
    without = run.catalog.drop_columns("split")
    with pytest.raises(UsageError, match=r"judged on validation scans: .*--calibrate"):
        quantize_bundle(str(lone_bundle), tmp_path / "q", OPTIONS, without)
    source = str(run.folder / "catalog.parquet")
    command = ["quantize", str(lone_bundle), "-o", str(tmp_path / "q"), "--calibrate", source]
    done = CliRunner().invoke(app, [*command, "--allow-drop", "--scans", "6"])
    assert done.exit_code == 0, done.output
    assert "run it with --engine openvino" in done.output
    assert load_bundle(tmp_path / "q").fields.quantization.calibration_scans == 6


def test_files_that_do_not_belong_together_are_refused(made, tmp_path):
    shutil.copytree(made.bundle, tmp_path / "b")
    graph = tmp_path / "b" / GRAPH
    graph.write_bytes(graph.read_bytes() + b" ")
    with pytest.raises(BundleError, match="do not belong together"):
        load_bundle(tmp_path / "b")
    graph.unlink()
    with pytest.raises(BundleError, match=f"cannot read {GRAPH}"):
        load_bundle(tmp_path / "b")


def test_maps_without_contrast_agree_with_each_other_only():
    flat, slope = torch.zeros(1, 3, 3), torch.arange(9.0).reshape(1, 3, 3)
    first, second = (
        torch.cat([slope, flat, flat, slope]),
        torch.cat([2 * slope, flat, slope, -slope]),
    )
    np.testing.assert_allclose(correlations(first, second), [1, 1, 0, -1], atol=1e-12)


def test_its_graph_goes_through_the_layout_of_the_hub(made, tmp_path):
    push_bundle(made.bundle, str(tmp_path / "layout"))
    pulled = pull_bundle(str(tmp_path / "layout"), tmp_path / "back")
    assert pulled.quantized == load_bundle(made.bundle).quantized
    assert pulled.fingerprint == made.found["fingerprint"]
