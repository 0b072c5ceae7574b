"""Evaluation of a bundle on the scans of one split: metrics.json, predictions.parquet, report.html.

One process, one batch of images in memory. Thresholds and temperature come from the bundle or from
validation scans; the evaluated scans are measured with them and nothing is chosen on them, unless
there are no validation scans, which is then said.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from braintumor_ray.errors import BundleError, UsageError
from braintumor_ray.evaluation.comparison import check_comparable, compare
from braintumor_ray.evaluation.evaluated import Evaluated, evaluate_rows
from braintumor_ray.evaluation.galleries import draw_galleries, write_galleries
from braintumor_ray.evaluation.heatmaps import heat_by_region, localization
from braintumor_ray.evaluation.leakage import (
    known_hashes,
    leakage,
    require_unseen,
    training_scans,
)
from braintumor_ray.evaluation.measures import measure, operating_points
from braintumor_ray.evaluation.options import EvaluateOptions
from braintumor_ray.evaluation.recalibration import model_card, recalibrate, refuse_with_views
from braintumor_ray.evaluation.report import ReportParts, write_report
from braintumor_ray.evaluation.selection import ALL, select_split, true_classes
from braintumor_ray.evaluation.subgroups import subgroup_table
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.storage import read_bytes, write_atomically, write_table
from braintumor_ray.types import Progress

SCHEMA_VERSION = 1
METRICS, PREDICTIONS, REPORT, HISTORY = (
    "metrics.json",
    "predictions.parquet",
    "report.html",
    "history.json",
)
VALIDATION = "val"


def evaluate(
    catalog: pa.Table,
    bundle: str | Path,
    output: str | Path,
    options: EvaluateOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a bundle on one split of a catalog.

    Args:
        catalog: any catalog; training's RUN/catalog.parquet has the split.
        bundle: the bundle's location.
        output: folder to write to; files of an earlier evaluation are replaced.
        options: see `EvaluateOptions`.
        progress: called with (scans done, scans) of the evaluated split.

    Returns:
        The content of metrics.json.

    Raises:
        GateError: scans that were trained on are among the evaluated ones (exit code 3).
        UsageError: no such split, no labels that the bundle knows, bundles that cannot be
            compared, or a recalibration without validation scans.
        BundleError: a bundle cannot be loaded, or the recalibrated one exists already.
    """
    options = options or EvaluateOptions()
    location, folder = str(bundle), Path(output)
    rows = select_split(catalog, options.split, options.split_column)
    _check_recalibration(catalog, options)
    predictor = _predictor(location, options)
    other = None if options.compare is None else _predictor(options.compare, options)
    if other is not None:
        check_comparable(predictor.bundle.fields, other.bundle.fields)
    _gate_before_reading(catalog, rows, location, options)
    wanted = options.heatmaps or options.truth is not None
    evaluated = _evaluate(predictor, rows, options, progress, explain=wanted)
    leaks = _gate(catalog, evaluated, location, options, options.split)
    evaluated.require_some(options.split)
    validation = _validation(predictor, catalog, evaluated, options)
    metrics = {
        **_header(predictor, location, evaluated, options),
        **measure(evaluated, seed=options.seed, n_boot=options.n_boot),
        "operating_points": operating_points(
            evaluated, options.split, _chooser(validation, options)
        ),
        "subgroups": subgroup_table(
            evaluated, options.subgroups, seed=options.seed, n_boot=options.n_boot
        ),
        "leakage": leaks,
        "validation": None if validation is None else validation.counts(),
        "comparison": _comparison(evaluated, other, options),
        "recalibration": _recalibration(predictor, location, validation, catalog, options),
        "sections": _sections(predictor, evaluated, options),
    }
    _write_data(folder, metrics, evaluated)
    if options.report:
        _write_report(folder, metrics, predictor, evaluated, catalog=catalog, options=options)
    return metrics


def _predictor(location: str, options: EvaluateOptions) -> Predictor:
    return Predictor(
        load_bundle(location),
        device=options.device,
        precision=options.precision,
        cam_class=options.cam_class,
        batch_size=options.batch_size,
    )


def _evaluate(
    predictor: Predictor,
    rows: pa.Table,
    options: EvaluateOptions,
    progress: Progress | None = None,
    *,
    explain: bool = False,
) -> Evaluated:
    return evaluate_rows(
        predictor, rows, classes=options.classes, tta=options.tta, limits=options.limits,
        explain=explain, progress=progress,
    )  # fmt: skip


def _gate_before_reading(
    catalog: pa.Table, rows: pa.Table, location: str, options: EvaluateOptions
) -> None:
    """Where the catalog has pixel hashes, a leak is found before an hour of reading."""
    if "pixel_sha256" in rows.column_names:
        known = rows["pixel_sha256"].to_pylist()
        found = leakage(rows, known, known_hashes(rows), training_scans(catalog, location))
        require_unseen(found, options.split, rows.num_rows, options.allow_leakage)


def _gate(
    catalog: pa.Table, evaluated: Evaluated, location: str, options: EvaluateOptions, split: str
) -> dict[str, Any]:
    found = {}
    for name in filter(None, (options.compare, location)):
        trained = training_scans(catalog, name)
        seen = evaluated.outputs
        found = leakage(evaluated.rows, seen.pixel_sha256, seen.hashes, trained)
        require_unseen(found, split, evaluated.rows.num_rows, options.allow_leakage)
    return found


def _check_recalibration(catalog: pa.Table, options: EvaluateOptions) -> None:
    """Refuse before any work what `--recalibrate` cannot do."""
    if options.recalibrate is None:
        return
    refuse_with_views(options.tta)
    if options.recalibrate.exists():
        raise BundleError(
            f"bundle '{options.recalibrate}' exists already; choose another directory"
        )
    try:
        select_split(catalog, VALIDATION, options.split_column)
    except UsageError as error:
        raise UsageError(f"--recalibrate needs validation scans: {error}") from error


def _validation(
    predictor: Predictor, catalog: pa.Table, evaluated: Evaluated, options: EvaluateOptions
) -> Evaluated | None:
    """The validation scans through the same bundle; None where the catalog has none."""
    if options.split == VALIDATION:
        return evaluated
    column = options.split_column
    present = column in catalog.column_names and VALIDATION in catalog[column].to_pylist()
    if not present or (options.split == ALL and options.recalibrate is None):
        return None
    rows = select_split(catalog, VALIDATION, column)
    return _evaluate(predictor, rows, options)


def _chooser(validation: Evaluated | None, options: EvaluateOptions) -> Evaluated | None:
    """Validation scans for choosing thresholds, where they are not measured themselves."""
    return None if options.split in (VALIDATION, ALL) else validation


def _recalibration(
    predictor: Predictor,
    location: str,
    validation: Evaluated | None,
    catalog: pa.Table,
    options: EvaluateOptions,
) -> dict[str, Any] | None:
    if options.recalibrate is None or validation is None:
        return None
    _gate(catalog, validation, location, replace(options, compare=None), VALIDATION)
    return recalibrate(predictor.bundle, location, validation, options.recalibrate)


def _comparison(
    evaluated: Evaluated, other: Predictor | None, options: EvaluateOptions
) -> dict[str, Any] | None:
    if other is None:
        return None
    theirs = _evaluate(other, evaluated.rows, options)
    return compare(evaluated, theirs, other, seed=options.seed, n_boot=options.n_boot)


def _sections(
    predictor: Predictor, evaluated: Evaluated, options: EvaluateOptions
) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    if options.truth is not None:
        sections["localisation"] = localization(
            predictor,
            evaluated,
            options.truth,
            seed=options.seed,
            n_boot=options.n_boot,
            limits=options.limits,
        )
    if options.heatmaps:
        sections["heat_by_region"] = heat_by_region(predictor, evaluated)
    for name, section in options.sections.items():
        sections[name] = dict(section(predictor, evaluated) if callable(section) else section)
    return sections


def _header(
    predictor: Predictor, location: str, evaluated: Evaluated, options: EvaluateOptions
) -> dict[str, Any]:
    fields = predictor.bundle.fields
    groups = evaluated.groups[evaluated.measured]
    return {
        "schema_version": SCHEMA_VERSION,
        "split": options.split,
        "bundle": {
            "path": location,
            "fingerprint": predictor.bundle.fingerprint,
            "recipe": fields.recipe.get("name"),
            "backbone": fields.architecture.backbone,
            "positive_classes": list(fields.positive_classes),
            "threshold": fields.threshold,
            "temperature": fields.temperature,
        },
        "test_time_augmentation": options.tta,
        "seed": options.seed,
        "n_boot": options.n_boot,
        "counts": evaluated.counts(),
        "grouped_by": evaluated.grouped_by,
        "n_groups": len(set(groups.tolist())),
    }


def _write_data(folder: Path, metrics: Mapping[str, Any], evaluated: Evaluated) -> None:
    write_table(folder / PREDICTIONS, evaluated.table())
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / METRICS, (text + "\n").encode())


def _write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    predictor: Predictor,
    evaluated: Evaluated,
    *,
    catalog: pa.Table,
    options: EvaluateOptions,
) -> None:
    location = metrics["bundle"]["path"]
    galleries = []
    if options.per_gallery:
        galleries = draw_galleries(
            predictor,
            evaluated,
            most=options.per_gallery,
            truth=options.truth,
            limits=options.limits,
        )
        write_galleries(galleries, folder)
    parts = ReportParts(
        metrics=metrics,
        catalog=catalog,
        classes=_known_classes(catalog, evaluated, options),
        card=model_card(location),
        galleries=galleries,
        history=run_history(location),
        audit=_audit(options.audit),
        notes=options.notes,
        seed=options.seed,
    )
    write_report(folder / REPORT, parts)


def _known_classes(
    catalog: pa.Table, evaluated: Evaluated, options: EvaluateOptions
) -> list[str | None]:
    """Classes of the whole catalog; outside the split there may be some the bundle lacks."""
    try:
        return true_classes(catalog, evaluated.fields, options.classes).names
    except UsageError:
        labels: list[str | None] = catalog["label"].to_pylist()
        return labels


def run_history(bundle: str) -> list[dict[str, Any]]:
    """The training history beside a bundle, one mapping per epoch; empty where there is none."""
    parent = bundle.rstrip("/").rpartition("/")[0] or "."
    try:
        raw = json.loads(read_bytes(f"{parent}/{HISTORY}"))
    except FileNotFoundError:
        return []
    return list(raw)


def _audit(given: Mapping[str, Any] | Path | None) -> Mapping[str, Any] | None:
    if not isinstance(given, Path):
        return given
    try:
        loaded: dict[str, Any] = json.loads(read_bytes(given))
    except (OSError, ValueError) as error:
        raise UsageError(f"audit '{given}' cannot be read: {error}") from error
    return loaded
