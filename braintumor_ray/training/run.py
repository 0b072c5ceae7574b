"""One training run from source to bundle."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import UsageError, WeightsError
from braintumor_ray.lease import lease_on
from braintumor_ray.localization.truth import TruthIndex, has_boxes, load_truth, reviewed_truth
from braintumor_ray.models.bundle import Bundle, ViewFields, save_bundle
from braintumor_ray.models.classifier import Architecture, Classifier, normalization_of
from braintumor_ray.models.freezing import set_trainable
from braintumor_ray.models.weights import load_pretrained
from braintumor_ray.predict.neighbors import FEATURE_SCANS, FEATURES, feature_table
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.predict.views import NUMBER_OF_VIEWS
from braintumor_ray.progress import Say
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
from braintumor_ray.training.guidance import packed_masks, unpack_mask
from braintumor_ray.training.lesions import BANK_SIZE, Donor, LesionMaker
from braintumor_ray.training.options import TrainOptions, Workers
from braintumor_ray.training.pace import Deadline
from braintumor_ray.training.phases import phase_table
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
from braintumor_ray.training.shards import GuidedRows, Shards, training_dataset
from braintumor_ray.training.split import check_split_choice, imbalance
from braintumor_ray.training.trainer import Fitted, OnEpoch, fit, read_fitted

UNBALANCED = 5.0
ENOUGH_KNOWN = 0.1  # of the training scans with a tumor


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
    say: Say = print,
    on_epoch: OnEpoch | None = None,
    ready: "RunInputs | None" = None,
) -> TrainingResult:
    """Train a recipe on a catalog and write its bundle; resumes an interrupted run.

    Args:
        catalog: all scans (`catalog.build.load_catalog`).
        options: the run.
        say: called with a line for people, now and then.
        on_epoch: called with each epoch's entry of the history while the run goes on, in a thread.
        ready: for `plan_run`; its network is trained.

    Raises:
        UsageError: data or recipe that cannot be trained; found before training starts.
        GateError: the split leaks.
        WeightsError: pretrained weights cannot be had.
        TrainingError: the folder holds a finished run, one of another recipe or data, or a bundle
            of no run.
        ResultsError: another process trains in the folder.
    """
    folder = run_folder(options.output)
    folder.refuse_foreign_bundle()
    with lease_on(folder.location):
        return _train(catalog, options, folder, say, on_epoch, ready)


def _train(
    catalog: pa.Table,
    options: TrainOptions,
    folder: RunFolder,
    say: Say,
    on_epoch: OnEpoch | None,
    ready: "RunInputs | None",
) -> TrainingResult:
    started, recipe = time.time(), options.recipe
    plan = plan_run(catalog, options, say, ready)
    ready, data, guided = plan.ready, plan.data, plan.guided
    folder.claim(recipe, plan.fingerprint)  # before anything of another run is replaced
    write_catalog(data.catalog, folder.at("catalog.parquet"))
    begin_gate(ready.model, guided)
    for line in _remarks(options, data):
        say(line)
    deadline = _deadline(started, options, data)
    fitted = _fit(options, folder, plan.fingerprint, ready, data, guided, say, on_epoch, deadline)
    if deadline is not None:
        own = sum(stage.epochs for stage in recipe.stages)
        trained = len(fitted.history)
        say(f"{trained} of the recipe's {own} epochs, to be finished in {options.minutes:g} min")
    provisional = provisional_bundle(
        recipe,
        ready.model.architecture,
        ready.preprocessing,
        ready.classes,
        fitted.best,
        data.fingerprint(),
        guided=guided is not None,
    )
    return _finish(provisional, fitted, data, options, folder, ready.weights, say)


@dataclass(frozen=True)
class RunPlan:
    """A run that has not begun: of its folder, only decoded scans are touched.

    Attributes:
        ready, data, guided: what it trains, and on what.
        fingerprint: of recipe, data, weights and truth. One folder holds one of them.
    """

    ready: "RunInputs"
    data: RunData
    guided: "Guided | None"
    fingerprint: str


def plan_run(
    catalog: pa.Table, options: TrainOptions, say: Say, ready: "RunInputs | None" = None
) -> RunPlan:
    """Check, decode what is not decoded yet, and split.

    Args:
        catalog: as for `train`.
        options: as for `train`.
        say: as for `train`.
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
        catalog = reviewed_catalog(catalog, options.labels, recipe, say)
        ready = prepare(catalog, options, say)
    data = split_run(
        catalog,
        run_folder(options.output),
        ready.shards,
        ready.classes,
        options.split(),
        options.workers.most,
        say,
        ready.before,
    )
    guided = _guided(options, ready, data, say)
    truth = [guided.fingerprint] if guided else []
    parts = [recipe.model_dump(mode="json"), data.fingerprint(), ready.weights, *truth]
    return RunPlan(ready, data, guided, fingerprint_of(parts))


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


def prepare(catalog: pa.Table, options: TrainOptions, say: Say) -> RunInputs:
    """Check recipe and labels, build the network, load weights, decode what is not decoded yet.

    Raises:
        UsageError: data or recipe that cannot be trained.
        TruthError: two scans share a tumor; found before anything is decoded.
        WeightsError: pretrained weights cannot be had; found before anything is decoded.
    """
    recipe = options.recipe
    classes = class_map(catalog, recipe)
    for line in classes.merged():
        say(line)
    model = network_of(architecture_of(recipe, len(classes.classes)), recipe)
    preprocessing = preprocessing_of(model, recipe)
    truth = _truth(options, model, say)
    if truth is not None:  # of all scans: of two that share a tumor, one may be in another split
        truth.match(catalog["path"].to_pylist())
    weights = _load_weights(model, options, say)
    before = source_classes(catalog, recipe)
    learnt = is_learnt(catalog, classes, before)
    folder = run_folder(options.output)
    shards = decode_run(catalog, learnt, folder, options.cache, preprocessing, say)
    return RunInputs(classes, model, preprocessing, shards, truth, weights, before)


def _truth(options: TrainOptions, model: Classifier, say: Say) -> TruthIndex | None:
    """Where tumors are, read before anything is decoded.

    Raises:
        UsageError: guidance was asked for and the head cannot be guided.
    """
    recipe = options.recipe
    wanted = options.truth is not None or recipe.lesions.active
    if wanted and recipe.guidance.weight and model.linear is None:
        raise UsageError(
            f"guidance needs the evidence of each cell, which model.head '{recipe.model.head}' on "
            f"{recipe.model.backbone} does not give; set model.head = 'linear', or leave out "
            "--truth and [lesions]"
        )
    truth = None if options.truth is None else load_truth(options.truth)
    if options.labels is None or not has_boxes(options.labels):
        return truth
    if recipe.guidance.weight and model.linear is None:
        say(f"the boxes of '{options.labels}' are not used: this head cannot be guided by them")
        return truth
    return reviewed_truth(options.labels, truth)


@dataclass(frozen=True)
class Guided:
    """What guides a run.

    Attributes:
        rows: of the training scans, in the order of `RunData.of`.
        positive: indices of the classes with a tumor.
        lesions: changes which scans have one; None: nothing is changed.
        tumors: training scans of positive classes.
    """

    rows: GuidedRows
    positive: tuple[int, ...]
    lesions: LesionMaker | None
    tumors: int

    @property
    def knows_enough(self) -> bool:
        """Whether known tumors can teach where tumors are: a few boxes of a review cannot."""
        known = sum(mask is not None for mask in self.rows.masks)
        return known >= max(1, ENOUGH_KNOWN * self.tumors)

    @property
    def fingerprint(self) -> str:
        """Digest of the known tumors."""
        return sha256(b"".join(mask or b"-" for mask in self.rows.masks)).hexdigest()


def _guided(options: TrainOptions, ready: RunInputs, data: RunData, say: Say) -> Guided | None:
    """Masks of the training scans and what is drawn into them; None: training is not guided."""
    recipe, classes = options.recipe, data.classes
    if not recipe.guidance.weight or not (ready.truth or recipe.lesions.active):
        return None
    scans = data.rows_of("train")
    size = recipe.data.image_size
    masks: list[bytes | None] = [None] * scans.num_rows
    if ready.truth is not None:
        cropped = ready.preprocessing.crop != "none"
        boxes = data.shards.boxes(scans["scan_id"].to_numpy()) if cropped else None
        masks = packed_masks(scans, ready.truth, classes.positive, size, say, boxes)
    positive = tuple(classes.classes.index(name) for name in classes.positive)
    negative = [i for i in range(len(classes.classes)) if i not in positive]
    names = scans["class_name"].to_pylist()
    repeats = np.array([1 if n in classes.positive else recipe.lesions.repeat for n in names])
    lesions = None
    if recipe.lesions.active:
        donors = _donors(data, scans, masks, size) if recipe.lesions.transplant else []
        lesions = LesionMaker(recipe.lesions, negative[0], donors)
    tumors = sum(name in classes.positive for name in names)
    return Guided(GuidedRows(masks, repeats.astype(np.int64)), positive, lesions, tumors)


def begin_gate(model: Classifier, guided: Guided | None) -> None:
    """Let an untrained gate begin half open where hardly a tumor is known.

    Only classes that see all cells can then find out where to look: a gate that begins shut leaves
    them nothing (validation accuracy after four epochs 0.44 instead of 0.83).
    """
    if guided is not None and not guided.knows_enough and model.neck is not None:
        model.neck.set_gate(0.0)


def without_somewhere(recipe: Recipe, guided: Guided | None) -> Recipe:
    """The recipe as workers train it: where enough tumors are known, the others are asked nothing.

    What is known teaches more exactly where tumors are.
    """
    if guided is None or not guided.knows_enough:
        return recipe
    guidance = recipe.guidance.model_copy(update={"somewhere": 0.0})
    return recipe.model_copy(update={"guidance": guidance})


def _donors(data: RunData, scans: pa.Table, masks: list[bytes | None], size: int) -> list[Donor]:
    """Training scans whose tumor may be transplanted."""
    ids = scans["scan_id"].to_numpy()
    known = {int(scan): mask for scan, mask in zip(ids, masks, strict=True) if mask is not None}
    order = {name: index for index, name in enumerate(data.classes.classes)}
    label = dict(zip(ids.tolist(), scans["class_name"].to_pylist(), strict=True))
    found = data.shards.squares_of(np.array(list(known), np.int64), size, BANK_SIZE)
    return [
        Donor(square, unpack_mask(known[scan], size), order[label[scan]]) for scan, square in found
    ]


def check_run(output: str | Path) -> None:
    """Refuse a folder that training would spoil, before anything is decoded.

    Raises:
        TrainingError: its run is finished, or its bundle belongs to no run.
    """
    folder = run_folder(output)
    folder.refuse_finished()
    folder.refuse_foreign_bundle()


def _fit(
    options: TrainOptions,
    folder: RunFolder,
    name: str,
    ready: RunInputs,
    data: RunData,
    guided: Guided | None,
    say: Say,
    on_epoch: OnEpoch | None,
    deadline: Deadline | None,
) -> Fitted:
    recipe, model = options.recipe, ready.model
    rows = guided.rows if guided else None
    ids, labels = data.of("train")
    result = fit(
        without_somewhere(recipe, guided),
        model.architecture,
        ready.preprocessing,
        {k: v.detach().clone() for k, v in model.state_dict().items()},
        data.class_weights(recipe),
        len(ids) if rows is None else int(rows.repeats.sum()),
        {
            "train": training_dataset(data.shards, ids, labels, recipe.data.image_size**2, rows),
            "val": training_dataset(data.shards, *data.of("val"), recipe.data.image_size**2),
        },
        options.workers,
        folder.at("ray"),
        name,
        _both(_epoch_teller(say, rates=recipe.schedule.kind == "plateau"), on_epoch),
        guided.positive if guided else None,
        guided.lesions if guided else None,
        deadline,
    )
    return read_fitted(result)


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


def _finish(
    provisional: Bundle,
    fitted: Fitted,
    data: RunData,
    options: TrainOptions,
    folder: RunFolder,
    weights: str,
    say: Say,
) -> TrainingResult:
    """Tune on validation, look at the test split once, and write what the run ends in."""

    def sample(split: str, most: int | None = None) -> tuple[Any, Any]:
        """Ids and labels; a smaller sample is part of a larger one."""
        ids, labels = data.of(split)
        chosen = np.random.default_rng(options.recipe.seed).permutation(len(ids))[:most]
        return ids[chosen], labels[chosen]

    def outputs(predictor: Predictor, split: str, most: int | None = None) -> Outputs:
        return split_outputs(
            predictor, data.shards.paths, data.shards.location, *sample(split, most)
        )

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
        say(line)
    phases = []
    if data.counts.get("test"):
        phases = phase_table(
            bundle,
            fitted.stages,
            lambda chosen: outputs(chosen, "test"),
            data.groups_of,
            options.device,
        )
    folder.drop_unfinished_bundle()
    with folder.outbox() as box:
        write_history(fitted.history, box)
        (box / "phases.json").write_text(json.dumps(phases, indent=1) + "\n", encoding="utf-8")
        write_table(box / FEATURES, _features(data, trained))
        card = model_card(bundle, data, phases, options, weights, len(fitted.history))
        saved = save_bundle(
            box / "bundle",
            bundle.fields,
            bundle.build_model(),
            bundle.detector,
            card,
            bundle.archive,
        )
    folder.write_note(status="finished")
    return TrainingResult(saved, folder.location, fitted.history, phases)


def _features(data: RunData, seen: Outputs) -> pa.Table:
    """What the network sees in its training scans, for finding similar ones."""
    return feature_table(data.rows_of("train"), seen.scan_ids, seen.pooled)


def architecture_of(recipe: Recipe, k: int) -> Architecture:
    """What a recipe builds for `k` classes."""
    section = recipe.model
    automatic = section.output == "auto" and k == 2 and section.pooling == "mean"
    sigmoid = section.output == "sigmoid" or automatic
    return Architecture(
        section.backbone,
        section.head,
        k,
        recipe.data.image_size,
        section.hidden,
        section.dropout,
        sigmoid,
        section.neck,
        section.neck_stride,
        section.neck_channels,
        section.gate,
        section.pooling,
    )


def network_of(architecture: Architecture, recipe: Recipe) -> Classifier:
    """The network with the recipe's own random weights.

    Raises:
        UsageError: a stage names a layer that it does not have.
    """
    import torch

    torch.manual_seed(recipe.seed)
    model = Classifier(architecture)
    for stage in recipe.stages:
        set_trainable(model, stage.train)  # an unknown layer is found now, not after stage one
    return model


def preprocessing_of(model: Classifier, recipe: Recipe) -> Preprocessing:
    """How pixels reach the network."""
    mean, std = normalization_of(model.backbone)
    if recipe.model.normalization == "unit":
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    data = recipe.data
    return Preprocessing(
        data.image_size,
        data.interpolation,
        mean,  # type: ignore[arg-type]
        std,  # type: ignore[arg-type]
        data.crop,
        data.intensity,
    )


def _load_weights(model: Classifier, options: TrainOptions, say: Say) -> str:
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
        say(f"{line} ({error})")
        return "weights: random"
    say(line)
    return line


def _remarks(options: TrainOptions, data: RunData) -> list[str]:
    """What people should know before it starts."""
    recipe = options.recipe
    lines = [_batch_line(recipe, options.workers), data.class_weight_line(recipe)]
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


def _epoch_teller(say: Say, *, rates: bool) -> Callable[[dict[str, Any]], None]:
    """Tells of each epoch, and of a learning rate that a plateau has lowered within a stage.

    Args:
        say: takes a line.
        rates: the schedule has plateaus; others change the rate in every epoch, which is no news.
    """
    before: dict[str, Any] = {}

    def tell(entry: dict[str, Any]) -> None:
        if rates and entry["stage"] == before.get("stage") and entry["lr"] != before["lr"]:
            say(f"learning rate {before['lr']:.2g} -> {entry['lr']:.2g}")
        say(_epoch_line(entry))
        before.update(entry)

    return tell


def _both(first: OnEpoch, second: OnEpoch | None) -> OnEpoch:
    def tell(entry: dict[str, Any]) -> None:
        first(entry)
        if second is not None:
            second(entry)

    return tell


def _epoch_line(entry: dict[str, Any]) -> str:
    return (
        f"epoch {entry['epoch']:>2} {entry['stage']}: train loss {entry['train_loss']:.3f}, "
        f"val loss {entry['val_loss']:.3f}, val accuracy {entry['val_accuracy']:.3f} (balanced "
        f"{entry['val_balanced_accuracy']:.3f}), {entry['train_scans_per_s']:.0f} scans/s, "
        f"{entry['seconds']:.0f} s"
    )
