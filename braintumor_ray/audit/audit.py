"""The audit of data sets: copies, leaks, conflicting labels, unreadable files, shortcuts."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.audit.copies import (
    KINDS,
    Keys,
    across,
    codes,
    conflicting_rows,
    mixed_keys,
    partner_before,
    readable_rows,
    split_codes,
    surplus,
    within,
)
from braintumor_ray.audit.fingerprints import FINGERPRINT_SCHEMA, fingerprint_catalog, hash_words
from braintumor_ray.audit.labels import draw_suspects, labels_csv, suspect_labels
from braintumor_ray.audit.options import LabelOptions
from braintumor_ray.audit.pairs import draw_pairs, find_pairs
from braintumor_ray.audit.shortcuts import shortcut_scores
from braintumor_ray.catalog.schema import PATIENT_COLUMNS, patients_of
from braintumor_ray.decode.files import SCAN_COLUMNS, with_volumes
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import write_png
from braintumor_ray.pages.names import word_for_none
from braintumor_ray.pages.pictures import Picture
from braintumor_ray.splits.duplicates import DCT_DISTANCE, DHASH_DISTANCE, duplicate_groups
from braintumor_ray.splits.splits import merge_groups
from braintumor_ray.storage import write_atomically
from braintumor_ray.types import Ints, Progress

SCHEMA_VERSION = 1
_EXAMPLES = 10
_COLUMNS = dict.fromkeys((*SCAN_COLUMNS, *PATIENT_COLUMNS, "path", "label", "official_split"))

Catalogs = Sequence[tuple[str, pa.Table]]


def run_audit(
    catalogs: Catalogs,
    output: str | Path,
    *,
    workers: int = 2,
    shortcuts: bool = True,
    burned_in: bool = True,
    labels: LabelOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Audit data sets, one by one and against each other; write audit.json and audit.html.

    Args:
        catalogs: data sets by name; a `split` column is used where there is one, else
            `official_split`. Tables that have the columns of `fingerprints.FINGERPRINT_SCHEMA`
            already are not read again.
        output: folder to write to; files of an earlier audit are replaced.
        workers: decoding processes.
        shortcuts: train the shortcut classifier.
        burned_in: look for burned-in text.
        labels: how suspect labels are found; None: as by default, not at all.
        progress: called with (scans read, scans).

    Returns:
        The content of audit.json.

    Raises:
        CatalogError: a catalog without rows.
        UsageError: no catalogs, or two of one name, or suspect labels cannot be looked for.
    """
    from braintumor_ray.pages.pages import write_page

    _check_names(catalogs)
    scans = combine(
        [(name, _fingerprinted(table, workers, burned_in, progress)) for name, table in catalogs]
    )
    folder, keys = Path(output), copy_keys(scans)
    audit = audit_scans(scans, keys, shortcuts=shortcuts)
    tiles, sheet = draw_pairs(scans, find_pairs(scans, keys))
    _write_sheet(folder / "pairs.png", sheet)
    suspects: list[dict[str, Any]] = []
    if labels is not None and labels.labels:
        audit["labels"], suspects = _suspects(scans, keys, labels, folder, progress)
    text = json.dumps(audit, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "audit.json", (text + "\n").encode())
    context = {"title": "Data audit", "audit": audit, "pairs": tiles, "suspects": suspects}
    write_page(folder / "audit.html", "audit.html.j2", context)
    return audit


def combine(fingerprinted: Catalogs) -> pa.Table:
    """One table of several fingerprinted catalogs, with column `dataset`.

    Raises:
        UsageError: no catalogs, or two of one name.
    """
    _check_names(fingerprinted)
    return pa.concat_tables([_audited_columns(name, table) for name, table in fingerprinted])


def copy_keys(scans: pa.Table) -> Keys:
    """Which scans are alike: by bytes, by pixels, and by group of near copies."""
    readable = readable_rows(scans)
    pixels = scans["pixel_sha256"].to_pylist()
    files = zip(scans["byte_sha256"].to_pylist(), scans["frame"].to_pylist(), readable, strict=True)
    # Frames of one file have its digest, but are no copies of one another.
    contents = [f"{digest}#{frame}" if ok else None for digest, frame, ok in files]
    # Null where nothing was read: like a flat scan it joins no other by its hashes.
    flat = np.array([value is not False for value in scans["flat"].to_pylist()], dtype=bool)
    groups = duplicate_groups(
        pixels, hash_words(scans["dhash"]), flat=flat, dct_hashes=hash_words(scans["dct_hash"])
    )
    return Keys(codes(contents)[1], codes(pixels)[1], np.where(readable, groups, -1))


def audit_scans(scans: pa.Table, keys: Keys, *, shortcuts: bool = True) -> dict[str, Any]:
    """Count copies, leaks and conflicts; no file is read.

    Args:
        scans: from `combine`.
        keys: from `copy_keys`.
        shortcuts: train the shortcut classifier.

    Returns:
        The content of audit.json. `cross_split` counts the scans of a later split (train, val,
        test, then others) of which an earlier one has a copy; `surplus` those that would be removed
        if one of each were kept; `groups` are of near copies, by two perceptual hashes, and their
        labels conflict where two scans of one data set differ (data sets may name classes
        differently). `patients` counts those with a key, and of all (`patients_of`) those `across`
        splits.
    """
    split_names, splits = split_codes(scans["split"].to_pylist())
    label_names, labels = codes(scans["label"].to_pylist())
    dataset_names, datasets = codes(scans["dataset"].to_pylist())
    audit: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "rows": scans.num_rows,
        "readable": int(readable_rows(scans).sum()),
        "hash_distances": {"dhash": DHASH_DISTANCE, "dct": DCT_DISTANCE},
        "datasets": _by_dataset(scans),
        "scans": _class_table(split_names, splits, label_names, labels),
        "unreadable": _unreadable(scans),
        "burned_in": _burned_in(scans),
        "surplus": {kind: surplus(keys.of(kind)) for kind in KINDS},
        "cross_split": {k: int((partner_before(keys.of(k), splits) >= 0).sum()) for k in KINDS},
        "splits": {
            "within": within(keys, splits, split_names),
            "across": across(keys, splits, split_names),
        },
        "classes": {
            "within": within(keys, labels, label_names),
            "across": across(keys, labels, label_names),
        },
        "between_datasets": across(keys, datasets, dataset_names),
        "groups": _groups(keys, splits, labels, datasets),
        "patients": _patients(scans, splits),
    }
    if shortcuts:
        audit["shortcuts"] = shortcut_scores(scans, _independent(scans, keys))
    return audit


def _suspects(
    scans: pa.Table, keys: Keys, options: LabelOptions, folder: Path, progress: Progress | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rank labels and write labels.csv and labels.png; the summary, and tiles for the page."""
    found, ranked = suspect_labels(scans, _independent(scans, keys), options, progress)
    tiles, sheet = draw_suspects(scans, ranked)
    _write_sheet(folder / "labels.png", sheet)
    if ranked.num_rows:
        write_atomically(folder / "labels.csv", labels_csv(ranked))
    return found, tiles


def _independent(scans: pa.Table, keys: Keys) -> Ints:
    """Groups of copies and of scans of one patient."""
    return merge_groups(patients_of(scans), _own_groups(keys.near_identical))


def _write_sheet(path: Path, sheet: Picture | None) -> None:
    if sheet is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, sheet)


def _groups(keys: Keys, splits: Ints, labels: Ints, datasets: Ints) -> dict[str, int]:
    groups = keys.near_identical[keys.near_identical >= 0]
    sizes = np.unique(groups, return_counts=True)[1]
    return {
        "count": len(sizes),
        "with_copies": int((sizes > 1).sum()),
        "largest": int(sizes.max(initial=0)),
        "across_splits": len(mixed_keys(keys.near_identical, splits)),
        "conflicting_labels": _conflicts(keys.near_identical, labels, datasets),
        "conflicting_labels_pixel_identical": _conflicts(keys.pixel_identical, labels, datasets),
    }


def _conflicts(keys: Ints, labels: Ints, datasets: Ints) -> int:
    return len(np.unique(keys[conflicting_rows(keys, labels, datasets)]))


def _patients(scans: pa.Table, splits: Ints) -> dict[str, int]:
    named = scans["patient_key"].to_pylist()
    patients = codes(patients_of(scans))[1]
    mixed = mixed_keys(patients, splits)
    return {
        "known": len({*named} - {None}),
        "scans_without": named.count(None),
        "across_splits": len(mixed),
        "scans_across_splits": int(np.isin(patients, mixed).sum()),
    }


def _unreadable(scans: pa.Table) -> dict[str, Any]:
    found = scans.filter(pa.array(~readable_rows(scans)))
    status = Counter(found["status"].to_pylist())
    return {
        "quarantined": status["quarantined"],
        "skipped": status["skipped"],
        "by_reason": dict(Counter(found["reason"].to_pylist()).most_common()),
        "examples": found.select(["path", "reason"]).slice(0, _EXAMPLES).to_pylist(),
    }


def _burned_in(scans: pa.Table) -> dict[str, Any]:
    """Scans with burned-in text, by tag and by picture, with examples."""
    found = scans.filter(pc.is_valid(scans["burned_in"]))
    kinds = Counter(found["burned_in"].to_pylist())
    return {
        "tag": kinds["tag"],
        "picture": kinds["picture"],
        "examples": found["path"].slice(0, _EXAMPLES).to_pylist(),
    }


def _by_dataset(scans: pa.Table) -> dict[str, dict[str, int]]:
    rows = Counter(scans["dataset"].to_pylist())
    readable = Counter(scans.filter(pa.array(readable_rows(scans)))["dataset"].to_pylist())
    return {name: {"rows": rows[name], "readable": readable[name]} for name in sorted(rows)}


def _class_table(
    split_names: list[str], splits: Ints, label_names: list[str], labels: Ints
) -> dict[str, dict[str, int]]:
    """Scans per split and class; 'none' holds those without a split or a class."""
    counts = Counter(zip(splits.tolist(), labels.tolist(), strict=True))
    classes = [*enumerate(label_names), (-1, word_for_none(label_names))]
    table = {
        split: {name: counts[row, code] for code, name in classes if counts[row, code]}
        for row, split in [*enumerate(split_names), (-1, word_for_none(split_names))]
    }
    return {split: found for split, found in table.items() if found}


def _own_groups(groups: Ints) -> Ints:
    """Groups in which each unreadable scan is alone, so that it joins nothing."""
    alone = groups < 0
    return np.where(alone, groups.max(initial=0) + 1 + np.cumsum(alone), groups)


def _fingerprinted(
    table: pa.Table, workers: int, text: bool, progress: Progress | None
) -> pa.Table:
    if set(FINGERPRINT_SCHEMA.names) <= set(table.column_names):
        return table
    return fingerprint_catalog(table, workers=workers, text=text, progress=progress)


def _audited_columns(name: str, table: pa.Table) -> pa.Table:
    split = "split" if "split" in table.column_names else "official_split"
    table = with_volumes(table)
    columns = {column: table[column] for column in (*_COLUMNS, *FINGERPRINT_SCHEMA.names)}
    columns["split"] = table[split]
    columns["dataset"] = pa.array([name] * table.num_rows, pa.string())
    return pa.table(columns)


def _check_names(catalogs: Catalogs) -> None:
    names = [name for name, _ in catalogs]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"data sets {names}: give one or more, each with its own name")
