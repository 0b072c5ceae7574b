"""Grouped k-fold cross-validation: a run per fold, and means over the folds."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.errors import UsageError
from braintumor_ray.progress import Log
from braintumor_ray.splits.splits import grouped_folds, grouped_split
from braintumor_ray.training.options import TrainOptions
from braintumor_ray.training.phases import FIGURES
from braintumor_ray.training.run import RunInputs, plan_run, prepare, train
from braintumor_ray.training.run_data import named_catalog, reviewed_catalog
from braintumor_ray.training.run_folder import fingerprint_of, run_folder
from braintumor_ray.training.split import (
    HASH_COLUMNS,
    in_order,
    learnt_names,
    scan_groups,
    stable_keys,
    with_columns,
    without_test,
)
from braintumor_ray.training.trainer import OnEpoch

SUMMARIZED = (*FIGURES, "balanced_accuracy", "macro_auroc")


def cross_validate(
    catalog: pa.Table,
    options: TrainOptions,
    folds: int,
    log: Log = print,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Train a recipe per fold; each scan is tested once, by a network that never saw its group.

    Decodes once. Each fold is a whole run in OUTPUT/fold-1, fold-2, ...; a share of its training
    scans validates, by the recipe's fractions. An interrupted cross-validation is continued; a
    finished fold is kept only if training it now would be the same run.

    Args:
        catalog: as for `train`.
        options: as for `train`.
        folds: how many.
        log: as for `train`.
        on_epoch: as for `train`; the entries also have the number of their `fold`.

    Returns:
        `folds` (the tested figures of each) and, per figure, `mean`, `low` and `high`: the 95%
        interval of the mean by Student's t over the folds. Folds share training scans, so that it
        is a little narrow (Bengio and Grandvalet, 2004).

    Raises:
        UsageError: fewer groups than folds in a class, or an official split was asked for.
        TrainingError: OUTPUT or a fold in it holds a run of another recipe, data or number of
            folds.
    """
    if options.split_by != "group":
        raise UsageError("--folds makes its own splits; leave out --split-by official")
    if options.leave_out is not None:
        raise UsageError("--folds tests every source; leave out --leave-out, or --folds")
    catalog = named_catalog(catalog, options.recipe)
    catalog = reviewed_catalog(catalog, options.labels, options.recipe, log)
    folder = run_folder(options.output)
    fingerprint = _fingerprint(catalog, options, folds)
    folder.refuse_other(options.recipe, fingerprint)
    minutes = None if options.minutes is None else options.minutes / folds
    options = replace(options, cache=options.cache or folder.at("cache"), minutes=minutes)
    ready = prepare(catalog, options, log)
    splits = _fold_splits(catalog, ready, options, folds)
    folder.claim(options.recipe, fingerprint)
    found = []
    for number, split in enumerate(splits, start=1):
        log(f"fold {number} of {folds}")
        fold = run_folder(folder.at(f"fold-{number}"))
        own = replace(options, output=fold.location)
        of_fold = with_columns(catalog, {"split": pa.array(split.tolist(), pa.string())})
        if fold.note().get("status") == "finished":
            plan = plan_run(of_fold, own, lambda _: None, ready)
            fold.refuse_other(options.recipe, plan.fingerprint)
        else:
            report = on_epoch and partial(_report_with_fold, on_epoch, number)
            untrained = replace(ready, model=copy.deepcopy(ready.model))
            train(of_fold, own, log, report, untrained)
        tested = fold.read_json("phases.json")[-1]
        figures = {name: tested[name] for name in SUMMARIZED}
        found.append({"fold": number, "bundle": fold.at("bundle"), "n": tested["n"], **figures})
    means = {name: _mean_interval([entry[name] for entry in found]) for name in SUMMARIZED}
    summary = {"folds": found, **means}
    folder.write_json(summary, "folds.json")
    folder.write_note(status="finished")
    return summary


def _fingerprint(catalog: pa.Table, options: TrainOptions, folds: int) -> str:
    """Of what distinguishes cross-validations before anything is decoded."""
    scans = sorted(zip(stable_keys(catalog), catalog["label"].to_pylist(), strict=True))
    recipe, truth = options.recipe.model_dump(mode="json"), options.truth
    return fingerprint_of([recipe, folds, options.weights, truth, scans])


def _fold_splits(
    catalog: pa.Table, ready: RunInputs, options: TrainOptions, folds: int
) -> list[npt.NDArray[np.object_]]:
    """Per fold, each scan's split (n,): the fold is tested, a share of the rest validates."""
    recipe = options.recipe
    hashes = in_order(ready.shards.read(HASH_COLUMNS), catalog["scan_id"].to_numpy())
    names = learnt_names(catalog, hashes, ready.classes)
    groups, keys = scan_groups(catalog, hashes, names), stable_keys(catalog)
    held = grouped_folds(names, groups, folds, recipe.seed, keys=keys)
    shares = without_test(recipe.data.fractions)
    splits = []
    for fold in range(folds):
        rest = [None if where == fold else name for where, name in zip(held, names, strict=True)]
        split = grouped_split(rest, groups, shares, recipe.seed, keys=keys)
        split[held == fold] = "test"
        splits.append(split)
    return splits


def _report_with_fold(on_epoch: OnEpoch, number: int, entry: dict[str, Any]) -> None:
    on_epoch({"fold": number, **entry})


def _mean_interval(values: list[float | None]) -> dict[str, float | None]:
    from scipy import stats

    known = [value for value in values if value is not None]
    if len(known) < 2:
        return {"mean": known[0] if known else None, "low": None, "high": None}
    mean = float(np.mean(known))
    half = float(stats.t.ppf(0.975, len(known) - 1) * stats.sem(known))
    return {"mean": mean, "low": mean - half, "high": mean + half}
