"""Evaluation of a bundle on the scans of one split: metrics.json, predictions.parquet, report.html.

One process, one batch of images in memory. Thresholds and temperature come from the bundle or from
validation scans. Nothing is chosen on the evaluated scans, unless there are no validation scans;
such figures are marked as optimistic.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from braintumor_ray.catalog.sources import SOURCE, has_sources
from braintumor_ray.errors import BundleError, UsageError
from braintumor_ray.evaluation.by_patient import per_study_and_patient
from braintumor_ray.evaluation.comparison import check_comparable, compare
from braintumor_ray.evaluation.evaluated import Evaluated, evaluate_rows
from braintumor_ray.evaluation.galleries import Gallery, draw_galleries, write_galleries
from braintumor_ray.evaluation.heatmaps import heat_by_region, localization
from braintumor_ray.evaluation.leakage import (
    known_hashes,
    leakage,
    require_unseen,
    training_scans,
)
from braintumor_ray.evaluation.measures import measure, operating_points
from braintumor_ray.evaluation.options import EvaluateOptions
from braintumor_ray.evaluation.recalibration import model_card, recalibrate, views_of
from braintumor_ray.evaluation.report import ReportParts, write_report
from braintumor_ray.evaluation.selection import ALL, select_split, true_classes
from braintumor_ray.evaluation.subgroups import subgroup_table
from braintumor_ray.localization.summary import require_match
from braintumor_ray.metrics.verdicts import LIKELIEST, decision_rule
from braintumor_ray.models.bundle import ViewFields, load_bundle, read_bundle_fields
from braintumor_ray.predict.options import PredictorOptions
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.storage import read_bytes, write_atomically, write_table
from braintumor_ray.types import Progress

SCHEMA_VERSION = 1
METRICS, PREDICTIONS, REPORT = "metrics.json", "predictions.parquet", "report.html"
HISTORY, PHASES = "history.json", "phases.json"
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
        TruthError: the truth is of no scan of the catalog, or two of its scans share a tumor.
        BundleError: a bundle cannot be loaded, or the recalibrated one exists already.
    """
    options = options or EvaluateOptions()
    rows = select_split(catalog, options.split, options.split_column)
    _check_recalibration(catalog, options)
    if options.truth is not None:  # of two scans that share a tumor, one may be in another split
        truth = require_match(options.truth, catalog["path"].to_pylist())
        options = replace(options, truth=truth)
    notes = (*options.notes, *_views_note(str(bundle), catalog, options))
    options = replace(options, notes=notes)
    run = _Run(catalog, str(bundle), options, _predictor(str(bundle), catalog, options))
    other = None if options.compare is None else _predictor(options.compare, catalog, options)
    if other is not None:
        check_comparable(run.predictor.bundle.fields, other.bundle.fields)
    if "pixel_sha256" in rows.column_names:  # known already: a leak is found before any reading
        known = rows["pixel_sha256"].to_pylist()
        run.refuse_seen(rows, known, known_hashes(rows), options.split, [run.location])
    explain = options.heatmaps or options.truth is not None
    evaluated = run.evaluate(run.predictor, rows, progress=progress, explain=explain)
    bundles = [name for name in (options.compare, run.location) if name]
    seen = evaluated.outputs
    leaks = run.refuse_seen(rows, seen.pixel_sha256, seen.hashes, options.split, bundles)
    evaluated.require_some(options.split)
    validation = run.validation(evaluated)
    # Thresholds are not chosen on scans that are themselves measured.
    chooser = None if options.split in (VALIDATION, ALL) else validation
    metrics = {
        **run.header(evaluated),
        **measure(evaluated, **options.resampling),
        "operating_points": operating_points(evaluated, options.split, chooser),
        **per_study_and_patient(evaluated, chooser, **options.resampling),
        "subgroups": subgroup_table(evaluated, subgroups(rows, options), **options.resampling),
        "leakage": leaks,
        "validation": None if validation is None else validation.counts(),
        "comparison": None if other is None else run.comparison(evaluated, other),
        "recalibration": None if validation is None else run.recalibration(validation),
        "sections": run.sections(evaluated),
    }
    folder = Path(output)
    write_table(folder / PREDICTIONS, evaluated.table())
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / METRICS, (text + "\n").encode())
    if options.report:
        run.write_report(folder, metrics, evaluated)
    return metrics


def _predictor(location: str, catalog: pa.Table, options: EvaluateOptions) -> Predictor:
    """Of a bundle; with test-time augmentation its threshold and temperature are of the views."""
    bundle = load_bundle(location)
    chosen = PredictorOptions.of(options)
    if not options.tta:
        return Predictor(bundle, chosen)
    own = ViewFields(threshold=bundle.fields.threshold, temperature=bundle.fields.temperature)
    if bundle.fields.views is None and _has_validation(catalog, options):
        rows = select_split(catalog, VALIDATION, options.split_column)
        predictor = Predictor(bundle.averaging(own), chosen)
        own = views_of(
            evaluate_rows(predictor, rows, classes=options.classes, limits=options.limits)
        )
    return Predictor(bundle.averaging(bundle.fields.views or own), chosen)


def _has_validation(catalog: pa.Table, options: EvaluateOptions) -> bool:
    """Whether there are validation scans that are not themselves measured."""
    known = options.split_column in catalog.column_names and options.split not in (VALIDATION, ALL)
    return known and VALIDATION in catalog[options.split_column].to_pylist()


def _views_note(location: str, catalog: pa.Table, options: EvaluateOptions) -> tuple[str, ...]:
    """What must be known of the threshold of averaged views."""
    if not options.tta or read_bundle_fields(location).views is not None:
        return ()
    if _has_validation(catalog, options):
        return ("Threshold and temperature of the averaged views were chosen on validation scans.",)
    return (
        "Threshold and temperature are those of single views: there are no validation scans to "
        "choose those of averaged views on.",
    )


def _check_recalibration(catalog: pa.Table, options: EvaluateOptions) -> None:
    """Refuse before any work what `--recalibrate` cannot do."""
    if options.recalibrate is None:
        return
    if options.recalibrate.exists():
        raise BundleError(
            f"bundle '{options.recalibrate}' exists already; choose another directory"
        )
    try:
        select_split(catalog, VALIDATION, options.split_column)
    except UsageError as error:
        raise UsageError(f"--recalibrate needs validation scans: {error}") from error


@dataclass(frozen=True)
class _Run:
    """One evaluation: what every step of it needs."""

    catalog: pa.Table
    location: str
    options: EvaluateOptions
    predictor: Predictor

    @property
    def evaluate(self) -> Callable[..., Evaluated]:
        """`evaluate_rows` with the options of this evaluation."""
        o = self.options
        return partial(evaluate_rows, classes=o.classes, limits=o.limits)

    def refuse_seen(
        self,
        rows: pa.Table,
        digests: list[str | None],
        hashes: list[bytes | None],
        split: str,
        bundles: list[str],
    ) -> dict[str, Any]:
        """Refuse scans that a bundle was trained on; returns what was found for the last one."""
        found = {}
        for bundle in bundles:
            found = leakage(rows, digests, hashes, training_scans(self.catalog, bundle))
            require_unseen(found, split, rows.num_rows, self.options.allow_leakage)
        return found

    def validation(self, evaluated: Evaluated) -> Evaluated | None:
        """The validation scans through the same bundle; None where the catalog has none."""
        split, column = self.options.split, self.options.split_column
        if split == VALIDATION:
            return evaluated
        known = column in self.catalog.column_names
        present = known and VALIDATION in self.catalog[column].to_pylist()
        if not present or (split == ALL and self.options.recalibrate is None):
            return None
        return self.evaluate(self.predictor, select_split(self.catalog, VALIDATION, column))

    def recalibration(self, validation: Evaluated) -> dict[str, Any] | None:
        output = self.options.recalibrate
        if output is None:
            return None
        seen = validation.outputs
        self.refuse_seen(
            validation.rows, seen.pixel_sha256, seen.hashes, VALIDATION, [self.location]
        )
        return recalibrate(self.predictor.bundle, self.location, validation, output)

    def comparison(self, evaluated: Evaluated, other: Predictor) -> dict[str, Any]:
        theirs = self.evaluate(other, evaluated.rows)
        return compare(evaluated, theirs, other, **self.options.resampling)

    def sections(self, evaluated: Evaluated) -> dict[str, Any]:
        options, sections = self.options, dict[str, Any]()
        if options.truth is not None:
            sections["localisation"] = localization(
                self.predictor, evaluated, options.truth, **options.resampling
            )
        if options.heatmaps:
            sections["heat_by_region"] = heat_by_region(self.predictor, evaluated)
        for name, section in options.sections.items():
            sections[name] = dict(
                section(self.predictor, evaluated) if callable(section) else section
            )
        return sections

    def header(self, evaluated: Evaluated) -> dict[str, Any]:
        bundle, options = self.predictor.bundle, self.options
        return {
            "schema_version": SCHEMA_VERSION,
            "split": options.split,
            "bundle": {
                "path": self.location,
                "fingerprint": bundle.fingerprint,
                "recipe": bundle.fields.recipe.get("name"),
                "backbone": bundle.fields.architecture.backbone,
                "positive_classes": list(bundle.fields.positive_classes),
                "threshold": bundle.fields.threshold,
                "temperature": bundle.fields.temperature,
            },
            "test_time_augmentation": options.tta,
            **self.predictor.runs_in,
            **options.resampling,
            "counts": evaluated.counts(),
            "grouped_by": evaluated.grouped_by,
            "n_groups": len(np.unique(evaluated.groups[evaluated.measured])),
        }

    def write_report(self, folder: Path, metrics: Mapping[str, Any], evaluated: Evaluated) -> None:
        options, galleries = self.options, list[Gallery]()
        if options.per_gallery:
            galleries = draw_galleries(
                self.predictor, evaluated, most=options.per_gallery, truth=options.truth
            )
            write_galleries(galleries, folder)
        parts = ReportParts(
            metrics=metrics,
            catalog=self.catalog,
            classes=self.known_classes(evaluated),
            card=model_card(self.location),
            galleries=galleries,
            history=run_history(self.location),
            phases=run_phases(self.location, self.predictor.bundle.fields.positive_classes),
            audit=_audit(options.audit),
            notes=options.notes,
            seed=options.seed,
            limits=options.limits,
        )
        write_report(folder / REPORT, parts)

    def known_classes(self, evaluated: Evaluated) -> list[str | None]:
        """Classes of the whole catalog; outside the split the bundle may not know them all."""
        try:
            return true_classes(self.catalog, evaluated.fields, self.options.classes).names
        except UsageError:
            labels: list[str | None] = self.catalog["label"].to_pylist()
            return labels


def subgroups(rows: pa.Table, options: EvaluateOptions) -> list[str]:
    """The columns that were asked for, and the source of scans that come from several."""
    further = [SOURCE] if has_sources(rows) else []
    return list(dict.fromkeys([*options.subgroups, *further]))


def run_history(bundle: str) -> list[dict[str, Any]]:
    """The training history next to a bundle, one mapping per epoch; empty where there is none."""
    return _of_run(bundle, HISTORY)


def run_phases(bundle: str, positive_classes: Collection[str]) -> list[dict[str, Any]]:
    """The phase table next to a bundle (`training.phases.phase_table`); empty where there is none.

    Runs of before mixed two rules in the row at the tuned threshold of two classes; all figures of
    such a row are made those of its decision.
    """
    return [_by_one_rule(row, positive_classes) for row in _of_run(bundle, PHASES)]


def _of_run(bundle: str, name: str) -> list[dict[str, Any]]:
    parent = bundle.rstrip("/").rpartition("/")[0] or "."
    try:
        return list(json.loads(read_bytes(f"{parent}/{name}")))
    except FileNotFoundError:
        return []


def _by_one_rule(row: dict[str, Any], positive_classes: Collection[str]) -> dict[str, Any]:
    names = row["class_names"]
    if "rule" in row or row["phase"] != "at the tuned threshold" or len(names) != 2:
        return {"rule": LIKELIEST, **row}
    b, matrix = row["binary"], [[0, 0], [0, 0]]
    yes = int(names[1] in positive_classes)
    matrix[yes][yes], matrix[yes][1 - yes] = b["tp"], b["fn"]
    matrix[1 - yes][yes], matrix[1 - yes][1 - yes] = b["fp"], b["tn"]
    other = 2 * b["tn"] + b["fp"] + b["fn"]
    macro = None if b["f1"] is None or not other else (b["f1"] + 2 * b["tn"] / other) / 2
    figures = {name: b[name] for name in ("accuracy", "balanced_accuracy")}
    rule = {"rule": decision_rule(row["threshold"])}
    return row | rule | figures | {"confusion_matrix": matrix, "macro_f1": macro}


def _audit(given: Mapping[str, Any] | Path | None) -> Mapping[str, Any] | None:
    if not isinstance(given, Path):
        return given
    try:
        loaded: dict[str, Any] = json.loads(read_bytes(given))
    except (OSError, ValueError) as error:
        raise UsageError(f"audit '{given}' cannot be read: {error}") from error
    return loaded
