"""One training run from source to bundle."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import WeightsError
from braintumor_ray.lease import lease_on
from braintumor_ray.localization.truth import TruthIndex
from braintumor_ray.models.bundle import Bundle, ViewFields, save_bundle
from braintumor_ray.models.classifier import Classifier
from braintumor_ray.models.weights import load_pretrained
from braintumor_ray.predict.neighbors import FEATURE_SCANS, FEATURES, feature_table
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.predict.views import NUMBER_OF_VIEWS
from braintumor_ray.progress import Log
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.storage import write_table
from braintumor_ray.training.artifacts import model_card, write_history
from braintumor_ray.training.finish import (
    DOMAIN_SCANS,
    Outputs,
    provisional_bundle,
    set_warnings,
    split_outputs,
    tune,
    tune_views,
)
from braintumor_ray.training.guided_data import (
    Guided,
    begin_gate,
    guided_by,
    known_tumors,
    without_somewhere,
)
from braintumor_ray.training.options import TrainOptions, Workers
from braintumor_ray.training.pace import Deadline
from braintumor_ray.training.phases import phase_table
from braintumor_ray.training.recipe_network import architecture_of, network_of, preprocessing_of
from braintumor_ray.training.run_data import (
    RunData,
    class_map,
    decode_run,
    is_learnt,
    named_catalog,
    reviewed_catalog,
    source_classes,
    split_run,
)
from braintumor_ray.training.run_folder import RunFolder, fingerprint_of, run_folder
from braintumor_ray.training.shards import Shards, training_dataset
from braintumor_ray.training.split import check_split_choice, imbalance
from braintumor_ray.training.trainer import Fitted, OnEpoch, fit
from braintumor_ray.training.worker import TrainingTask
from braintumor_ray.types import Ints

UNBALANCED = 5.0


@dataclass(frozen=True)
class TrainingResult:
    """What a run ended in.

    Attributes:
        bundle: as it is at `location`/bundle.
        location: the run's folder.
        history: one entry per epoch.
        phases: see `training.phases.phase_table`; empty without a test split.
    """

    bundle: Bundle
    location: str
    history: list[dict[str, Any]]
    phases: list[dict[str, Any]]

    @property
    def path(self) -> str:
        """Where the bundle is."""
        return f"{self.location}/bundle"


def train(
    catalog: pa.Table,
    options: TrainOptions,
    log: Log = print,
    on_epoch: OnEpoch | None = None,
    ready: "RunInputs | None" = None,
) -> TrainingResult:
    """Train a recipe on a catalog and write its bundle; resumes an interrupted run.

    Args:
        catalog: all scans (`catalog.build.load_catalog`).
        options: the run.
        log: called with a line for people, now and then.
        on_epoch: called with each epoch's entry of the history while the run goes on, in a thread.
        ready: for `plan_run`; its network is trained.

    Raises:
        UsageError: data or recipe that cannot be trained; found before training starts.
        GateError: the split leaks.
        WeightsError: pretrained weights cannot be had.
        TrainingError: the folder holds a finished run, one of another recipe or data, or a bundle
            of no run; or training diverged.
        ResultsError: another process trains in the folder.
    """
    folder, recipe = run_folder(options.output), options.recipe
    folder.refuse_foreign_bundle()
    with lease_on(folder.location):
        started = time.time()
        plan = plan_run(catalog, options, log, ready)
        folder.claim(recipe, plan.fingerprint)  # before anything of another run is replaced
        write_catalog(plan.data.catalog, folder.at("catalog.parquet"))
        begin_gate(plan.ready.model, plan.guided)
        for line in _remarks(plan):
            log(line)
        task = training_task(plan, _deadline(started, options, plan.data))
        report = _both(_epoch_reporter(log, rates=recipe.schedule.kind == "plateau"), on_epoch)
        fitted = fit(
            task, _datasets(plan), options.workers, folder.at("ray"), plan.fingerprint, report
        )
        if lost := sum(not math.isfinite(entry["val_loss"]) for entry in fitted.history):
            log(f"warning: in {lost} epochs the loss was no number; the weights are of another one")
        if task.deadline is not None:
            trained, own = len(fitted.history), sum(stage.epochs for stage in recipe.stages)
            minutes = options.minutes
            log(f"{trained} of the recipe's {own} epochs, to be finished in {minutes:g} min")
        return _finish(plan, fitted, folder, log)


@dataclass(frozen=True)
class RunPlan:
    """A run that has not begun: of its folder, only decoded scans are touched.

    Attributes:
        options, ready, data, guided: what it trains, and on what.
        fingerprint: of recipe, data, weights and truth. One folder holds one of them.
    """

    options: TrainOptions
    ready: "RunInputs"
    data: RunData
    guided: Guided | None
    fingerprint: str

    @property
    def repeats(self) -> Ints | int:
        """How often each training scan is shown per epoch, (n,) or one for all."""
        return 1 if self.guided is None else self.guided.rows.repeats


def plan_run(
    catalog: pa.Table, options: TrainOptions, log: Log, ready: "RunInputs | None" = None
) -> RunPlan:
    """Check, decode what is not decoded yet, and split.

    Args:
        catalog: as for `train`.
        options: as for `train`.
        log: as for `train`.
        ready: what runs on the same scans share, made by `prepare`; the catalog has its final
            labels then. None: it is made here.

    Raises:
        UsageError: data or recipe that cannot be trained.
        GateError: the split leaks.
        WeightsError: pretrained weights cannot be had.
    """
    recipe = options.recipe
    check_split_choice(catalog, options.split())
    if ready is None:
        catalog = named_catalog(catalog, recipe)
        catalog = reviewed_catalog(catalog, options.labels, recipe, log)
        ready = prepare(catalog, options, log)
    data = split_run(
        catalog,
        run_folder(options.output),
        ready.shards,
        ready.classes,
        options.split(),
        options.workers.most,
        log,
        ready.before,
    )
    guided = guided_by(options, ready.truth, ready.preprocessing, data, log)
    truth = [guided.fingerprint] if guided else []
    parts = [recipe.model_dump(mode="json"), data.fingerprint(), ready.weights, *truth]
    return RunPlan(options, ready, data, guided, fingerprint_of(parts))


@dataclass(frozen=True)
class RunInputs:
    """What a run needs before scans are split: classes, network with weights, decoded scans.

    `before`: the classes of the source's own labels, where reviewers gave others.
    """

    classes: ClassMap
    model: Classifier
    preprocessing: Preprocessing
    shards: Shards
    truth: TruthIndex | None
    weights: str
    before: ClassMap | None = None


def prepare(catalog: pa.Table, options: TrainOptions, log: Log) -> RunInputs:
    """Check recipe and labels, build the network, load weights, decode what is not decoded yet.

    Raises:
        UsageError: data or recipe that cannot be trained.
        TruthError: two scans share a tumor; found before anything is decoded.
        WeightsError: pretrained weights cannot be had; found before anything is decoded.
    """
    recipe = options.recipe
    classes = class_map(catalog, recipe)
    for line in classes.merged():
        log(line)
    model = network_of(architecture_of(recipe, len(classes.classes)), recipe)
    preprocessing = preprocessing_of(model, recipe)
    truth = known_tumors(options, model, catalog["path"].to_pylist(), log)
    weights = _load_weights(model, options, log)
    before = source_classes(catalog, recipe)
    learnt = is_learnt(catalog, classes, before)
    folder = run_folder(options.output)
    shards = decode_run(catalog, learnt, folder, options.cache, preprocessing, log)
    return RunInputs(classes, model, preprocessing, shards, truth, weights, before)


def check_run(output: str | Path) -> None:
    """Refuse a folder that training would spoil, before anything is decoded.

    Raises:
        TrainingError: its run is finished, or its bundle belongs to no run.
    """
    folder = run_folder(output)
    folder.refuse_finished()
    folder.refuse_foreign_bundle()


def training_task(plan: RunPlan, deadline: Deadline | None) -> TrainingTask:
    """What the workers of a run train."""
    recipe, model, guided = plan.options.recipe, plan.ready.model, plan.guided
    return TrainingTask(
        without_somewhere(recipe, guided),
        model.architecture,
        plan.ready.preprocessing,
        {k: v.detach().clone() for k, v in model.state_dict().items()},
        plan.data.class_weights(recipe, plan.repeats),
        len(np.repeat(plan.data.of("train")[0], plan.repeats)),
        guided.positive if guided else None,
        guided.lesions if guided else None,
        deadline,
    )


def _datasets(plan: RunPlan) -> dict[str, Any]:
    data, pixels = plan.data, plan.options.recipe.data.image_size**2
    rows = plan.guided.rows if plan.guided else None
    return {
        "train": training_dataset(data.shards, *data.of("train"), pixels, rows),
        "val": training_dataset(data.shards, *data.of("val"), pixels),
    }


def _deadline(started: float, options: TrainOptions, data: RunData) -> Deadline | None:
    """When the run should be finished, and how many predictions `_finish` makes by then."""
    if options.minutes is None:
        return None
    scans = {split: sum(row.values()) for split, row in data.counts.items()}
    predictions = (
        min(scans["train"], FEATURE_SCANS)
        + (1 + NUMBER_OF_VIEWS) * scans["val"]
        + len(options.recipe.stages) * scans.get("test", 0)
    )
    return Deadline(started + 60 * options.minutes, predictions)


def _finish(plan: RunPlan, fitted: Fitted, folder: RunFolder, log: Log) -> TrainingResult:
    """Tune on validation, look at the test split once, and write what the run ends in."""
    options, data = plan.options, plan.data

    def sample(split: str, most: int | None = None) -> tuple[Any, Any]:
        """Ids and labels; a smaller sample is part of a larger one."""
        ids, labels = data.of(split)
        chosen = np.random.default_rng(options.recipe.seed).permutation(len(ids))[:most]
        return ids[chosen], labels[chosen]

    def outputs(predictor: Predictor, split: str, most: int | None = None) -> Outputs:
        return split_outputs(
            predictor, data.shards.paths, data.shards.location, *sample(split, most)
        )

    provisional = _provisional(plan, fitted)
    predictor = Predictor(provisional, device=options.device)
    validation = outputs(predictor, "val")
    trained = outputs(predictor, "train", FEATURE_SCANS)
    bundle = tune(
        provisional,
        trained.only(sample("train", DOMAIN_SCANS)[0]),
        validation,
        options.recipe,
        data.groups_of(validation.scan_ids),
    )
    single = ViewFields(threshold=bundle.fields.threshold, temperature=bundle.fields.temperature)
    views = Predictor(bundle.averaging(single), device=options.device)
    seen = outputs(views, "val")
    bundle = tune_views(bundle, seen, options.recipe, data.groups_of(seen.scan_ids))
    for line in set_warnings(bundle):
        log(line)
    phases = []
    if data.counts.get("test"):
        phases = phase_table(
            bundle,
            fitted.stages,
            lambda chosen: outputs(chosen, "test"),
            data.groups_of,
            options.device,
        )
    features = feature_table(data.rows_of("train"), trained.scan_ids, trained.pooled)
    card = model_card(bundle, data, phases, options, plan.ready.weights, len(fitted.history))
    saved = _write(folder, bundle, fitted.history, phases, features, card)
    return TrainingResult(saved, folder.location, fitted.history, phases)


def _provisional(plan: RunPlan, fitted: Fitted) -> Bundle:
    ready = plan.ready
    return provisional_bundle(
        plan.options.recipe,
        ready.model.architecture,
        ready.preprocessing,
        ready.classes,
        fitted.best,
        plan.data.fingerprint(),
        guided=plan.guided is not None and plan.options.recipe.guidance.weight > 0,
    )


def _write(
    folder: RunFolder,
    bundle: Bundle,
    history: list[dict[str, Any]],
    phases: list[dict[str, Any]],
    features: pa.Table,
    card: str,
) -> Bundle:
    folder.drop_unfinished_bundle()
    with folder.staging_folder() as staging:
        write_history(history, staging)
        (staging / "phases.json").write_text(json.dumps(phases, indent=1) + "\n", encoding="utf-8")
        write_table(staging / FEATURES, features)
        path, model = staging / "bundle", bundle.build_model()
        saved = save_bundle(path, bundle.fields, model, bundle.detector, card, bundle.archive)
    folder.write_note(status="finished")  # last: an interrupted run is finished by the next call
    return saved


def _load_weights(model: Classifier, options: TrainOptions, log: Log) -> str:
    try:
        line = load_pretrained(
            model.backbone,
            options.recipe.model.backbone,
            options.weights,
            options.recipe.data.image_size,
        )
    except WeightsError as error:
        if not (options.synthetic and options.weights == "imagenet"):
            raise
        line = "weights: random, as the scans are phantoms and the pretrained ones cannot be had"
        log(f"{line} ({error})")
        return "weights: random"
    log(line)
    return line


def _remarks(plan: RunPlan) -> list[str]:
    """What people should know before it starts."""
    options, data, recipe = plan.options, plan.data, plan.options.recipe
    lines = [_batch_line(recipe, options.workers), data.class_weight_line(recipe, plan.repeats)]
    if data.classes.reference:
        lines.append(
            f"no class is one without a tumor (data.negative_classes): decisions are against "
            f"'{data.classes.classes[0]}', and [lesions] changes no scan"
        )
    if not data.has_patients:
        lines.append(
            "the source has no patient ids: the split is duplicate-free, and slices of one patient "
            "may straddle it"
        )
    ratio = imbalance(data.counts["train"])
    if ratio >= UNBALANCED and recipe.class_weights == "none":
        lines.append(f"classes are unbalanced 1:{ratio:.0f}; --set class_weights=balanced helps")
    if recipe.sync_batchnorm and not options.workers.use_gpu:
        lines.append("sync_batchnorm needs GPUs: each worker keeps statistics of its own")
    return lines


def _batch_line(recipe: Recipe, workers: Workers) -> str:
    size, steps = recipe.data.batch_size, recipe.optimizer.accumulate
    each = max(1, -(-size // workers.most))
    return (
        f"effective batch {each * workers.most * steps} = {each} x {workers.most} workers x "
        f"{steps} steps; learning rate {recipe.optimizer.lr:g}, not scaled by the number of workers"
    )


def _epoch_reporter(log: Log, *, rates: bool) -> Callable[[dict[str, Any]], None]:
    """Reports each epoch, and a learning rate that a plateau has lowered within a stage.

    Args:
        log: takes a line.
        rates: the schedule has plateaus; others change the rate in every epoch, which is no news.
    """
    before: dict[str, Any] = {}

    def report(entry: dict[str, Any]) -> None:
        if rates and entry["stage"] == before.get("stage") and entry["lr"] != before["lr"]:
            log(f"learning rate {before['lr']:.2g} -> {entry['lr']:.2g}")
        log(_epoch_line(entry))
        before.update(entry)

    return report


def _both(first: OnEpoch, second: OnEpoch | None) -> OnEpoch:
    def report(entry: dict[str, Any]) -> None:
        first(entry)
        if second is not None:
            second(entry)

    return report


def _epoch_line(entry: dict[str, Any]) -> str:
    return (
        f"epoch {entry['epoch']:>2} {entry['stage']}: train loss {entry['train_loss']:.3f}, "
        f"val loss {entry['val_loss']:.3f}, val accuracy {entry['val_accuracy']:.3f} (balanced "
        f"{entry['val_balanced_accuracy']:.3f}), {entry['train_scans_per_s']:.0f} scans/s, "
        f"{entry['seconds']:.0f} s"
    )
