"""Runs in MLflow, in the file store of a folder; a server that is not there."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from braintumor_ray import Predictor
from braintumor_ray.errors import TrackingError
from braintumor_ray.tracking.options import TrackingOptions
from braintumor_ray.tracking.run import Run, flattened, numbers, tracked
from tests.builders import disc_scan, make_bundle

FRESH = """
import json, os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import cv2, mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/braintumor-test/1")
images = list(np.load(sys.argv[2]))
found = model.predict(images)
files = pd.DataFrame({"image": [cv2.imencode(".png", image)[1].tobytes() for image in images]})
assert model.predict(files).equals(found)
assert "gradcam" not in model.predict(images, params={"explain": False})
assert "torch" in sys.modules and "ray" not in sys.modules
with open(sys.argv[3], "w") as file:
    json.dump(found.to_dict(orient="list"), file, default=lambda value: value.item())
"""


@pytest.fixture(scope="module")
def mlflow():
    return pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")


@pytest.fixture(scope="module")
def run(mlflow, tmp_path_factory):
    """A run as `train` makes it: (folder of the store, the run, its bundle, lines for people)."""
    folder = tmp_path_factory.mktemp("tracked")
    make_bundle(folder / "run" / "bundle")
    (folder / "run" / "curves.png").write_bytes(b"png")
    lines = []
    with tracked(TrackingOptions(mlflow=str(folder / "mlruns")), "test", lines.append) as told:
        told.parameters({"optimizer": {"lr": 0.1}, "classes": None})
        for epoch in (1, 2):
            told.epoch({"epoch": epoch, "stage": "all", "val_loss": 1 / epoch, "lr": 0.1})
            seen = mlflow.MlflowClient().get_metric_history(told.run_id, "val_loss")
            assert len(seen) == epoch  # while it goes on, not at the end
        told.figures({"test": {"accuracy": 0.75, "auroc": None, "curve": [1, 2]}})
        told.files(str(folder / "run"), ["curves.png", "phases.json"])
        told.bundle(str(folder / "run" / "bundle"), "braintumor-test")
    found = mlflow.MlflowClient().get_run(told.run_id)
    return folder, found, lines


def test_parameters_figures_and_files_are_in_the_run(run, mlflow):
    _, found, lines = run
    assert found.info.status == "FINISHED"
    assert found.data.params == {"optimizer.lr": "0.1", "classes": "None"}
    assert found.data.metrics == {"val_loss": 0.5, "lr": 0.1, "test.accuracy": 0.75}
    files = mlflow.MlflowClient().list_artifacts(found.info.run_id)
    assert "curves.png" in [file.path for file in files]
    assert len(lines) == 1
    assert found.info.run_id in lines[0]


def test_the_registered_model_predicts_as_the_predictor_in_a_fresh_process(run, tmp_path):
    folder, _, _ = run
    images = np.stack([disc_scan(seed) for seed in range(3)])
    np.save(tmp_path / "images.npy", images)
    target = tmp_path / "found.json"
    uri = (folder / "mlruns").as_uri()
    made = subprocess.run(
        [sys.executable, "-c", FRESH, uri, str(tmp_path / "images.npy"), str(target)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    found = json.loads(target.read_text())
    expected = Predictor.from_bundle(folder / "run" / "bundle")(list(images))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            np.testing.assert_array_equal(np.array(found[name], values.dtype), values, name)
        else:
            assert found[name] == list(values), name


def test_nothing_of_the_model_is_pickled(run):
    folder, _, _ = run
    names = [path.name for path in folder.joinpath("mlruns").rglob("*") if path.is_file()]
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]


def test_an_interrupted_run_goes_on_and_a_failed_one_is_marked(mlflow, tmp_path):
    options = TrackingOptions(mlflow=str(tmp_path / "mlruns"))
    ids = []

    def fail():
        with tracked(options, "a", print, tmp_path / "run") as told:
            ids.append(told.run_id)
            told.parameters({"workers": 1})
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        fail()
    assert mlflow.MlflowClient().get_run(ids[0]).info.status == "FAILED"
    with tracked(options, "a", print, tmp_path / "run") as told:
        told.parameters({"workers": 2, "more": 3})
        ids.append(told.run_id)
    assert ids[0] == ids[1]
    found = mlflow.MlflowClient().get_run(ids[0])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"workers": "1", "more": "3"}
    shutil.rmtree(tmp_path / "mlruns" / found.info.experiment_id / ids[0])
    with tracked(options, "a", print, tmp_path / "run") as told:
        assert told.run_id != ids[0]  # somebody has deleted it


def test_a_server_that_does_not_answer_is_one_line_without_the_password(mlflow):
    options = TrackingOptions(mlflow="http://me:secret@127.0.0.1:9/")
    with pytest.raises(TrackingError) as caught, tracked(options, "x", print):
        raise AssertionError("the work must not start")
    text = str(caught.value)
    assert "http://***@127.0.0.1:9/" in text
    assert "secret" not in text
    assert "\n" not in text


def test_a_server_that_goes_away_costs_no_work_and_gets_the_figures_later(mlflow, tmp_path):
    lines = []
    with tracked(TrackingOptions(mlflow=str(tmp_path / "a")), "x", lines.append) as told:
        whole = told._client
        told._client = mlflow.MlflowClient("http://127.0.0.1:9")
        told.epoch({"epoch": 1, "val_loss": 1.0})
        told._client = whole
        told.epoch({"epoch": 2, "val_loss": 0.5})
    steps = [metric.step for metric in whole.get_metric_history(told.run_id, "val_loss")]
    assert steps == [1, 2]
    assert [line for line in lines if "epoch 1" in line]


def test_without_the_option_nothing_is_tracked():
    with tracked(TrackingOptions(), "x", print) as told:
        told.epoch({"epoch": 1})
    assert type(told) is Run


def test_nested_settings_become_flat_names_and_only_numbers_become_figures():
    nested = {"a": {"b": 1, "c d!": [1]}, "e": True, "f": float("nan"), "g": None, "h": 2.5}
    assert flattened(nested) == {**{k: nested[k] for k in "efgh"}, "a.b": 1, "a.c d_": [1]}
    assert numbers(nested) == {"a.b": 1.0, "h": 2.5}
