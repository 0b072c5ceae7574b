"""Engines behind the predictor: the same columns, whatever runs the backbone."""

import sys
import threading

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from braintumor_ray import Predictor
from braintumor_ray.engines import choice as choice_module
from braintumor_ray.engines.choice import Choice, fastest_engine, resolve_engine
from braintumor_ray.engines.engine import OnnxEngine
from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import ViewFields, load_bundle, save_bundle
from braintumor_ray.models.device import use_bf16
from braintumor_ray.scoring.predict_stage import ParallelPredictor
from tests.builders import disc_scan, make_fields, make_model
from tests.command import run_python

ENGINES = ("openvino", "onnxruntime")
SCANS = [disc_scan(seed, (60 + 7 * seed, 110 - 5 * seed)) for seed in range(7)]
NETWORKS = [
    pytest.param({}, id="linear"),
    pytest.param({"head": "attention"}, id="attention"),
    pytest.param({"head": "flatten"}, id="flatten"),
    pytest.param({"backbone": "convnext_atto"}, id="norm-after-pooling"),
    pytest.param(
        {"backbone": "mobilenetv2_100", "neck": "topdown", "gate": True, "pooling": "lse"},
        id="neck-gate-log-sum-exp",
    ),
]
CPU = torch.device("cpu")


def bundle_of(path, **options):
    model = make_model(size=64, seed=2, **options)
    save_bundle(path, make_fields(model.architecture), model, None, "# card\n")
    return path


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", NETWORKS)
def test_every_engine_gives_what_torch_gives(engine, options, tmp_path):
    bundle = bundle_of(tmp_path / "b", **options)
    wanted = Predictor.from_bundle(bundle, "cpu", precision="fp32")
    found = Predictor.from_bundle(bundle, "cpu", precision="fp32", engine=engine)
    assert found.choice.engine == engine
    ours, theirs = wanted(SCANS), found(SCANS)
    assert ours.keys() == theirs.keys()
    assert ours["predicted_class"] == theirs["predicted_class"]
    np.testing.assert_allclose(ours["probabilities"], theirs["probabilities"], atol=1e-5)
    images = np.stack([disc_scan(seed, (64, 64)) for seed in range(20)])  # two batches, one short
    raw, other = wanted.forward(images), found.forward(images)
    for name, maps in raw.maps.items():
        np.testing.assert_allclose(other.maps[name], maps, rtol=0, atol=1e-4 * (maps.max() or 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_other_methods_and_classes_work_in_every_engine(engine, bundle_path):
    options = {"precision": "fp32", "cam_class": "positive", "methods": ("hirescam", "xgradcam")}
    wanted = Predictor.from_bundle(bundle_path, "cpu", **options)(SCANS)
    found = Predictor.from_bundle(bundle_path, "cpu", engine=engine, **options)(SCANS)
    assert found["cam_class"] == wanted["cam_class"]
    for name in options["methods"]:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_maps_several_classes_from_one_pass(engine, bundle_path):
    predictor = Predictor.from_bundle(bundle_path, "cpu", precision="fp32", engine=engine)
    names = predictor.bundle.fields.class_names
    for name, maps in predictor.explain_classes(SCANS, names)[1].items():
        wanted = predictor.explaining(name)(SCANS)["gradcam"]
        np.testing.assert_allclose(maps["gradcam"], wanted, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_that_share_an_engine_do_not_mix_their_scans(engine, bundle_path):
    """Each output is a view of memory that the next call of the same thread overwrites."""
    predictor = Predictor.from_bundle(
        bundle_path, "cpu", precision="fp32", engine=engine, parallel=2, batch_size=4
    )
    batches = [np.stack([disc_scan(8 * n + i, (64, 64)) for i in range(8)]) for n in range(4)]
    alone = [predictor.forward(batch) for batch in batches]
    found = {}

    def work(number):
        for _ in range(5):
            found[number] = predictor.forward(batches[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, raw in enumerate(alone):
        np.testing.assert_allclose(found[number].logits, raw.logits, atol=1e-6)
        np.testing.assert_allclose(found[number].maps["gradcam"], raw.maps["gradcam"], atol=1e-6)


def test_a_short_batch_and_none_at_all(bundle_path):
    predictor = Predictor.from_bundle(bundle_path, "cpu", precision="fp32", engine="openvino")
    whole, one = predictor(SCANS), predictor(SCANS[:1])
    np.testing.assert_allclose(whole["probabilities"][:1], one["probabilities"], atol=1e-5)
    assert predictor([])["gradcam"].shape == (0, 8, 8)


def test_openvino_takes_bf16_where_torch_would(bundle_path):
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UsageError, match="no bf16"):
            Predictor.from_bundle(bundle_path, "cpu", engine="openvino", precision="bf16")
        return
    found = Predictor.from_bundle(bundle_path, "cpu", engine="openvino")
    assert found.bf16 == use_bf16(CPU, "auto")
    rough = Predictor.from_bundle(bundle_path, "cpu", engine="openvino", precision="bf16")
    exact = Predictor.from_bundle(bundle_path, "cpu", engine="openvino", precision="fp32")
    difference = np.abs(rough(SCANS)["probabilities"] - exact(SCANS)["probabilities"])
    assert 0 < difference.max() < 0.02


def test_engines_that_cannot_run_are_refused(bundle_path, monkeypatch):
    with pytest.raises(UsageError, match="no bf16 on CPUs"):
        Predictor.from_bundle(bundle_path, "cpu", engine="onnxruntime", precision="bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="'openvino' runs on CPUs"):
        Predictor.from_bundle(bundle_path, "cuda", engine="openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'braintumor-ray\[openvino\]'"):
        Predictor.from_bundle(bundle_path, "cpu", engine="openvino")


def test_on_a_machine_with_a_gpu_a_named_cpu_engine_runs_on_the_cpu(bundle_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Predictor.from_bundle(bundle_path, engine="openvino").device == CPU


def slow_and_quick(monkeypatch, seconds):
    """Engines that take so long, by name."""

    class Fake:
        def __init__(self, name):
            self.name = name

        def features(self, _):
            threading.Event().wait(seconds[self.name])

    made = lambda name, *_: Fake(name)  # noqa: E731
    monkeypatch.setattr(choice_module, "make_engine", made)


@pytest.mark.parametrize(
    ("openvino", "expected"), [(0.01, "openvino"), (0.0195, "torch"), (0.03, "torch")]
)
def test_auto_takes_another_engine_only_for_a_clear_gain(
    openvino, expected, bundle_path, monkeypatch
):
    seconds = {"torch": 0.02, "openvino": openvino, "onnxruntime": 0.04}
    slow_and_quick(monkeypatch, seconds)
    choice = fastest_engine(load_bundle(bundle_path), CPU)
    assert choice.engine == expected
    assert choice.scans_per_s.keys() == seconds.keys()
    assert "measured, scans/s: torch" in choice.describe()


def test_auto_leaves_out_an_engine_that_cannot_run_the_network(bundle_path, monkeypatch, caplog):
    """Errors as the libraries raise them: those of ONNX Runtime are no RuntimeError."""
    monkeypatch.setattr("braintumor_ray.engines.engine.to_onnx", lambda *_: b"no graph")
    monkeypatch.setattr("braintumor_ray.engines.convert.to_onnx", lambda *_: b"no graph")
    choice = fastest_engine(load_bundle(bundle_path), CPU)
    assert (choice.engine, list(choice.scans_per_s)) == ("torch", ["torch"])
    for name in ENGINES:
        assert f"engine '{name}' cannot run this network" in caplog.text
    assert "INVALID_PROTOBUF" in caplog.text


def test_auto_leaves_out_an_engine_that_fails_in_its_first_batch(bundle_path, monkeypatch, caplog):
    def fail(*_):
        raise Fail("no kernel")

    monkeypatch.setattr(OnnxEngine, "features", fail)
    assert "onnxruntime" not in fastest_engine(load_bundle(bundle_path), CPU).scans_per_s
    assert "no kernel" in caplog.text


def test_a_network_that_torch_cannot_run_is_an_error(bundle_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(choice_module, "make_engine", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        fastest_engine(load_bundle(bundle_path), CPU)


def test_auto_is_torch_where_nothing_else_is_installed_and_on_gpus(bundle_path, monkeypatch):
    bundle = load_bundle(bundle_path)
    assert fastest_engine(bundle, torch.device("cuda")) == Choice("torch")
    monkeypatch.setattr(choice_module, "is_installed", lambda _: False)
    assert fastest_engine(bundle, CPU) == Choice("torch")
    assert resolve_engine("auto", str(bundle_path), device="cpu") == Choice("torch")


def test_auto_of_a_job_is_measured_in_a_process_of_its_own(bundle_path):
    choice = resolve_engine("auto", str(bundle_path), device="cpu", parallel=2)
    assert choice.engine in ("torch", *ENGINES)
    assert {"torch", "openvino"} <= choice.scans_per_s.keys()
    assert all(rate > 0 for rate in choice.scans_per_s.values())


INTERRUPTED = """
import gc, os, signal, sys, time
from braintumor_ray import Predictor
engines = [Predictor.from_bundle(sys.argv[1], "cpu", engine="openvino") for _ in range(2)]
while engines:
    del engines[0]
    gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_process_can_be_interrupted_after_openvino_ran_in_it(bundle_path):
    done = run_python("-c", INTERRUPTED, bundle_path)
    assert (done.stdout, done.returncode) == ("interrupted\n", 0), done.stderr


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        (None, "No such file or directory"),
        ("echo a remark >&2; exec sleep 60", "timed out after 1 seconds"),
        ("echo a remark >&2; echo no memory >&2; exit 1", "no memory"),
        ("kill -9 $$", "died with <Signals.SIGKILL: 9>"),
    ],
    ids=["not started", "too slow", "failed", "killed"],
)
def test_a_measurement_that_fails_is_told_in_one_line(
    bundle_path, monkeypatch, tmp_path, program, cause
):
    python = tmp_path / "python"
    if program:
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
    monkeypatch.setattr(choice_module.sys, "executable", str(python))
    monkeypatch.setattr(choice_module, "TIMEOUT_S", 1 if cause.startswith("timed") else 60)
    with pytest.raises(UsageError, match=rf"could not be measured \(.*{cause}.*\); name one"):
        resolve_engine("auto", str(bundle_path), device="cpu")


def test_a_jobs_batches_side_by_side_equal_one_after_another(bundle_path):
    """Its own process would keep one thread per operation; here torch's count is put back."""
    threads = torch.get_num_threads()
    predictor = Predictor.from_bundle(
        bundle_path, "cpu", precision="fp32", engine="openvino", parallel=2, batch_size=3
    )
    squares = [disc_scan(seed, (64, 64)) for seed in range(8)]
    heads = np.ones((8, 3, 8, 8), np.float32)
    one = predictor.predict(squares, heads)
    try:
        both = ParallelPredictor(predictor, 2).predict(squares, heads)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(both["probabilities"], one["probabilities"], atol=1e-6)
    np.testing.assert_array_equal(both["gradcam_pp"], one["gradcam_pp"])


@pytest.mark.parametrize("engine", ENGINES)
def test_views_are_averaged_alike_and_leave_the_maps_those_of_the_scan(engine, bundle_path):
    bundle = load_bundle(bundle_path).averaging(ViewFields(threshold=0.5, temperature=1.0))
    wanted = Predictor(bundle, device="cpu", precision="fp32")(SCANS)
    found = Predictor(bundle, device="cpu", precision="fp32", engine=engine)(SCANS)
    np.testing.assert_allclose(found["probabilities"], wanted["probabilities"], atol=1e-5)
    np.testing.assert_allclose(found["gradcam"], wanted["gradcam"], rtol=2e-3, atol=1e-6)
