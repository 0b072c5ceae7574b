"""Runs on Ray Train, on a handful of small synthetic scans."""

import json
import signal
from dataclasses import replace

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from braintumor_ray import Predictor
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.errors import GateError, TrainingError, UsageError, WeightsError
from braintumor_ray.models.weights import load_pretrained
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training import run as run_module
from braintumor_ray.training.folds import cross_validate
from braintumor_ray.training.options import TrainOptions, Workers
from braintumor_ray.training.phases import phase_lines
from braintumor_ray.training.run import check_run, train
from braintumor_ray.training.trainer import runtime_env, scaling
from tests.builders import disc_scan, write_archive
from tests.training.here import in_this_process

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


@pytest.fixture(scope="module")
def catalog(archive):
    return load_catalog(archive)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Decoded scans that runs of this file share."""
    return str(tmp_path_factory.mktemp("cache"))


def options(output, *settings, workers=1, **changes):
    recipe = load_recipe(changes.pop("recipe", "demo"), [*QUICK, *settings])
    return TrainOptions(recipe, output, "none", Workers(workers), **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, catalog, cache, cluster):
    output = tmp_path_factory.mktemp("run") / "run"
    lines = []
    found = train(catalog, options(output, cache=cache), lines.append)
    return output, found, lines


@pytest.fixture(scope="module")
def trained_again(trained, archive, cache, tmp_path_factory):
    """The same seed and split, decoded scans without their files, and wrong labels in 'test'."""
    output = tmp_path_factory.mktemp("again") / "run"
    planted = with_other_test_labels(load_catalog(trained[0] / "catalog.parquet"))
    away = archive.rename(archive.with_name("away"))  # whatever decoded once more would fail
    lines = []
    try:
        found = train(planted, options(output, cache=cache), lines.append)
    finally:
        away.rename(archive)
    return output, found, lines, planted


def with_other_test_labels(catalog):
    labels, split = catalog["label"].to_pylist(), catalog["split"].to_pylist()
    names = sorted(set(labels))
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    planted = [following[a] if s == "test" else a for a, s in zip(labels, split, strict=True)]
    index = catalog.schema.get_field_index("label")
    return catalog.set_column(index, "label", pa.array(planted))


STILL = '{name="still",epochs=1,train="head",lr_scale=1e-9}'  # validates what it began with


@pytest.fixture(scope="module")
def staged(tmp_path_factory, catalog, cache, cluster):
    """A stage that learns nothing, one on smaller pictures, and one of other layers."""
    output = tmp_path_factory.mktemp("staged") / "run"
    stages = (
        STILL,
        '{name="small",epochs=1,train="head",image_size=32}',
        '{name="full",epochs=1,train=["layers.9","layers.12"],lr_scale=0.1}',
    )
    settings = (f"stages=[{','.join(stages)}]", "class_weights='balanced'")
    with in_this_process(output / "ray"):
        return output, train(catalog, options(output, *settings, cache=cache), str)


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory, cluster):
    """A run in bfloat16, where strided depthwise layers have a gradient of their own."""
    folder, lines = tmp_path_factory.mktemp("unbalanced"), []
    write_archive(folder / "a", 40, classes=("no_tumor",))
    write_archive(folder / "a", 3, seed=1, classes=("glioma",))
    settings = ("data.image_size=32", "data.batch_size=8", "precision=bf16", "monitor=epoch")
    recipe = load_recipe("best", [*settings, *QUICK[3:4], "stages=[{name='all',epochs=2}]"])
    chosen = TrainOptions(recipe, folder / "run", "none")
    with in_this_process(folder / "run" / "ray"):
        return folder / "run", train(load_catalog(folder / "a"), chosen, lines.append), lines


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
        assert "Trained for 2 of at most 2 epochs." in card

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

    def test_another_recipe_in_the_same_folder_is_refused(self, trained, catalog, cache):
        output, _, _ = trained
        kept = {path: path.read_bytes() for path in output.glob("*.*")}
        assert "catalog.parquet" in {path.name for path in kept}
        with pytest.raises(TrainingError, match="recipe field 'optimizer'"):
            train(catalog, options(output, "optimizer.lr=0.5", cache=cache), print)
        with pytest.raises(TrainingError, match="recipe field 'seed'"):  # and another split
            train(catalog, options(output, "seed=1", cache=cache), print)
        assert {path: path.read_bytes() for path in output.glob("*.*")} == kept

    def test_the_same_seed_gives_the_same_history(self, trained, trained_again):
        for a, b in zip(trained[1].history, trained_again[1].history, strict=True):
            for key in ("train_loss", "val_loss", "val_accuracy", "lr"):
                assert a[key] == pytest.approx(b[key], abs=1e-6)

    def test_decoded_scans_are_reused_and_no_epoch_decodes_again(self, trained_again):
        _, found, lines, _ = trained_again
        assert len(found.history) == 2
        assert any("found decoded" in line for line in lines)

    def test_temperature_and_threshold_never_see_test_labels(self, trained, trained_again):
        """The bundle is the same whatever the test split's labels say."""
        ours, theirs = trained[1].bundle.fields, trained_again[1].bundle.fields
        assert ours.threshold == theirs.threshold
        assert ours.temperature == theirs.temperature
        assert ours.domain_limit == pytest.approx(theirs.domain_limit, rel=1e-6)
        assert np.isfinite(ours.temperature)
        wrong = load_catalog(trained_again[0] / "catalog.parquet")["label"].to_pylist()
        right = load_catalog(trained[0] / "catalog.parquet")["label"].to_pylist()
        assert sum(a != b for a, b in zip(wrong, right, strict=True)) == trained[1].phases[-1]["n"]

    def test_a_run_that_ended_before_saying_so_is_finished_not_refused(self, trained_again, cache):
        output, first, _, planted = trained_again
        note = json.loads((output / "run.json").read_text())
        (output / "run.json").write_text(json.dumps(note | {"status": "training"}))
        second = train(planted, options(output, cache=cache), str)
        assert second.bundle.fingerprint == first.bundle.fingerprint
        assert len(second.history) == 2, "nothing was trained again"


def test_validation_is_the_same_on_one_and_two_workers(staged, catalog, cache, tmp_path):
    settings = (f"stages=[{STILL}]", "class_weights='balanced'")
    chosen = options(tmp_path / "run", *settings, workers=2, cache=cache)
    one, two = staged[1].history[0], train(catalog, chosen, str).history[0]
    assert one["lr"] < 1e-11
    assert one["val_scans"] == two["val_scans"]
    assert one["val_scans"] % 2 == 1, "an even number would not show dropped rows"
    for key in ("val_loss", "val_accuracy", "val_balanced_accuracy", "val_precision"):
        assert one[key] == pytest.approx(two[key], abs=1e-6)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_training_goes_on(catalog, tmp_path, cluster):
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
        catalog,
        options(tmp_path / "run", *settings, workers=2),
        kill_after_the_second_epoch,
    )
    assert killed
    assert [entry["epoch"] for entry in found.history] == [1, 2, 3, 4, 5, 6]


def test_stages_go_on_from_the_best_weights(staged):
    output, found = staged
    assert [entry["stage"] for entry in found.history] == ["still", "small", "full"]
    assert found.history[2]["lr"] < found.history[1]["lr"]
    phases = json.loads((output / "phases.json").read_text())
    names = ["after still", "after small", "after full"]
    assert [row["phase"] for row in phases][:3] == names
    assert phases[-1]["threshold"] == pytest.approx(found.bundle.fields.threshold)
    assert phases == found.phases
    low, high = (phases[-1]["intervals"]["accuracy"][name] for name in ("low", "high"))
    assert low <= phases[-1]["accuracy"] <= high


def test_a_smaller_picture_in_an_early_stage(staged):
    _, found = staged
    assert found.history[1]["stage"] == "small"
    assert found.bundle.fields.preprocessing.image_size == 48


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


def test_the_last_weights_are_kept_where_nothing_chooses(unbalanced):
    output, found, _ = unbalanced
    assert all(np.isfinite(entry["train_loss"]) for entry in found.history)
    saved = torch.load(
        max((output / "ray").rglob("checkpoint.pt"), key=lambda p: p.stat().st_mtime),
        weights_only=True,
    )
    for key, value in saved["average"].items():
        assert torch.equal(found.bundle.state[key], value), key


def test_a_run_that_diverges_ends_with_a_word(catalog, cache, tmp_path, cluster):
    settings = ("optimizer.name=sgd", "optimizer.lr=1e20", "monitor=val_balanced_accuracy")
    with (
        in_this_process(tmp_path / "ray"),
        pytest.raises(TrainingError, match=r"2 .*optimizer\.lr"),
    ):
        train(catalog, options(tmp_path / "run", *settings, cache=cache), str)


@pytest.mark.slow
def test_folds_test_every_scan_once_and_go_on_after_an_interruption(
    catalog, cache, tmp_path, cluster
):
    lines = []
    chosen = options(tmp_path / "cv", "stages.scratch.epochs=1", cache=cache)
    with in_this_process(tmp_path / "checkpoints"):
        summary = cross_validate(catalog, chosen, 2, lines.append)
    for what in ("weights: ", " decoded in"):
        assert sum(what in line for line in lines) == 1, "folds share what was prepared"
    tested = []
    for number in (1, 2):
        rows = load_catalog(tmp_path / "cv" / f"fold-{number}" / "catalog.parquet").to_pylist()
        tested += [row["path"] for row in rows if row["split"] == "test"]
        assert {"train", "val", "test"} <= {row["split"] for row in rows}
    assert len(tested) == len(set(tested)) == 61
    assert sum(fold["n"] for fold in summary["folds"]) == 61
    accuracies = [fold["accuracy"] for fold in summary["folds"]]
    assert summary["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert summary["accuracy"]["low"] <= np.mean(accuracies) <= summary["accuracy"]["high"]
    again = cross_validate(catalog, chosen, 2, lines.append)
    assert again == summary
    assert sum(line.startswith("epoch") for line in lines) == 2, "no fold was trained twice"


class TestBeforeTraining:
    @pytest.fixture(scope="class")
    def leaky(self, tmp_path_factory):
        """The same scans on both sides of the official split, and one scan of a third class."""
        folder = tmp_path_factory.mktemp("leaky")
        for part in ("Training", "Testing"):
            write_archive(folder / part, 24, classes=("no_tumor", "glioma"))
        write_archive(folder / "Testing", 1, seed=9, classes=("rare",))
        return load_catalog(folder)

    def test_people_are_told_of_unbalanced_classes_and_missing_patients(self, unbalanced):
        _, found, lines = unbalanced
        assert any("unbalanced 1:" in line for line in lines)
        assert any("no patient ids" in line for line in lines)
        assert found.phases[-1]["n"] > 0

    def test_sigmoid_for_four_classes_is_refused(self, catalog, tmp_path):
        with pytest.raises(UsageError, match="sigmoid"):
            train(catalog, options(tmp_path / "run", "model.output=sigmoid"), str)

    def test_one_class_is_refused(self, tmp_path):
        write_archive(tmp_path / "a", 6, classes=("no_tumor",))
        with pytest.raises(UsageError, match="at least two"):
            train(load_catalog(tmp_path / "a"), options(tmp_path / "run"), str)

    def test_a_class_with_too_few_scans_is_named(self, leaky, cache, tmp_path, cluster):
        with pytest.raises(UsageError, match="rare"):
            train(leaky, options(tmp_path / "run", cache=cache), str)

    def test_a_layer_that_does_not_exist_is_found_at_once(self, catalog, tmp_path):
        stages = 'stages=[{name="a",epochs=1,train=["layers.99"]}]'
        with pytest.raises(UsageError, match=r"layers\.99"):
            train(catalog, options(tmp_path / "run", stages), str)

    @pytest.mark.parametrize(
        "network", [["model.head=flatten"], ["model.backbone=vit_tiny_patch16_224"]]
    )
    def test_a_size_that_the_network_does_not_take_is_found_at_once(
        self, network, catalog, tmp_path
    ):
        """In a worker it would be a traceback of torch, after everything was decoded."""
        chosen = options(tmp_path / "run", *network, "stages.scratch.image_size=32")
        with pytest.raises(UsageError, match="stages 'scratch' image_size 32") as caught:
            train(catalog, chosen, str)
        assert "\n" not in str(caught.value)

    def test_an_official_split_that_leaks_is_refused(self, leaky, cache, tmp_path, cluster):
        chosen = options(tmp_path / "run", split_by="official", cache=cache)
        with pytest.raises(GateError, match="--allow-leakage"):
            train(leaky, chosen, str)

    def test_missing_pretrained_weights_are_an_error_unless_the_scans_are_phantoms(
        self, catalog, cache, tmp_path, cluster, monkeypatch
    ):
        def unreachable(*_):
            raise WeightsError("the hub cannot be reached; use --weights FILE")

        monkeypatch.setattr(run_module, "load_pretrained", unreachable)
        real = replace(options(tmp_path / "run", cache=cache), weights="imagenet")
        with pytest.raises(WeightsError, match="--weights FILE"):
            train(catalog, real, str)
        lines = []
        phantoms = replace(real, output=tmp_path / "run2", synthetic=True)
        monkeypatch.setattr(run_module, "fit", _stop)
        with pytest.raises(KeyboardInterrupt):
            train(catalog, phantoms, lines.append)
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
