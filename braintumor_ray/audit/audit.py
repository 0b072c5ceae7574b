"""The audit of data sets: copies, leaks, conflicting labels, unreadable files, shortcuts."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from braintumor_ray.audit.copies import (
    KINDS,
    Keys,
    across,
    codes,
    conflicting_rows,
    mixed_keys,
    partner_before,
    split_codes,
    surplus,
    within,
)
from braintumor_ray.audit.fingerprints import FINGERPRINT_SCHEMA, fingerprint_catalog, hash_words
from braintumor_ray.audit.pairs import PairPictures, draw_pairs, find_pairs
from braintumor_ray.audit.shortcuts import shortcut_scores
from braintumor_ray.decode.files import SCAN_COLUMNS, with_volumes
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.errors import UsageError
from braintumor_ray.splits.duplicates import DCT_DISTANCE, DHASH_DISTANCE, duplicate_groups
from braintumor_ray.splits.splits import merge_groups
from braintumor_ray.storage import write_atomically
from braintumor_ray.types import Ints, Progress

SCHEMA_VERSION = 1
_EXAMPLES = 10
_COLUMNS = (*SCAN_COLUMNS, "path", "label", "official_split", "patient_key")

Catalogs = Sequence[tuple[str, pa.Table]]


def run_audit(
    catalogs: Catalogs,
    output: str | Path,
    *,
    workers: int = 2,
    seed: int = 0,
    shortcuts: bool = True,
    max_pairs: int = 36,
    limits: DecodeLimits | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Audit data sets, alone and against each other; writes audit.json and audit.html.

    Args:
        catalogs: data sets by name; a `split` column is used where there is one, else
            `official_split`. Tables that have the columns of `fingerprints.FINGERPRINT_SCHEMA`
            already are not read again.
        output: folder to write to; files of an earlier audit are replaced.
        workers: decoding processes.
        seed: of the shortcut classifier's folds.
        shortcuts: train the shortcut classifier.
        max_pairs: most pairs of pictures in the contact sheet.
        limits: what a file may cost.
        progress: called with (scans read, scans).

    Returns:
        The content of audit.json.

    Raises:
        CatalogError: a catalog without rows.
        UsageError: no catalogs, or two of one name.
    """
    _check_names(catalogs)
    scans = combine(
        [(name, _fingerprinted(table, workers, limits, progress)) for name, table in catalogs]
    )
    return write_audit(
        scans, Path(output), seed=seed, shortcuts=shortcuts, max_pairs=max_pairs, limits=limits
    )


def write_audit(
    scans: pa.Table,
    output: Path,
    *,
    seed: int = 0,
    shortcuts: bool = True,
    max_pairs: int = 36,
    limits: DecodeLimits | None = None,
) -> dict[str, Any]:
    """Audit fingerprinted scans and write audit.json, audit.html and pairs.png.

    Args:
        scans: from `combine`; see `run_audit` for the rest.
        output: folder to write to.
        seed: of the shortcut classifier's folds.
        shortcuts: train the shortcut classifier.
        max_pairs: most pairs of pictures in the contact sheet.
        limits: what a file may cost when pictures are drawn.
    """
    from braintumor_ray.pages.pages import write_page

    keys = copy_keys(scans)
    audit = audit_scans(scans, keys, seed=seed, shortcuts=shortcuts)
    pairs = find_pairs(scans, keys, max_pairs)
    pictures: PairPictures = draw_pairs(scans, pairs, limits)
    if pictures.sheet is not None:
        from braintumor_ray.explain.overlay import write_png

        output.mkdir(parents=True, exist_ok=True)
        write_png(output / "pairs.png", pictures.sheet)
    text = json.dumps(audit, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(output / "audit.json", (text + "\n").encode())
    context = {"title": "Data audit", "audit": audit, "pairs": pictures.tiles}
    write_page(output / "audit.html", "audit.html.j2", context)
    return audit


def combine(fingerprinted: Catalogs) -> pa.Table:
    """One table of several fingerprinted catalogs, with column `dataset`, for `write_audit`.

    Raises:
        UsageError: no catalogs, or two of one name.
    """
    _check_names(fingerprinted)
    return pa.concat_tables([_audited_columns(name, table) for name, table in fingerprinted])


def copy_keys(scans: pa.Table) -> Keys:
    """Which scans are alike: by bytes, by pixels, and by group of near copies."""
    readable = _readable(scans)
    pixels = scans["pixel_sha256"].to_pylist()
    contents = [
        f"{digest}#{frame}" if ok else None
        for digest, frame, ok in zip(
            scans["byte_sha256"].to_pylist(), scans["frame"].to_pylist(), readable, strict=True
        )
    ]
    flat = np.array([value is not False for value in scans["flat"].to_pylist()], dtype=bool)
    groups = duplicate_groups(
        pixels, hash_words(scans["dhash"]), flat=flat, dct_hashes=hash_words(scans["dct_hash"])
    )
    return Keys(codes(contents)[1], codes(pixels)[1], np.where(readable, groups, -1))


def audit_scans(
    scans: pa.Table, keys: Keys, *, seed: int = 0, shortcuts: bool = True
) -> dict[str, Any]:
    """Count everything; no file is read.

    Args:
        scans: from `combine`.
        keys: from `copy_keys`.
        seed: of the shortcut classifier's folds.
        shortcuts: train the shortcut classifier.

    Returns:
        The content of audit.json. `cross_split` counts the scans of a later split (train, val,
        test, then others) of which an earlier one has a copy; `surplus` those that would go if one
        of each were kept; `groups` are of near copies, by two perceptual hashes, and their labels
        conflict where two scans of one data set differ (data sets name classes as they like).
    """
    split_names, splits = split_codes(scans["split"].to_pylist())
    label_names, labels = codes(scans["label"].to_pylist())
    dataset_names, datasets = codes(scans["dataset"].to_pylist())
    patients = codes(scans["patient_key"].to_pylist())[1]
    audit: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "rows": scans.num_rows,
        "readable": int(_readable(scans).sum()),
        "hash_distances": {"dhash": DHASH_DISTANCE, "dct": DCT_DISTANCE},
        "datasets": _by_dataset(scans),
        "scans": _class_table(split_names, splits, label_names, labels),
        "unreadable": _unreadable(scans),
        "surplus": {kind: surplus(keys.of(kind)) for kind in KINDS},
        "cross_split": {kind: _seen_before(keys.of(kind), splits) for kind in KINDS},
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
        "patients": _patients(patients, splits),
    }
    if shortcuts:
        joined = merge_groups(scans["patient_key"].to_pylist(), _own_groups(keys.near_identical))
        audit["shortcuts"] = shortcut_scores(scans, joined, seed=seed)
    return audit


def _seen_before(keys: Ints, splits: Ints) -> int:
    return int((partner_before(keys, splits) >= 0).sum())


def _groups(keys: Keys, splits: Ints, labels: Ints, datasets: Ints) -> dict[str, int]:
    groups = keys.near_identical[keys.near_identical >= 0]
    sizes = np.unique(groups, return_counts=True)[1]
    conflicts = {kind: conflicting_rows(keys.of(kind), labels, datasets) for kind in KINDS}
    return {
        "count": len(sizes),
        "with_copies": int((sizes > 1).sum()),
        "largest": int(sizes.max(initial=0)),
        "across_splits": len(mixed_keys(keys.near_identical, splits)),
        "conflicting_labels": _distinct(keys.near_identical[conflicts["near_identical"]]),
        "conflicting_labels_pixel_identical": _distinct(
            keys.pixel_identical[conflicts["pixel_identical"]]
        ),
    }


def _distinct(keys: Ints) -> int:
    return len(np.unique(keys))


def _patients(patients: Ints, splits: Ints) -> dict[str, int]:
    mixed = mixed_keys(patients, splits)
    return {
        "known": len(np.unique(patients[patients >= 0])),
        "scans_without": int((patients < 0).sum()),
        "across_splits": len(mixed),
        "scans_across_splits": int(np.isin(patients, mixed).sum()) if len(mixed) else 0,
    }


def _unreadable(scans: pa.Table) -> dict[str, Any]:
    rows = zip(
        scans["status"].to_pylist(),
        scans["reason"].to_pylist(),
        scans["path"].to_pylist(),
        strict=True,
    )
    found = [(status, reason, path) for status, reason, path in rows if status != "ok"]
    return {
        "quarantined": sum(status == "quarantined" for status, _, _ in found),
        "skipped": sum(status == "skipped" for status, _, _ in found),
        "by_reason": dict(Counter(reason for _, reason, _ in found).most_common()),
        "examples": [{"path": path, "reason": reason} for _, reason, path in found[:_EXAMPLES]],
    }


def _by_dataset(scans: pa.Table) -> dict[str, dict[str, int]]:
    names, datasets = codes(scans["dataset"].to_pylist())
    readable = _readable(scans)
    return {
        name: {
            "rows": int((datasets == code).sum()),
            "readable": int((readable & (datasets == code)).sum()),
        }
        for code, name in enumerate(names)
    }


def _class_table(
    split_names: list[str], splits: Ints, label_names: list[str], labels: Ints
) -> dict[str, dict[str, int]]:
    """Scans per split and class; without the one or the other under 'none'."""
    names = [*split_names, "none"], [*label_names, "none"]
    shape = (len(names[0]), len(names[1]))
    flat = (splits % shape[0]) * shape[1] + labels % shape[1]  # -1 becomes the last one
    table = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    return {
        split: {name: int(n) for name, n in zip(names[1], row, strict=True) if n}
        for split, row in zip(names[0], table, strict=True)
        if row.any()
    }


def _readable(scans: pa.Table) -> Any:  # noqa: ANN401 - bool (n,)
    return np.array([status == "ok" for status in scans["status"].to_pylist()], dtype=bool)


def _own_groups(groups: Ints) -> Ints:
    """Unreadable scans in groups of their own, so that they join nothing."""
    alone = groups < 0
    return np.where(alone, groups.max(initial=0) + 1 + np.cumsum(alone), groups)


def _fingerprinted(
    table: pa.Table, workers: int, limits: DecodeLimits | None, progress: Progress | None
) -> pa.Table:
    if set(FINGERPRINT_SCHEMA.names) <= set(table.column_names):
        return table
    return fingerprint_catalog(table, workers=workers, limits=limits, progress=progress)


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
        raise UsageError(f"data sets {names}: give one or more, each under a name of its own")
