"""One training run from source to bundle."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.data.catalog import read_catalog, write_catalog
from braintumor_ray.data.labels import ClassMap
from braintumor_ray.data.pipeline import Shards, decode_to_shards, training_dataset
from braintumor_ray.data.preprocess import Preprocessing
from braintumor_ray.data.splits import LeakReport
from braintumor_ray.errors import TrainingError, UsageError, WeightsError
from braintumor_ray.models.bundle import Bundle, save_bundle
from braintumor_ray.models.classifier import Architecture, Classifier, normalization_of
from braintumor_ray.models.freezing import set_trainable
from braintumor_ray.models.weights import load_pretrained
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.training.finish import (
    GATE_SCANS,
    provisional_bundle,
    split_outputs,
    tune,
)
from braintumor_ray.training.loop import balanced_class_weights
from braintumor_ray.training.phases import phase_table
from braintumor_ray.training.split import (
    HASH_COLUMNS,
    SplitOptions,
    check_counts,
    counts_by_split,
    with_splits,
)
from braintumor_ray.training.stages import State
from braintumor_ray.training.trainer import Workers, fit, read_fitted

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainOptions:
    """A run.

    Attributes:
        recipe: what to train.
        output: the run's folder; its bundle will be `output`/bundle.
        weights: 'imagenet', 'none' or a file.
        workers: who trains.
        split_by: 'group' or 'official'.
        allow_leakage: train although the official split leaks.
        cache: folder of decoded shards; None: inside the run's folder.
        source: how the data is named in the model card.
        synthetic: the scans are phantoms; then missing pretrained weights are no error.
        device: of the last step (temperature, threshold).
    """

    recipe: Recipe
    output: Path
    weights: str = "imagenet"
    workers: Workers = field(default_factory=lambda: Workers(1))
    split_by: str = "group"
    allow_leakage: bool = False
    cache: str | None = None
    source: str = ""
    synthetic: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Trained:
    """What a run ended in."""

    bundle: Bundle
    path: Path
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class _Data:
    catalog: pa.Table
    shards: Shards
    classes: ClassMap
    leaks: LeakReport
    counts: dict[str, dict[str, int]]

    def of(self, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Scan ids and class indices of a split."""
        order = {name: index for index, name in enumerate(self.classes.classes)}
        rows = [
            (scan, order[name])
            for scan, name, where in zip(
                self.catalog["scan_id"].to_pylist(),
                self.catalog["class_name"].to_pylist(),
                self.catalog["split"].to_pylist(),
                strict=True,
            )
            if where == split and name is not None
        ]
        ids, labels = zip(*rows, strict=True) if rows else ((), ())
        return np.array(ids, np.int64), np.array(labels, np.int64)

    def fingerprint(self) -> str:
        """Digest over pixels, classes and splits."""
        columns = ("pixel_sha256", "class_name", "split")
        rows = zip(*(self.catalog[name].to_pylist() for name in columns), strict=True)
        text = "\n".join(sorted(f"{a} {b} {c}" for a, b, c in rows if b is not None))
        return sha256(text.encode()).hexdigest()[:32]


def train(catalog: pa.Table, options: TrainOptions, say: Say = print) -> Trained:
    """Train a recipe on a catalog and write its bundle; resumes an interrupted run.

    Args:
        catalog: all scans (`data.catalog.load_catalog`).
        options: the run.
        say: called with a line for people, now and then.

    Raises:
        UsageError: data or recipe that cannot be trained; found before training starts.
        GateError: the split leaks.
        WeightsError: pretrained weights cannot be had.
        TrainingError: the folder holds a finished run, or one of another recipe or data.
    """
    recipe, output = options.recipe, options.output
    output.mkdir(parents=True, exist_ok=True)
    classes = _classes(catalog, recipe)
    architecture = _architecture(recipe, classes)
    model = _network(architecture, recipe)
    preprocessing = _preprocessing(model, recipe)
    data = _prepare(catalog, options, classes, preprocessing, say)
    weights = _load_weights(model, options, say)
    name = _claim(options, data, weights)
    for split, row in data.counts.items():
        say(f"{split}: {sum(row.values())} scans ({_listed(row)})")
    ids, labels = data.of("train")
    say(_batch_line(recipe, options.workers))
    result = fit(
        recipe,
        architecture,
        preprocessing,
        {k: v.detach().clone() for k, v in model.state_dict().items()},
        _class_weights(recipe, labels, len(classes.classes)),
        len(ids),
        {
            split: training_dataset(data.shards, *data.of(split), recipe.data.image_size**2)
            for split in ("train", "val")
        },
        options.workers,
        str((output / "ray").resolve()),
        name,
        lambda entry: say(_epoch_line(entry)),
    )
    fitted = read_fitted(result)
    provisional = provisional_bundle(
        recipe, architecture, preprocessing, classes, fitted.best, data.fingerprint()
    )
    bundle = _write_bundle(provisional, data, options, weights)
    _write_history(output, fitted.history)
    _write_phases(output, bundle, fitted.stages, data, options.device)
    _note(output, status="finished")
    return Trained(bundle, output / "bundle", fitted.history)


def check_run(output: Path) -> None:
    """Refuse a folder whose run is finished, before anything is decoded.

    Raises:
        TrainingError: it is.
    """
    if _read_note(output).get("status") == "finished":
        raise TrainingError(
            f"'{output}' holds a finished run (bundle at '{output / 'bundle'}'); training it again "
            "would change nothing: choose another --output"
        )


def _classes(catalog: pa.Table, recipe: Recipe) -> ClassMap:
    labels = [label for label in catalog["label"].to_pylist() if label is not None]
    return ClassMap.parse(recipe.data.classes, labels, recipe.data.negative_classes)


def _architecture(recipe: Recipe, classes: ClassMap) -> Architecture:
    k = len(classes.classes)
    section = recipe.model
    sigmoid = section.output == "sigmoid" or (section.output == "auto" and k == 2)
    return Architecture(
        section.backbone,
        section.head,
        k,
        recipe.data.image_size,
        section.hidden,
        section.dropout,
        sigmoid,
    )


def _network(architecture: Architecture, recipe: Recipe) -> Classifier:
    import torch

    torch.manual_seed(recipe.seed)
    model = Classifier(architecture)
    for stage in recipe.stages:
        set_trainable(model, stage.train)  # an unknown layer is found now, not after stage one
    return model


def _preprocessing(model: Classifier, recipe: Recipe) -> Preprocessing:
    mean, std = normalization_of(model.backbone)
    if recipe.model.normalization == "unit":
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocessing(recipe.data.image_size, recipe.data.interpolation, mean, std)  # type: ignore[arg-type]


def _prepare(
    catalog: pa.Table,
    options: TrainOptions,
    classes: ClassMap,
    preprocessing: Preprocessing,
    say: Say,
) -> _Data:
    """Decode, find duplicates, split, and keep the catalog beside the run."""
    output = options.output
    path = str((output / "catalog.parquet").resolve())
    source = str((output / "source.parquet").resolve())
    write_catalog(catalog, source)
    cache = options.cache or str((output / "cache").resolve())
    shards = decode_to_shards(source, catalog, cache, preprocessing)
    done = "found decoded in" if shards.reused else "decoded into"
    say(f"{catalog.num_rows} scans {done} {cache}")
    split = SplitOptions(
        {str(k): v for k, v in options.recipe.data.fractions.items()},
        options.split_by,
        options.recipe.seed,
        options.allow_leakage,
    )
    catalog, leaks = with_splits(catalog, shards.read(HASH_COLUMNS), classes, split)
    counts = counts_by_split(catalog)
    check_counts(counts, classes, options.workers.most)
    write_catalog(catalog, path)
    bad = sum(status != "ok" for status in catalog["status"].to_pylist())
    if bad:
        say(f"{bad} scans could not be read and are left out; their reasons are in {path}")
    return _Data(read_catalog(path), shards, classes, leaks, counts)


def _load_weights(model: Classifier, options: TrainOptions, say: Say) -> str:
    try:
        line = load_pretrained(model.backbone, options.recipe.model.backbone, options.weights)
    except WeightsError as error:
        if not (options.synthetic and options.weights == "imagenet"):
            raise
        line = "weights: random, as the scans are phantoms and the pretrained ones cannot be had"
        say(f"{line} ({error})")
        return "weights: random"
    say(line)
    return line


def _claim(options: TrainOptions, data: _Data, weights: str) -> str:
    """Note what is trained in this folder; returns the name of the run for Ray Train.

    Raises:
        TrainingError: another recipe or other data were trained here.
    """
    recipe = options.recipe.model_dump(mode="json")
    text = json.dumps([recipe, data.fingerprint(), weights], sort_keys=True)
    fingerprint = sha256(text.encode()).hexdigest()[:16]
    known = _read_note(options.output)
    if known and known["fingerprint"] != fingerprint:
        changed = [key for key in recipe if recipe[key] != known["recipe"].get(key)]
        what = f"recipe field '{changed[0]}'" if changed else "data or weights"
        raise TrainingError(
            f"'{options.output}' holds a run with another {what}; choose another --output, or "
            "remove the folder"
        )
    _note(options.output, fingerprint=fingerprint, recipe=recipe, status="training")
    return fingerprint


def _write_bundle(provisional: Bundle, data: _Data, options: TrainOptions, weights: str) -> Bundle:
    predictor = Predictor(provisional, device=options.device)
    where = (data.shards.paths, data.shards.location)
    ids, labels = data.of("train")
    sample = np.random.default_rng(options.recipe.seed).permutation(len(ids))[:GATE_SCANS]
    training = split_outputs(predictor, *where, ids[sample], labels[sample])
    validation = split_outputs(predictor, *where, *data.of("val"))
    fields, gate = tune(provisional, training, validation, options.recipe)
    card = _card(fields, data, options, weights)
    return save_bundle(options.output / "bundle", fields, provisional.build_model(), gate, card)


def _card(fields: Any, data: _Data, options: TrainOptions, weights: str) -> str:  # noqa: ANN401
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("braintumor_ray.training", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=False)
    used = sum(sum(row.values()) for row in data.counts.values())
    return environment.get_template("model_card.md.j2").render(
        fields=fields,
        metrics=fields.metrics["validation"],
        counts=data.counts,
        left_out=data.catalog.num_rows - used,
        source=options.source,
        synthetic=options.synthetic,
        split_by="the source's own" if options.split_by == "official" else "by group, stratified",
        patients=any(key is not None for key in data.catalog["patient_key"].to_pylist()),
        leaky=data.leaks.describe() if data.leaks.leaky else "",
        weights=weights,
    )


def _write_history(output: Path, history: list[dict[str, Any]]) -> None:
    from braintumor_ray.training.curves import draw_curves, write_events

    (output / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    draw_curves(history, output / "curves.png")
    write_events(history, output / "tensorboard")


def _write_phases(
    output: Path, bundle: Bundle, stages: dict[str, State], data: _Data, device: str
) -> None:
    """phases.json: the test split after each stage; the only time that training looks at it."""
    ids, labels = data.of("test")
    if not len(ids):
        return
    where = (data.shards.paths, data.shards.location)
    table = phase_table(
        bundle, stages, lambda predictor: split_outputs(predictor, *where, ids, labels), device
    )
    (output / "phases.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _class_weights(
    recipe: Recipe, labels: npt.NDArray[np.int64], k: int
) -> npt.NDArray[np.float32]:
    if recipe.class_weights == "none":
        return np.ones(k, np.float32)
    return balanced_class_weights(labels, k)


def _batch_line(recipe: Recipe, workers: Workers) -> str:
    size, steps = recipe.data.batch_size, recipe.optimizer.accumulate
    each = max(1, -(-size // workers.most))
    return (
        f"effective batch {each * workers.most * steps} = {each} x {workers.most} workers x "
        f"{steps} steps; learning rate {recipe.optimizer.lr:g}, not scaled by the number of workers"
    )


def _epoch_line(entry: dict[str, Any]) -> str:
    return (
        f"epoch {entry['epoch']:>2} {entry['stage']}: train loss {entry['train_loss']:.3f}, "
        f"val loss {entry['val_loss']:.3f}, val accuracy {entry['val_accuracy']:.3f} (balanced "
        f"{entry['val_balanced_accuracy']:.3f}), {entry['train_scans_per_s']:.0f} scans/s, "
        f"{entry['seconds']:.0f} s"
    )


def _listed(row: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in row.items())


def _note(output: Path, **values: Any) -> None:  # noqa: ANN401 - JSON values
    from braintumor_ray.data.storage import write_atomically

    note = _read_note(output) | values
    write_atomically(str(output / "run.json"), (json.dumps(note, indent=1) + "\n").encode())


def _read_note(output: Path) -> dict[str, Any]:
    path = output / "run.json"
    if not path.exists():
        return {}
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"'{path}' is damaged: {error}; remove the folder") from error
    return note
