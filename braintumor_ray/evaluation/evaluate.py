"""Evaluation of a bundle on the scans of one split: metrics.json, predictions.parquet, report.html.

One process, one batch of images in memory. Thresholds and temperature come from the bundle or from
validation scans. Nothing is chosen on the evaluated scans, unless there are no validation scans;
such figures are marked as optimistic.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from braintumor_ray.evaluation.recalibration import model_card, recalibrate, refuse_with_views
from braintumor_ray.evaluation.report import ReportParts, write_report
from braintumor_ray.evaluation.selection import ALL, select_split, true_classes
from braintumor_ray.evaluation.subgroups import subgroup_table
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.storage import read_bytes, write_atomically, write_table
from braintumor_ray.types import Progress

SCHEMA_VERSION = 1
METRICS, PREDICTIONS, REPORT = "metrics.json", "predictions.parquet", "report.html"
HISTORY = "history.json"
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
    rows = select_split(catalog, options.split, options.split_column)
    _check_recalibration(catalog, options)
    run = _Run(catalog, str(bundle), options, _predictor(str(bundle), options))
    other = None if options.compare is None else _predictor(options.compare, options)
    if other is not None:
        check_comparable(run.predictor.bundle.fields, other.bundle.fields)
    if "pixel_sha256" in rows.column_names:  # known already: a leak is found before any reading
        known = rows["pixel_sha256"].to_pylist()
        run.gate(rows, known, known_hashes(rows), options.split, [run.location])
    explain = options.heatmaps or options.truth is not None
    evaluated = run.evaluate(run.predictor, rows, progress=progress, explain=explain)
    bundles = [name for name in (options.compare, run.location) if name]
    seen = evaluated.outputs
    leaks = run.gate(rows, seen.pixel_sha256, seen.hashes, options.split, bundles)
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


def _predictor(location: str, options: EvaluateOptions) -> Predictor:
    return Predictor(
        load_bundle(location),
        device=options.device,
        precision=options.precision,
        engine=options.engine,
        cam_class=options.cam_class,
        batch_size=options.batch_size,
    )


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
        return partial(evaluate_rows, classes=o.classes, tta=o.tta, limits=o.limits)

    def gate(
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
        self.gate(validation.rows, seen.pixel_sha256, seen.hashes, VALIDATION, [self.location])
        return recalibrate(self.predictor.bundle, self.location, validation, output)

    def comparison(self, evaluated: Evaluated, other: Predictor) -> dict[str, Any]:
        theirs = self.evaluate(other, evaluated.rows)
        return compare(evaluated, theirs, other, **self.options.resampling)

    def sections(self, evaluated: Evaluated) -> dict[str, Any]:
        options, sections = self.options, dict[str, Any]()
        if options.truth is not None:
            sections["localisation"] = localization(
                self.predictor, evaluated, options.truth, options.limits, **options.resampling
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
                self.predictor, evaluated, most=options.per_gallery, truth=options.truth,
                limits=options.limits,
            )  # fmt: skip
            write_galleries(galleries, folder)
        parts = ReportParts(
            metrics=metrics,
            catalog=self.catalog,
            classes=self.known_classes(evaluated),
            card=model_card(self.location),
            galleries=galleries,
            history=run_history(self.location),
            audit=_audit(options.audit),
            notes=options.notes,
            seed=options.seed,
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
