"""One engine and one precision per results folder, decided once."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.engines.choice import Choice
from braintumor_ray.errors import ResultsError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.models.device import use_bf16
from braintumor_ray.predict.results import foreign_engine, read_results, results_folder
from braintumor_ray.scoring import job
from braintumor_ray.scoring.options import PredictSettings, ScoreOptions
from braintumor_ray.scoring.result_settings import open_results, resolve_options, with_stored_engine
from braintumor_ray.scoring.verify import verify
from tests.builders import write_archive


def options(bundle="b", **predict):
    return ScoreOptions(PredictSettings(str(bundle), **predict))


def measured():
    return Choice("openvino", {"torch": 10.0, "openvino": 20.0})


def not_measured():
    raise AssertionError("nothing was to be measured")


def decide(chosen, meta=None, measure=not_measured, gains=False):
    found, choice = resolve_options(chosen, meta, measure, lambda: gains)
    return found.predict.engine, found.predict.precision, choice


def test_a_new_folder_is_torchs_unless_the_user_names_another():
    assert decide(options())[:2] == ("torch", "fp32")
    assert decide(options(), gains=True)[:2] == ("torch", "bf16")
    assert decide(options(engine="onnxruntime"), gains=True)[:2] == ("onnxruntime", "fp32")
    found = decide(options(engine="openvino"), gains=False)
    assert found[:2] == ("openvino", "bf16" if use_bf16(torch.device("cpu"), "auto") else "fp32")
    assert decide(options(engine="openvino", precision="fp32"))[1] == "fp32"


def test_auto_takes_what_was_measured():
    engine, _, choice = decide(options(engine="auto"), measure=measured)
    assert engine == "openvino"
    assert choice.scans_per_s == {"torch": 10.0, "openvino": 20.0}


@pytest.mark.parametrize("engine", [None, "auto"])
def test_a_folder_keeps_its_engine_and_precision(engine):
    meta = {"engine": "openvino", "precision": "bf16"}
    assert decide(options(engine=engine), meta)[:2] == ("openvino", "bf16")
    assert decide(options(engine=engine), {})[:2] == ("torch", "auto"), "an earlier folder"


def test_another_engine_or_precision_is_refused(tmp_path, bundle_path):
    bundle = load_bundle(bundle_path)
    folder = results_folder(tmp_path / "results")
    first = options(bundle_path, engine="openvino", precision="bf16")
    open_results(folder, bundle, first)
    assert folder.meta["engine"] == "openvino"
    open_results(folder, bundle, with_stored_engine(options(bundle_path), folder.meta))
    for other, message in (
        ({"engine": "torch"}, "engine 'openvino', this run has 'torch'; score into another"),
        ({"precision": "fp32"}, "precision 'bf16', this run has 'fp32'"),
    ):
        with pytest.raises(ResultsError, match=message):
            open_results(
                folder, bundle, with_stored_engine(options(bundle_path, **other), folder.meta)
            )


def test_a_folder_of_before_is_torchs_in_any_precision(tmp_path, bundle_path):
    bundle, folder = load_bundle(bundle_path), results_folder(tmp_path / "results")
    open_results(folder, bundle, options(bundle_path))
    meta = {k: v for k, v in folder.meta.items() if k not in ("engine", "precision")}
    (tmp_path / "results" / "results.json").write_text(json.dumps(meta))
    for kept in ({}, {"precision": "fp32"}, {"precision": "bf16"}, {"engine": "torch"}):
        again = results_folder(tmp_path / "results")
        open_results(again, bundle, with_stored_engine(options(bundle_path, **kept), again.meta))
    with pytest.raises(ResultsError, match="engine 'torch', this run has 'openvino'"):
        open_results(again, bundle, options(bundle_path, engine="openvino"))


def test_manifests_of_another_engine_are_told():
    meta = {"engine": "openvino", "precision": "bf16"}
    assert foreign_engine(meta, meta) is None
    assert foreign_engine({}, {}) is None
    assert foreign_engine({"engine": "torch", "precision": "fp32"}, {}) is None
    earlier_release = foreign_engine({}, meta)
    assert earlier_release == "rows made with engine 'torch' among those of 'openvino'"
    assert "in fp32 among those in bf16" in str(foreign_engine({**meta, "precision": "fp32"}, meta))


def test_predictors_of_other_engines_get_no_gpu():
    asked = options(engine="openvino")
    assert asked.request_for(gpus=8).gpus_per_predictor == 0
    assert options().request_for(gpus=8).gpus_per_predictor == 1


@pytest.mark.ray
def test_a_job_in_openvino_is_whole_and_its_next_night_goes_on_in_it(
    tmp_path, bundle_path, cluster, monkeypatch
):
    monkeypatch.setattr(job, "resolve_engine", lambda *_, **__: measured())
    write_archive(tmp_path / "archive", 6)
    results = str(tmp_path / "results")
    asked = options(bundle_path, engine="auto", precision="fp32")
    first = job.score(load_catalog(tmp_path / "archive"), results, asked)
    assert (first.engine, first.precision) == ("openvino", "fp32")
    assert first.engine_scans_per_s == measured().scans_per_s
    monkeypatch.setattr(job, "resolve_engine", not_measured)
    write_archive(tmp_path / "archive", 3, seed=7)
    tonight = replace(asked, predict=replace(asked.predict, engine=None, precision="auto"))
    second = job.score(load_catalog(tmp_path / "archive"), results, tonight)
    assert (second.scans, second.engine, second.precision) == (3, "openvino", "fp32")
    assert read_results(results).num_rows == 9
    assert verify(results).differences == []
    manifest = tmp_path / "results" / "manifests" / "000002.json"
    found = json.loads(manifest.read_text())
    assert (found["engine"], found["precision"]) == ("openvino", "fp32")
    shutil.copytree(results, tmp_path / "mixed")
    del found["engine"]  # as an earlier release, which knows of no engines, would have written it
    (tmp_path / "mixed" / "manifests" / "000002.json").write_text(json.dumps(found))
    (difference,) = verify(str(tmp_path / "mixed")).differences
    assert difference == "generation 2: rows made with engine 'torch' among those of 'openvino'"
