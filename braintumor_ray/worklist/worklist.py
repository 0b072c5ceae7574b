"""Which scans to read or to label first; needs a results folder, not the model."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from braintumor_ray.errors import ResultsError, UsageError
from braintumor_ray.predict.results import ResultsFolder, read_results, results_folder
from braintumor_ray.predict.shift import Shift
from braintumor_ray.storage import write_atomically
from braintumor_ray.types import PREDICTION_SET, Ints
from braintumor_ray.worklist.options import ORDERS, SETS, Order, Sets
from braintumor_ray.worklist.page import write_worklist_page

SCANS, PATIENTS, PAGE = "worklist.csv", "patients.csv", "worklist.html"
_DECIMALS = 6
_READ = (
    "scan_id",
    "uri",
    "frame",
    "patient_key",
    "status",
    "height",
    "width",
    "pixel_sha256",
    "predicted_class",
    "probabilities",
    "decision",
    "entropy",
    "out_of_domain",
    "cam_class",
)


def make_worklist(
    results_path: str | Path,
    output: str | Path,
    by: Order = "urgency",
    limit: int | None = None,
    overlays: int = 50,
    sets: Sets = "all",
) -> dict[str, Any]:
    """Sort the scans and patients of a results folder and write them as CSV and as a page.

    Urgency is the sum of the positive classes' probabilities. Usefulness, of a label for the next
    training, is the entropy of the probabilities; where it is equal, the smaller margin between
    the two likeliest classes comes first. Patients are in the order of their first scans, with the
    number of their slices; a scan without a patient key is a patient of its own.

    Writes worklist.csv, patients.csv and worklist.html (self-contained). worklist.csv has an empty
    column `label`: filled in, it comes back as labels through
    `braintumor-ray catalog worklist.csv --path-column path --label-column label --root ARCHIVE`.

    Args:
        results_path: a results folder.
        output: a folder, made if it is not there.
        by: 'urgency' or 'usefulness'.
        limit: at most so many scans, and so many patients; None: all.
        overlays: scans drawn on the page, from stored maps and, where it can still be read and
            has the pixels that were scored, the scan's file.
        sets: which scans by their prediction sets: of one class, of several, of none, or not of
            one ('unsure').

    Returns:
        `by`, `sets`, `shifts` (a sentence for each run that differs from training), `scans`
        and `patients` listed (None: no patient is known), `ranked` (scans with a prediction and
        such a set), `positive` (of them), `not_ranked` (counts by status), `overlays`,
        `scans_drawn`, `files`.

    Raises:
        ResultsError: not a results folder, or no scan in it has a prediction, or such a set.
        UsageError: an unknown order or choice of sets, or a limit or number of overlays that is
            out of range.
    """
    _check(by, limit, overlays, sets)
    folder = results_folder(results_path)
    if sets != "all" and not has_sets(folder):
        raise ResultsError(
            f"'{folder.location}' has no prediction sets to choose by (--sets {sets}): its bundle "
            "was made before they existed; 'evaluate --recalibrate BUNDLE' makes one with sets, "
            "to score with into another folder"
        )
    rows = load_rows(folder)
    status = rows["status"].to_pylist()
    not_ranked = {name: status.count(name) for name in sorted({*status} - {"ok"})}
    scored = with_sets(rows.filter(pc.equal(rows["status"], "ok")), sets)
    if not scored.num_rows:
        raise ResultsError(
            f"'{folder.location}' has no scan whose prediction set is '{sets}'; leave out --sets"
        )
    ranked = rank_scans(scored, folder, by)
    patients = rank_patients(ranked)
    listed, listed_patients = ranked.slice(0, limit), patients.slice(0, limit)
    known = ranked["patient_key"].null_count < ranked.num_rows
    target = str(output).rstrip("/")
    write_atomically(f"{target}/{SCANS}", _csv(_scan_columns(listed, folder)))
    write_atomically(f"{target}/{PATIENTS}", _csv(listed_patients))
    summary = {
        "by": by,
        "sets": sets,
        "shifts": run_shifts(folder),
        "scans": listed.num_rows,
        "patients": listed_patients.num_rows if known else None,
        "ranked": ranked.num_rows,
        "positive": int(pc.sum(ranked["decision"]).as_py()),
        "not_ranked": not_ranked,
        "overlays": min(overlays, listed.num_rows),
        "files": [SCANS, PATIENTS, PAGE],
    }
    page = Path(f"{target}/{PAGE}")
    drawn = write_worklist_page(page, folder, summary, listed, listed_patients)
    return summary | {"scans_drawn": drawn}


def run_shifts(folder: ResultsFolder) -> list[str]:
    """A sentence for each run whose scans differ from those of training."""
    runs = [run.get("summary", {}) for run in folder.runs()]
    shifts = [(run.get("generation"), Shift.of_run(run)) for run in runs]
    return [f"Run {n}: {s.sentence()}." for n, s in shifts if s is not None and s.differs]


def load_rows(folder: ResultsFolder, columns: Sequence[str] = ()) -> pa.Table:
    """Current rows with the catalog's `path` and label (`known_label`), one per scan.

    Args:
        folder: the results.
        columns: further ones of the results.

    Raises:
        ResultsError: nothing committed, or no row has a prediction.
    """
    further = [*columns, *([PREDICTION_SET] if has_sets(folder) else [])]
    rows = read_results(folder.location, [*_READ, *further, *folder.meta["cam_methods"]])
    if "ok" not in rows["status"].to_pylist():
        raise ResultsError(
            f"'{folder.location}' has {rows.num_rows} scans and no prediction among them; "
            "see their column 'reason'"
        )
    wanted = ["scan_id", "path", "label"]
    catalog = pa.concat_tables([folder.catalog_of(m, wanted) for m in folder.manifests()])
    ids = catalog["scan_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    place = np.searchsorted(ids[order], rows["scan_id"].to_numpy())
    found = catalog.take(pa.array(order[np.minimum(place, len(ids) - 1)]))
    if not found["scan_id"].equals(rows["scan_id"]):
        raise ResultsError(
            f"'{folder.location}' has rows whose scans are in none of its catalogs; "
            "'braintumor-ray verify' shows which"
        )
    rows = rows.append_column("path", found["path"])
    return rows.append_column("known_label", found["label"])


def has_sets(folder: ResultsFolder) -> bool:
    """Whether the rows of a results folder have prediction sets."""
    return PREDICTION_SET in folder.meta.get("optional_columns", ())


def with_sets(rows: pa.Table, sets: Sets) -> pa.Table:
    """The rows whose prediction sets are of a kind; see `make_worklist`."""
    if sets == "all":
        return rows
    size = pc.list_value_length(rows[PREDICTION_SET])
    kept = {
        "single": pc.equal(size, 1),
        "several": pc.greater(size, 1),
        "empty": pc.equal(size, 0),
        "unsure": pc.not_equal(size, 1),
    }
    return rows.filter(kept[sets])


def rank_scans(rows: pa.Table, folder: ResultsFolder, by: Order) -> pa.Table:
    """Sort predicted scans; adds `rank` (from 1), `urgency` in [0, 1] and `margin` in [0, 1].

    Six decimals are kept, the rest is float32's rounding; ties are in order of path and frame.

    Args:
        rows: from `load_rows`, status ok.
        folder: whose description names the positive classes.
        by: the order.
    """
    names = folder.meta["class_names"]
    flat = pc.list_flatten(rows["probabilities"]).to_numpy().astype(np.float64)
    probabilities = flat.reshape(rows.num_rows, len(names))
    positive = [names.index(name) for name in folder.meta["positive_classes"]]
    highest = np.sort(probabilities, axis=1)
    values = {
        "urgency": probabilities[:, positive].sum(axis=1),
        "margin": highest[:, -1] - highest[:, -2],
        "entropy": rows["entropy"].to_numpy().astype(np.float64),
    }
    rows = rows.drop_columns(["entropy"])
    for name, column in values.items():
        rows = rows.append_column(name, pa.array(column.round(_DECIMALS)))
    keys = {
        "urgency": [("urgency", "descending")],
        "usefulness": [("entropy", "descending"), ("margin", "ascending")],
    }[by]
    ranked = rows.sort_by([*keys, ("path", "ascending"), ("frame", "ascending")])
    return ranked.add_column(0, "rank", pa.array(np.arange(1, ranked.num_rows + 1)))


def rank_patients(ranked: pa.Table) -> pa.Table:
    """One row per patient, in the order of their first scans.

    Returns:
        `rank`, `patient_key` (null: a scan of unknown patient), `slices`, `positive_slices`,
        `urgency` and `entropy` (maxima over the slices), and of the first scan `predicted_class`,
        `path`, `frame`, `scan_rank`.
    """
    first, code = _patient_codes(ranked["patient_key"].to_pylist())
    top = ranked.take(pa.array(first))
    scans = pa.table({"code": code, **{n: ranked[n] for n in ("decision", "urgency", "entropy")}})
    of = [("code", "count"), ("decision", "sum"), ("urgency", "max"), ("entropy", "max")]
    # One thread: the groups keep the order of their first rows.
    found = scans.group_by("code", use_threads=False).aggregate(of)
    return pa.table(
        {
            "rank": pa.array(np.arange(1, len(first) + 1)),
            "patient_key": top["patient_key"],
            "slices": found["code_count"],
            "positive_slices": found["decision_sum"].cast(pa.int64()),
            "urgency": found["urgency_max"],
            "entropy": found["entropy_max"],
            **{name: top[name] for name in ("predicted_class", "path", "frame")},
            "scan_rank": top["rank"],
        }
    )


def _patient_codes(keys: Sequence[str | None]) -> tuple[Ints, Ints]:
    """Row of each patient's first scan, and each row's patient, counted in that order."""
    number: dict[str | int, int] = {}
    # A scan without a key is a patient of its own: its row number, never equal to a key.
    patients = (row if key is None else key for row, key in enumerate(keys))
    codes = np.array([number.setdefault(patient, len(number)) for patient in patients], np.int64)
    return np.unique(codes, return_index=True)[1], codes


def _scan_columns(ranked: pa.Table, folder: ResultsFolder) -> pa.Table:
    """What goes into worklist.csv; no column is called as a patient column would be."""
    names = folder.meta["class_names"]
    flat = pc.list_flatten(ranked["probabilities"]).to_numpy()
    probabilities = flat.reshape(ranked.num_rows, len(names))
    figures = ("predicted_class", "urgency", "entropy", "margin", "decision", "out_of_domain")
    further = {}
    if PREDICTION_SET in ranked.column_names:  # joined as labels are in --classes
        further[PREDICTION_SET] = pc.binary_join(ranked[PREDICTION_SET], "+")
    return pa.table(
        {
            **{name: ranked[name] for name in ("rank", "path", "frame")},
            "label": pa.nulls(ranked.num_rows, pa.string()),
            **{name: ranked[name] for name in figures},
            **further,
            **{f"prob_{name}": probabilities[:, index] for index, name in enumerate(names)},
            **{name: ranked[name] for name in ("known_label", "patient_key", "scan_id", "uri")},
        }
    )


def _csv(table: pa.Table) -> bytes:
    for index, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            rounded = pc.round(table[field.name].cast(pa.float64()), _DECIMALS)
            table = table.set_column(index, field.name, rounded)
    buffer = io.BytesIO()
    csv.write_csv(table, buffer, csv.WriteOptions(quoting_style="needed"))
    return buffer.getvalue()


def _check(by: str, limit: int | None, overlays: int, sets: str) -> None:
    if sets not in SETS:
        raise UsageError(f"sets '{sets}' is unknown; use {', '.join(SETS)}")
    if by not in ORDERS:
        raise UsageError(f"order '{by}' is unknown; sort by {' or '.join(ORDERS)}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} lists nothing; give 1 or more, or leave it out")
    if overlays < 0:
        raise UsageError(f"{overlays} overlays cannot be drawn; give 0 or more")
