"""Runs on Ray Train, on a handful of small synthetic scans."""

import json
import shutil
import signal

import numpy as np
import psutil
import pytest
import torch

from braintumor_ray import Predictor
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.errors import GateError, TrainingError, UsageError, WeightsError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.models.weights import load_pretrained
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training import run as run_module
from braintumor_ray.training.folds import cross_validate
from braintumor_ray.training.options import TrainOptions, Workers
from braintumor_ray.training.phases import phase_lines
from braintumor_ray.training.run import check_run, train
from braintumor_ray.training.trainer import runtime_env, scaling
from tests.builders import disc_scan, write_archive

pytestmark = pytest.mark.ray
QUICK = [
    "data.image_size=48",
    "data.batch_size=8",
    "stages.scratch.epochs=2",
    "data.fractions={train=0.5,val=0.3,test=0.2}",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, 61)  # 17 of them validate: not an even number
    (folder / "no_tumor" / "bad.png").write_bytes(b"")
    return folder


def options(output, *settings, workers=1, **changes):
    recipe = load_recipe(changes.pop("recipe", "demo"), [*QUICK, *settings])
    return TrainOptions(recipe, output, "none", Workers(workers), **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, archive, cluster):
    output = tmp_path_factory.mktemp("run") / "run"
    lines = []
    found = train(load_catalog(archive), options(output), lines.append)
    return output, found, lines


class TestARun:
    def test_it_ends_in_a_bundle_that_predicts(self, trained):
        output, found, _ = trained
        columns = Predictor.from_bundle(output / "bundle")([disc_scan(1)])
        assert columns["predicted_class"][0] in found.bundle.fields.class_names
        assert found.bundle.fields.domain_limit > 0
        assert found.bundle.fields.metrics["validation"]["n"] == found.history[0]["val_scans"]

    def test_history_curves_card_and_catalog_are_written(self, trained):
        output, found, _ = trained
        assert json.loads((output / "history.json").read_text()) == found.history
        assert [entry["epoch"] for entry in found.history] == [1, 2]
        assert (output / "curves.png").stat().st_size > 5000
        card = (output / "bundle" / "model_card.md").read_text()
        assert "not a medical device" in card
        assert "duplicate-free" in card

    def test_the_catalog_says_what_became_of_every_scan(self, trained):
        output, _, _ = trained
        rows = load_catalog(output / "catalog.parquet").to_pylist()
        assert len(rows) == 62
        (bad,) = [row for row in rows if row["status"] != "ok"]
        assert (bad["reason"], bad["split"]) == ("empty file (0 bytes)", None)
        groups = {}
        for row in rows:
            if row["split"]:
                groups.setdefault(row["duplicate_group"], set()).add(row["split"])
        assert all(len(splits) == 1 for splits in groups.values())

    def test_people_are_told_the_effective_batch_and_each_epoch(self, trained):
        _, _, lines = trained
        assert any("effective batch 8 = 8 x 1 workers" in line for line in lines)
        assert sum(line.startswith("epoch") for line in lines) == 2

    def test_a_finished_run_is_not_trained_again(self, trained):
        output, _, _ = trained
        with pytest.raises(TrainingError, match="finished run"):
            check_run(output)

    def test_another_recipe_in_the_same_folder_is_refused(self, trained, archive):
        output, _, _ = trained
        with pytest.raises(TrainingError, match="recipe field 'optimizer'"):
            train(load_catalog(archive), options(output, "optimizer.lr=0.5"), print)

    def test_the_same_seed_gives_the_same_history(self, trained, archive, tmp_path):
        _, found, _ = trained
        again = train(load_catalog(archive), options(tmp_path / "run"), str)
        for a, b in zip(found.history, again.history, strict=True):
            for key in ("train_loss", "val_loss", "val_accuracy", "lr"):
                assert a[key] == pytest.approx(b[key], abs=1e-6)

    def test_decoded_scans_are_reused_and_no_epoch_decodes_again(self, archive, tmp_path, cluster):
        """The files are gone after the first run: whatever decoded once more would fail."""
        shutil.copytree(archive, tmp_path / "archive")
        catalog = load_catalog(tmp_path / "archive")
        lines = []
        cache = str(tmp_path / "cache")
        train(catalog, options(tmp_path / "first", cache=cache), lines.append)
        shutil.rmtree(tmp_path / "archive")
        again = options(tmp_path / "second", "optimizer.lr=1e-4", cache=cache)
        assert len(train(catalog, again, lines.append).history) == 2
        assert any("found decoded" in line for line in lines)


def test_validation_is_the_same_on_one_and_two_workers(archive, tmp_path, cluster):
    still = ("optimizer.lr=1e-12", "stages.scratch.epochs=1", "stages.scratch.train='head'")
    one, two = (
        train(load_catalog(archive), options(tmp_path / str(n), *still, workers=n), str).history[0]
        for n in (1, 2)
    )
    assert one["val_scans"] == two["val_scans"]
    assert one["val_scans"] % 2 == 1, "an even number would not show dropped rows"
    for key in ("val_loss", "val_accuracy", "val_balanced_accuracy", "val_precision"):
        assert one[key] == pytest.approx(two[key], abs=1e-6)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_training_goes_on(archive, tmp_path, cluster):
    killed = []

    def kill_after_the_second_epoch(line):
        if line.startswith("epoch  2") and not killed:
            for child in psutil.Process().children(recursive=True):
                if any("ray::RayTrainWorker" in part for part in child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    killed.append(child.pid)
                    return

    settings = ("stages.scratch.epochs=6", "optimizer.average=0.9")
    found = train(
        load_catalog(archive),
        options(tmp_path / "run", *settings, workers=2),
        kill_after_the_second_epoch,
    )
    assert killed
    assert [entry["epoch"] for entry in found.history] == [1, 2, 3, 4, 5, 6]


def test_two_stages_go_on_from_the_best_weights(archive, tmp_path, cluster):
    recipe = (
        '{name="a",epochs=1,train="head"}',
        '{name="b",epochs=1,train=["layers.9","layers.12"],lr_scale=0.1}',
    )
    found = train(
        load_catalog(archive),
        options(tmp_path / "run", f"stages=[{','.join(recipe)}]", "class_weights='balanced'"),
        str,
    )
    assert [entry["stage"] for entry in found.history] == ["a", "b"]
    assert found.history[1]["lr"] < found.history[0]["lr"]
    phases = json.loads((tmp_path / "run" / "phases.json").read_text())
    assert [row["phase"] for row in phases] == ["after a", "after b", "at the tuned threshold"]
    assert phases[2]["threshold"] == found.bundle.fields.threshold
    assert phases == found.phases
    low, high = (phases[2]["intervals"]["accuracy"][name] for name in ("low", "high"))
    assert low <= phases[2]["accuracy"] <= high


def test_the_card_holds_the_test_figures_and_what_was_published(trained):
    output, found, _ = trained
    card = (output / "bundle" / "model_card.md").read_text()
    tested = found.phases[-1]
    assert f"Test split, n = {tested['n']}" in card
    assert f"| balanced accuracy | {tested['balanced_accuracy']:.3f} |" in card
    assert str(tested["confusion_matrix"]) in card
    recipe = load_recipe("mobilenetv2-finetune")
    lines = phase_lines(found.phases, recipe.published)
    assert lines[-1][0].startswith("published: at threshold 0.65")
    assert lines[-1][2:] == ["0.910", "-", "0.960", "-"]
    assert len({len(line) for line in lines}) == 1


def test_a_run_that_ended_before_saying_so_is_finished_not_refused(trained, archive, tmp_path):
    again = options(tmp_path / "run")
    first = train(load_catalog(archive), again, str)
    note = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(note | {"status": "training"}))
    second = train(load_catalog(archive), again, str)
    assert second.bundle.fingerprint == first.bundle.fingerprint
    assert len(second.history) == 2, "nothing was trained again"


def test_a_smaller_picture_in_an_early_stage(archive, tmp_path, cluster):
    stages = '[{name="small",epochs=1,image_size=32},{name="full",epochs=1}]'
    found = train(load_catalog(archive), options(tmp_path / "run", f"stages={stages}"), str)
    assert [entry["stage"] for entry in found.history] == ["small", "full"]
    assert found.bundle.fields.preprocessing.image_size == 48


def test_the_last_weights_are_kept_where_nothing_chooses(archive, tmp_path, cluster):
    """In bfloat16, where strided depthwise layers have a gradient of their own."""
    settings = ("data.image_size=32", "data.batch_size=8", "precision=bf16", "monitor=epoch")
    recipe = load_recipe("best", [*settings, "stages=[{name='all',epochs=2}]"])
    found = train(load_catalog(archive), TrainOptions(recipe, tmp_path / "run", "none"), str)
    assert all(np.isfinite(entry["train_loss"]) for entry in found.history)
    saved = torch.load(
        max((tmp_path / "run" / "ray").rglob("checkpoint.pt"), key=lambda p: p.stat().st_mtime),
        weights_only=True,
    )
    for key, value in saved["average"].items():
        assert torch.equal(found.bundle.state[key], value), key


@pytest.mark.slow
def test_folds_test_every_scan_once_and_go_on_after_an_interruption(archive, tmp_path, cluster):
    settings = ("stages.scratch.epochs=1",)
    lines = []
    catalog = load_catalog(archive)
    summary = cross_validate(catalog, options(tmp_path / "cv", *settings), 3, lines.append)
    tested = []
    for number in (1, 2, 3):
        rows = load_catalog(tmp_path / "cv" / f"fold-{number}" / "catalog.parquet").to_pylist()
        tested += [row["path"] for row in rows if row["split"] == "test"]
        assert {"train", "val", "test"} <= {row["split"] for row in rows}
    assert len(tested) == len(set(tested)) == 61
    assert sum(fold["n"] for fold in summary["folds"]) == 61
    accuracies = [fold["accuracy"] for fold in summary["folds"]]
    assert summary["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert summary["accuracy"]["low"] <= np.mean(accuracies) <= summary["accuracy"]["high"]
    again = cross_validate(catalog, options(tmp_path / "cv", *settings), 3, lines.append)
    assert again == summary
    assert sum(line.startswith("epoch") for line in lines) == 3, "no fold was trained twice"


class TestBeforeTraining:
    def test_people_are_told_of_unbalanced_classes_and_missing_patients(self, tmp_path, cluster):
        write_archive(tmp_path / "a", 60, classes=("no_tumor",))
        write_archive(tmp_path / "a", 3, seed=1, classes=("glioma",))
        lines = []
        settings = options(tmp_path / "run", "stages.scratch.epochs=1")
        found = train(load_catalog(tmp_path / "a"), settings, lines.append)
        assert any("unbalanced 1:" in line for line in lines)
        assert any("no patient ids" in line for line in lines)
        assert found.phases[-1]["n"] > 0

    def test_sigmoid_for_four_classes_is_refused(self, archive, tmp_path):
        with pytest.raises(UsageError, match="sigmoid"):
            train(load_catalog(archive), options(tmp_path / "run", "model.output=sigmoid"), str)

    def test_one_class_is_refused(self, tmp_path):
        write_archive(tmp_path / "a", 6, classes=("no_tumor",))
        with pytest.raises(UsageError, match="at least two"):
            train(load_catalog(tmp_path / "a"), options(tmp_path / "run"), str)

    def test_a_class_with_too_few_scans_is_named(self, tmp_path, cluster):
        write_archive(tmp_path / "a", 12, classes=("no_tumor", "glioma"))
        write_archive(tmp_path / "a", 1, seed=9, classes=("rare",))
        with pytest.raises(UsageError, match="rare"):
            train(load_catalog(tmp_path / "a"), options(tmp_path / "run"), str)

    def test_a_layer_that_does_not_exist_is_found_at_once(self, archive, tmp_path):
        stages = 'stages=[{name="a",epochs=1,train=["layers.99"]}]'
        with pytest.raises(UsageError, match=r"layers\.99"):
            train(load_catalog(archive), options(tmp_path / "run", stages), str)

    def test_an_official_split_that_leaks_is_refused(self, tmp_path, cluster):
        for part in ("Training", "Testing"):
            write_archive(tmp_path / "a" / part, 24)  # the same scans on both sides
        with pytest.raises(GateError, match="--allow-leakage"):
            train(load_catalog(tmp_path / "a"), options(tmp_path / "run", split_by="official"), str)

    def test_missing_pretrained_weights_are_an_error_unless_the_scans_are_phantoms(
        self, archive, tmp_path, cluster, monkeypatch
    ):
        def unreachable(*_):
            raise WeightsError("the hub cannot be reached; use --weights FILE")

        monkeypatch.setattr(run_module, "load_pretrained", unreachable)
        base = options(tmp_path / "run")
        real = TrainOptions(base.recipe, base.output, "imagenet", base.workers)
        with pytest.raises(WeightsError, match="--weights FILE"):
            train(load_catalog(archive), real, str)
        lines = []
        phantoms = TrainOptions(
            base.recipe, tmp_path / "run2", "imagenet", base.workers, synthetic=True
        )
        monkeypatch.setattr(run_module, "fit", _stop)
        with pytest.raises(KeyboardInterrupt):
            train(load_catalog(archive), phantoms, lines.append)
        assert any("random" in line for line in lines)
        assert load_pretrained is not unreachable


def _stop(*_):
    raise KeyboardInterrupt


def test_gpus_are_asked_of_ray_one_per_worker():
    asked = scaling(Workers(4, use_gpu=True))
    assert asked.num_workers == 4
    assert asked.resources_per_worker == {"CPU": 1.0, "GPU": 1.0}
    assert scaling(Workers((2, 8))).num_workers == (2, 8)
    assert Workers((2, 8)).most == 8


def test_workers_on_cpus_keep_freed_memory(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert runtime_env(Workers(2))["env_vars"]["MALLOC_MMAP_MAX_"] == "0"
    assert runtime_env(Workers(2, use_gpu=True)) == {}


def test_temperature_and_threshold_never_see_test_labels(trained, archive, tmp_path):
    """The bundle is the same whatever the test split's labels say."""
    output, found, _ = trained
    catalog = load_catalog(output / "catalog.parquet")
    labels, split = catalog["label"].to_pylist(), catalog["split"].to_pylist()
    rotated = {a: b for a, b in zip(sorted(set(labels)), sorted(set(labels))[1:] + sorted(set(labels))[:1])}  # fmt: skip  # noqa: B905, C416, E501
    planted = [rotated[a] if s == "test" else a for a, s in zip(labels, split, strict=True)]
    index = catalog.schema.get_field_index("label")
    import pyarrow as pa

    moved = catalog.set_column(index, "label", pa.array(planted))
    again = train(moved, options(tmp_path / "run"), str)
    ours, theirs = load_bundle(output / "bundle").fields, again.bundle.fields
    assert ours.threshold == theirs.threshold
    assert ours.temperature == theirs.temperature
    assert ours.domain_limit == pytest.approx(theirs.domain_limit, rel=1e-6)
    assert np.isfinite(found.bundle.fields.temperature)
