"""What the figures of the folds say together."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from braintumor_ray.errors import TrainingError
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training import folds
from braintumor_ray.training.folds import SUMMARIZED, _mean_interval, cross_validate
from braintumor_ray.training.options import TrainOptions
from braintumor_ray.training.run_folder import run_folder


def test_the_interval_of_the_mean_is_student_s():
    values = [0.8, 0.9, 0.7, 0.85]
    found = _mean_interval([*values, None])
    low, high = stats.t.interval(0.95, 3, sum(values) / 4, stats.sem(values))
    assert found == pytest.approx({"mean": sum(values) / 4, "low": low, "high": high})


@pytest.mark.parametrize(("values", "mean"), [([], None), ([None], None), ([0.5, None], 0.5)])
def test_fewer_than_two_folds_have_no_interval(values, mean):
    assert _mean_interval(values) == {"mean": mean, "low": None, "high": None}


def test_equal_folds_have_an_interval_without_width():
    assert _mean_interval([0.5, 0.5, 0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}


@pytest.fixture
def quickly(monkeypatch):
    """Folds that only say what was trained in them; returns the folders, as they are trained."""
    trained = []

    def plan(catalog, options, *_):
        parts = [options.recipe.name, options.recipe.seed, catalog["split"].to_pylist()]
        return SimpleNamespace(fingerprint=str(parts))

    def train(catalog, options, say, *_):
        folder = run_folder(options.output)
        folder.claim(options.recipe, plan(catalog, options, say).fingerprint)
        tested = {**dict.fromkeys(SUMMARIZED, 0.5), "n": 4}
        folder.write_json([tested], "phases.json")
        folder.write_note(status="finished")
        trained.append(folder.location)

    monkeypatch.setattr(folds, "plan_run", plan)
    monkeypatch.setattr(folds, "train", train)
    monkeypatch.setattr(folds, "_fold_splits", lambda *a: [np.array(["train"] * 8)] * a[3])
    monkeypatch.setattr(folds, "prepare", lambda *_: Prepared("network"))
    return trained


@dataclass(frozen=True)
class Prepared:
    """What folds share, but for the network."""

    model: str


def catalog(labels="abababab"):
    paths = [f"{n}.png" for n in range(8)]
    return pa.table({"path": paths, "frame": [0] * 8, "label": list(labels)})


def test_finished_folds_are_kept_and_those_of_anything_else_are_refused(quickly, tmp_path):
    chosen = TrainOptions(load_recipe("demo"), tmp_path, "none")
    first = cross_validate(catalog(), chosen, 2, str)
    assert cross_validate(catalog(), chosen, 2, str) == first
    assert len(quickly) == 2
    assert run_folder(tmp_path).note()["status"] == "finished"
    other = replace(chosen, recipe=load_recipe("demo", ["seed=1"]))
    with pytest.raises(TrainingError, match=r"recipe field 'seed'.*choose another --output"):
        cross_validate(catalog(), other, 2, str)
    for table, options, count in (
        (catalog(), chosen, 3),
        (catalog("aaaabbbb"), chosen, 2),
        (catalog().slice(1), chosen, 2),
        (catalog(), replace(chosen, weights="imagenet"), 2),
        (catalog(), replace(chosen, truth="masks"), 2),
    ):
        with pytest.raises(TrainingError, match="other data, labels, weights, truth or number"):
            cross_validate(table, options, count, str)
    assert len(quickly) == 2


def test_a_finished_fold_of_another_run_is_refused(quickly, tmp_path):
    chosen = TrainOptions(load_recipe("demo"), tmp_path, "none")
    cross_validate(catalog(), chosen, 2, str)
    run_folder(tmp_path / "fold-2").write_note(fingerprint="another")
    with pytest.raises(TrainingError, match="fold-2"):
        cross_validate(catalog(), chosen, 2, str)
