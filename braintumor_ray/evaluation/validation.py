"""External validation: one bundle on data sets of other origins, each measured in the same way.

Nothing is chosen on these data sets: temperature and threshold are the bundle's. Scans that are
copies of training scans are left out and counted.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.schema import PATIENT_COLUMNS, patients_of
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.by_patient import DECISION_INTERVALS, rolled_up
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.evaluation.foreign_labels import ForeignTruth, foreign_truth
from braintumor_ray.evaluation.heatmaps import localization
from braintumor_ray.evaluation.inference import ScanOutputs, predict_catalog
from braintumor_ray.evaluation.leakage import (
    TrainingScans,
    keeps_hashes,
    known_scans,
    near_copies,
    run_scans,
)
from braintumor_ray.evaluation.measures import measure, operating_points
from braintumor_ray.evaluation.options import ValidateOptions
from braintumor_ray.evaluation.selection import clusters
from braintumor_ray.evaluation.validation_page import write_validation_page
from braintumor_ray.localization.summary import require_match
from braintumor_ray.localization.truth import TruthIndex
from braintumor_ray.metrics.inputs import binary_view
from braintumor_ray.models.bundle import BundleFields, load_bundle
from braintumor_ray.models.domain import ArchiveReference
from braintumor_ray.predict.options import PredictorOptions
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.predict.shift import shift_of
from braintumor_ray.progress import TotalProgress
from braintumor_ray.storage import write_atomically
from braintumor_ray.types import Bools, Progress

SCHEMA_VERSION = 1
VALIDATION, PAGE = "validation.json", "validation.html"
_FEW_GROUPS = 30
_BY_CLASS = ("class_names", "accuracy", "balanced_accuracy", "macro_f1", "per_class")


@dataclass(frozen=True)
class DataSet:
    """One data set, ready to be measured.

    Attributes:
        name: in the table.
        rows: its catalog.
        labels: its labels in the bundle's classes.
        classes: the `--classes` text by which they were mapped, if any.
        tumors: where its tumors are, if that is known.
    """

    name: str
    rows: pa.Table
    labels: ForeignTruth
    classes: str | None
    tumors: TruthIndex | None


@dataclass(frozen=True)
class Copies:
    """Scans of a data set that are copies of training scans, bool (n,) each, never both."""

    pixels: Bools
    near: Bools


def validate(
    catalogs: Mapping[str, pa.Table],
    bundle: str | Path,
    output: str | Path,
    options: ValidateOptions | None = None,
    *,
    trained_on: Mapping[str, pa.Table] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a bundle on other data sets: validation.json and validation.html.

    Args:
        catalogs: of the data sets, by name.
        bundle: the bundle's location.
        output: folder to write to.
        options: see `ValidateOptions`.
        trained_on: catalogs that the bundle was trained on, by source, in place of the run of
            the bundle; scans without hashes are read.
        progress: called with (scans done, scans) over all data sets.

    Returns:
        The content of validation.json.

    Raises:
        UsageError: labels that do not map, options that name no data set, or a data set of which
            nothing is left.
        TruthError: truth that belongs to no scan.
        BundleError: the bundle cannot be loaded.
    """
    options = options or ValidateOptions()
    loaded = load_bundle(bundle)
    sets = _data_sets(catalogs, loaded.fields, options)
    sources = {source: _training_part(table) for source, table in (trained_on or {}).items()}
    to_read = [data.rows for data in sets] + [t for t in sources.values() if not _is_hashed(t)]
    steps = TotalProgress(progress, sum(table.num_rows for table in to_read))
    trained = _trained(str(bundle), sources, steps)
    predictor = Predictor(loaded, PredictorOptions.of(options))
    found = {
        **_header(predictor, str(bundle), trained, options),
        "sets": {d.name: _measure_set(predictor, d, trained, options, steps) for d in sets},
    }
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(Path(output) / VALIDATION, (text + "\n").encode())
    write_validation_page(Path(output) / PAGE, found)
    return found


def _data_sets(
    catalogs: Mapping[str, pa.Table], fields: BundleFields, options: ValidateOptions
) -> list[DataSet]:
    """All that can be refused is refused here, before anything is read."""
    tumors = options.load_truth_of(catalogs)
    sets = []
    for name, rows in catalogs.items():
        classes = options.mapping_of(name, catalogs)
        labels = foreign_truth(name, rows, fields, classes)
        if name in tumors:
            tumors[name] = require_match(tumors[name], rows["path"].to_pylist())
        sets.append(DataSet(name, rows, labels, classes, tumors.get(name)))
    return sets


def _training_part(catalog: pa.Table) -> pa.Table:
    """The scans of split 'train'; all where there are no splits."""
    if "split" not in catalog.column_names:
        return catalog
    return catalog.filter(pc.fill_null(pc.equal(catalog["split"], "train"), False))


def _is_hashed(catalog: pa.Table) -> bool:
    return keeps_hashes(catalog) and "pixel_sha256" in catalog.column_names


def _trained(
    bundle: str, sources: Mapping[str, pa.Table], progress: Progress | None
) -> TrainingScans:
    """What was trained on: given sources, read where they keep no hashes; else the run's scans."""
    if not sources:
        return known_scans({"the bundle's run": run_scans(bundle)})
    return known_scans(
        {
            source: table if _is_hashed(table) else _hashed(table, progress)
            for source, table in sources.items()
        }
    )


def _hashed(catalog: pa.Table, progress: Progress | None) -> pa.Table:
    hashes = hash_scans(catalog, progress)
    for name in PATIENT_COLUMNS:
        hashes = hashes.append_column(name, catalog[name])
    return hashes


def _header(
    predictor: Predictor, location: str, trained: TrainingScans, options: ValidateOptions
) -> dict[str, Any]:
    fields = predictor.bundle.fields
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": {
            "path": location,
            "fingerprint": predictor.bundle.fingerprint,
            "recipe": fields.recipe.get("name"),
            "backbone": fields.architecture.backbone,
            "class_names": list(fields.class_names),
            "positive_classes": list(fields.positive_classes),
            "threshold": fields.threshold,
            "temperature": fields.temperature,
        },
        "trained_on": {
            "sources": list(trained.sources),
            "near_copies_known": trained.hashed,
            "note": _training_note(trained),
        },
        **predictor.runs_in,
        "seed": options.seed,
        "n_boot": options.n_boot,
    }


def _training_note(trained: TrainingScans) -> str | None:
    """What the search for copies of training scans could not see; None where that is nothing."""
    if not trained.sources:
        return (
            "the scans that the bundle was trained on are not known here, so copies of them were "
            "not left out; give their source with --trained-on"
        )
    if not trained.hashed:
        return (
            "the run keeps no perceptual hashes, so only copies with the same pixels were left "
            "out; --trained-on with the training source finds re-encoded ones"
        )
    return None


def _measure_set(
    predictor: Predictor,
    data: DataSet,
    trained: TrainingScans,
    options: ValidateOptions,
    progress: Progress,
) -> dict[str, Any]:
    outputs = predict_catalog(
        predictor,
        data.rows,
        explain=data.tumors is not None,
        limits=options.limits,
        progress=progress,
    )
    copies = _copies(outputs, trained)
    truth = data.labels.without(copies.pixels | copies.near)
    groups, grouped_by = clusters(data.rows, outputs.image_groups)
    evaluated = Evaluated(
        predictor.bundle.fields, data.rows, truth, outputs, groups, grouped_by, options.limits
    )
    counts = _counts(data, outputs, copies, trained)
    _require_some(data.name, counts)
    measured = measure(evaluated, seed=options.seed, n_boot=options.n_boot)
    n_groups = len(set(groups[evaluated.measured].tolist()))
    return {
        "classes": data.classes,
        "decision_only": data.labels.decision_only,
        "counts": counts,
        "grouped_by": grouped_by,
        "n_groups": n_groups,
        "decision": _decision(measured),
        "calibration": _calibration(evaluated, measured),
        "threshold_transfer": _transfer(evaluated, data.name),
        "out_of_domain": _out_of_domain(evaluated),
        "shift": _shift(evaluated, predictor.bundle.archive),
        "by_class": None if data.labels.decision_only else _by_class(measured),
        "localization": _localization(predictor, evaluated, data, options),
        "studies": rolled_up(evaluated, "study", seed=options.seed, n_boot=options.n_boot),
        "patients": rolled_up(evaluated, "patient", seed=options.seed, n_boot=options.n_boot),
        "roc": measured["curves"]["roc"],
        "notes": _notes(evaluated, trained, counts, n_groups),
    }


def _copies(outputs: ScanOutputs, trained: TrainingScans) -> Copies:
    pixels = np.array([value in trained.pixels for value in outputs.pixel_sha256], bool)
    return Copies(pixels, near_copies(outputs.hashes, trained) & ~pixels)


def _counts(
    data: DataSet, outputs: ScanOutputs, copies: Copies, trained: TrainingScans
) -> dict[str, Any]:
    """What became of each scan; the first of the reasons that hold is counted."""
    status = Counter(outputs.status)
    labels = data.labels.truth.indices >= 0
    usable = outputs.ok & labels
    measured = usable & ~copies.pixels & ~copies.near
    has_label = data.rows["label"].is_valid().to_numpy()
    return {
        "scans": data.rows.num_rows,
        "measured": int(measured.sum()),
        "pixel_copies": int((copies.pixels & usable).sum()),
        "near_copies": int((copies.near & usable).sum()) if trained.hashed else None,
        "quarantined": status["quarantined"],
        "skipped": status["skipped"],
        "unlabeled": int((outputs.ok & ~has_label & ~labels).sum()),
        "unmapped": int((outputs.ok & has_label & ~labels).sum()),
        "unmapped_labels": data.labels.unmapped,
        "reasons": dict(Counter(r for r in outputs.reason if r is not None).most_common()),
    }


def _require_some(data_set: str, counts: Mapping[str, Any]) -> None:
    if counts["measured"]:
        return
    words = {
        "copies of training scans": counts["pixel_copies"] + (counts["near_copies"] or 0),
        "unreadable or skipped": counts["quarantined"] + counts["skipped"],
        "unlabeled": counts["unlabeled"],
        "of labels that --classes leaves out": counts["unmapped"],
    }
    reasons = ", ".join(f"{count} {kind}" for kind, count in words.items() if count)
    raise UsageError(
        f"data set '{data_set}': none of {counts['scans']} scans is left to measure ({reasons}); "
        "validate on scans that the bundle was not trained on"
    )


def _decision(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Tumor or none at the bundle's threshold, as `binary_metrics`, and intervals."""
    intervals = {name: measured["intervals"][key] for name, key in DECISION_INTERVALS.items()}
    return {**measured["binary"], "intervals": intervals}


def _calibration(evaluated: Evaluated, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Of the tumor probability: ECE, Brier score in [0, 1], reliability bins."""
    truth, score = binary_view(evaluated.labels, evaluated.probs, evaluated.positive)
    found = measured["calibration"]
    return {
        "ece": found["binary_ece"],
        "brier": float(((score - truth) ** 2).mean()),
        "reliability": found["binary_reliability"],
    }


def _transfer(evaluated: Evaluated, data_set: str) -> dict[str, Any]:
    """The bundle's threshold and the one that would be best here: a bound, never used."""
    points = {point["rule"]: point for point in operating_points(evaluated, data_set, None)}
    bundle, best = points["bundle"], points["youden"]
    known = best["threshold"] is not None
    return {
        "bundle": bundle,
        "best": best,
        "balanced_accuracy_lost": _balanced(best) - _balanced(bundle) if known else None,
    }


def _balanced(point: Mapping[str, Any]) -> float:
    return float(point["sensitivity"] + point["specificity"]) / 2


def _out_of_domain(evaluated: Evaluated) -> dict[str, Any]:
    flags = evaluated.outputs.out_of_domain[evaluated.measured]
    return {"scans": int(flags.sum()), "of": len(flags), "share": float(flags.mean())}


def _shift(evaluated: Evaluated, reference: ArchiveReference | None) -> dict[str, Any] | None:
    """Of the measured scans as a whole; slices of one patient count as one."""
    if reference is None:
        return None
    rows = evaluated.measured
    _, score = binary_view(evaluated.labels, evaluated.probs, evaluated.positive)
    decided = score >= evaluated.fields.threshold
    coordinates = reference.coordinates(evaluated.outputs.pooled[rows], decided)
    patients = patients_of(evaluated.rows.take(pa.array(rows)))
    found = shift_of(reference, coordinates, decided, patients)
    return None if found is None else asdict(found)


def _by_class(measured: Mapping[str, Any]) -> dict[str, Any]:
    names = ("accuracy", "balanced_accuracy", "macro_f1")
    return {
        **{name: measured[name] for name in (*_BY_CLASS, "confusion_matrix", "prediction_sets")},
        "intervals": {name: measured["intervals"][name] for name in names},
    }


def _localization(
    predictor: Predictor, evaluated: Evaluated, data: DataSet, options: ValidateOptions
) -> dict[str, Any] | None:
    """Map scores; only a note where no scan that is measured has a drawn tumor."""
    if data.tumors is None:
        return None
    paths = evaluated.rows["path"].take(pa.array(evaluated.measured)).to_pylist()
    if not data.tumors.match(paths):
        return {"note": "no measured scan has truth: those that have it were left out"}
    try:
        return localization(
            predictor,
            evaluated,
            data.tumors,
            seed=options.seed,
            n_boot=options.n_boot,
        )
    except UsageError as error:  # every mask is empty; the other figures are worth having
        return {"note": str(error)}


def _notes(
    evaluated: Evaluated, trained: TrainingScans, counts: Mapping[str, Any], n_groups: int
) -> list[str]:
    """What a reader must know before believing the figures, in sentences."""
    same = sum(trained.have_patients_of(evaluated.rows.take(pa.array(evaluated.measured))))
    tumors = np.isin(evaluated.labels, evaluated.positive)
    one_kind = tumors.all() or not tumors.any()
    labels = ", ".join(counts["unmapped_labels"])
    notes = [
        (same, f"{same} measured scans are of patients who were trained on: figures are too good."),
        (n_groups < _FEW_GROUPS, f"Only {n_groups} independent groups: the intervals are rough."),
        (one_kind, "All scans are of one kind (tumor or none): some figures are not defined."),
        (counts["unmapped"], f"{counts['unmapped']} scans have labels not mapped: {labels}."),
    ]
    return [sentence for applies, sentence in notes if applies]
