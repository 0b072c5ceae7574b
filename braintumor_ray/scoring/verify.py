"""Check of a results folder: one current row per scan, and nothing else."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.errors import ResultsError
from braintumor_ray.predict.results import (
    CATALOGS,
    COMPACTIONS,
    MANIFESTS,
    ROWS,
    ResultsFolder,
    current_row_files,
    current_rows,
    first_generation,
    foreign_engine,
    is_compacted,
    results_folder,
    row_files,
    superseded_rows,
)
from braintumor_ray.predict.schema import STATUSES, result_schema
from braintumor_ray.scoring.scans import Ids, are_in, joined, keys_of

SHOWN = 5  # examples per kind of difference


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        scans: current scans that the catalogs demand.
        rows: rows in committed files, superseded ones included.
        differences: one sentence each; none: the folder is whole.
    """

    scans: int
    rows: int
    differences: list[str]


def verify(results: str, newest: int | None = None, *, compacted: bool = True) -> Report:
    """Check a results folder against its own catalogs and manifests; reads every row once.

    Memory grows by 24 bytes per scan.

    Args:
        results: the folder.
        newest: check the rows of so many generations only, the newest (what each adds is new, so
            that nights cost what they scored); files and numbering are checked throughout.
        compacted: also those of compacted manifests, which `compact` has compared by content.

    Raises:
        ResultsError: this is not a results folder at all.
    """
    folder = results_folder(results)
    meta = folder.meta
    manifests = folder.manifests()
    differences = list(_unlisted_files(folder, manifests)) + list(_gaps(manifests))
    if not manifests:
        unfinished = "no run has been committed; run 'braintumor-ray score' to its end"
        return Report(0, 0, [*differences, unfinished])
    scans = rows = 0
    superseded = superseded_rows(manifests)
    current: list[_Current] = []
    chosen = manifests if newest is None else manifests[-newest:]
    for manifest in chosen if compacted else [m for m in chosen if not is_compacted(m)]:
        gone = superseded[int(manifest["generation"])]
        try:
            ids, old, uris, faults = _generation_rows(folder, manifest, meta, gone)
        except ResultsError as error:
            differences.append(str(error))
            continue
        if fault := foreign_engine(manifest, meta):
            faults.append(f"generation {manifest['generation']}: {fault}")
        rows += len(ids) + len(old)
        kept = np.setdiff1d(ids, gone)
        scans += len(kept)
        paths, different = _compare(folder, manifest, ids, old, kept)
        differences += [*faults, *different]
        current.append(_Current(manifest, uris, paths, kept))
    differences += _repeated(folder, manifests, current)
    return Report(scans, rows, differences)


@dataclass(frozen=True)
class _Current:
    """The current rows of a generation: hashes of (URI, frame) and of (path, frame), and ids."""

    manifest: dict[str, Any]
    uris: Ids
    paths: Ids
    ids: Ids

    def scans(self, folder: ResultsFolder) -> pa.Table:
        """Path and frame of each, from the catalog."""
        table = folder.catalog_of(self.manifest, ["scan_id", "path", "frame"])
        wanted, first = np.unique(table["scan_id"].to_numpy(), return_index=True)
        return table.take(pa.array(first[are_in(wanted, self.ids)]))


def _generation_rows(
    folder: ResultsFolder, manifest: dict[str, Any], meta: dict[str, Any], gone: Ids
) -> tuple[Ids, Ids, Ids, list[str]]:
    """Ids of the rows, of old ones kept apart, keys of (uri, frame) of current ones, faults."""
    optional = meta.get("optional_columns", ())
    schema = result_schema(tuple(meta["cam_shape"]), meta["cam_methods"], optional)
    ids, old, keys, faults = [], [], [], []
    fresh = set(current_row_files(manifest))
    tables = folder.read_parquet(row_files(manifest))
    for file, table in zip(manifest["files"], tables, strict=True):
        faults += [f"{file['path']}: {fault}" for fault in _file_faults(table, file, schema, meta)]
        if {"scan_id", "uri", "frame"} <= {*table.column_names}:
            found = table["scan_id"].to_numpy()
            if file["path"] not in fresh:
                old.append(found)
                continue
            ids.append(found)
            keys.append(keys_of(table, "uri")[~are_in(found, gone)])
    return joined(ids), joined(old), joined(keys), faults


def _file_faults(
    table: pa.Table, file: dict[str, Any], schema: pa.Schema, meta: dict[str, Any]
) -> Iterator[str]:
    if table.num_rows != file["rows"]:
        yield f"{table.num_rows} rows, the manifest says {file['rows']}"
    missing = [field.name for field in schema if field.name not in table.column_names]
    if missing:
        yield f"column '{missing[0]}' is missing"
        return
    for field in schema:
        kind = table.schema.field(field.name).type
        if kind != field.type:
            yield f"column '{field.name}' is {kind}, not {field.type}"
            return
    yield from _value_faults(table, meta)


def _value_faults(table: pa.Table, meta: dict[str, Any]) -> Iterator[str]:
    foreign = set(table["bundle_fingerprint"].to_pylist()) - {meta["bundle_fingerprint"]}
    if foreign:
        yield f"rows of another bundle, fingerprint {sorted(map(str, foreign))[0]}"
    unknown = set(table["status"].to_pylist()) - set(STATUSES)
    if unknown:
        yield f"status {sorted(map(str, unknown))[0]!r} is not one of {', '.join(STATUSES)}"
    ok = pc.equal(table["status"], "ok")
    scored, unscored = table.filter(ok), table.filter(pc.invert(ok))
    size = int(np.prod(meta["cam_shape"]))
    lengths = dict.fromkeys(meta["cam_methods"], size)
    lengths["probabilities"] = len(meta["class_names"])
    for name, length in lengths.items():
        found = pc.fill_null(pc.list_value_length(scored[name]), -1)
        wrong = pc.sum(pc.not_equal(found, length)).as_py() or 0
        if wrong:
            yield f"{wrong} ok rows whose '{name}' has not {length} values"
    if unscored["reason"].null_count:
        yield f"{unscored['reason'].null_count} rows that are not ok and have no reason"


def _compare(
    folder: ResultsFolder, manifest: dict[str, Any], own: Ids, old: Ids, kept: Ids
) -> tuple[Ids, list[str]]:
    """Catalog of a generation against the ids of its rows; keys of (path, frame) of current ones.

    A compacted catalog may have a scan twice: it was scored again.
    """
    try:
        parts = folder.read_parquet(manifest["catalogs"], ["scan_id", "path", "frame"])
        pairs = [(part["scan_id"].to_numpy(), keys_of(part, "path")) for part in parts]
    except ResultsError as error:
        return joined([]), [str(error)]
    wanted, first = np.unique(joined(ids for ids, _ in pairs), return_index=True)
    paths = joined(keys for _, keys in pairs)[first][are_in(wanted, kept)]
    return paths, list(_differences(folder, manifest, wanted, own, old))


def _differences(
    folder: ResultsFolder, manifest: dict[str, Any], wanted: Ids, own: Ids, old: Ids
) -> Iterator[str]:
    number, found = manifest["generation"], np.concatenate([own, old])
    lost = np.setdiff1d(wanted, found)
    if len(lost):
        shown = ", ".join(map(repr, _paths(folder, manifest, lost[:SHOWN])))
        yield f"generation {number}: {len(lost)} scans without a row, such as {shown}"
    strange = np.setdiff1d(found, wanted)
    if len(strange):
        yield f"generation {number}: {len(strange)} rows that its catalog does not have"
    twice = len(own) - len(np.unique(own))
    if twice:
        yield f"generation {number}: {twice} surplus rows of scans that have one already"


def _paths(folder: ResultsFolder, manifest: dict[str, Any], ids: Ids) -> list[str]:
    """Paths of a few scans."""
    wanted, names = pa.array(ids), []
    for table in folder.read_parquet(manifest["catalogs"], ["scan_id", "path"]):
        names += table.filter(pc.is_in(table["scan_id"], value_set=wanted))["path"].to_pylist()
    return names


def _repeated(
    folder: ResultsFolder, manifests: list[dict[str, Any]], current: list[_Current]
) -> Iterator[str]:
    """Scans with more than one current row; equal hashes are confirmed by the rows themselves."""
    uris = _twice(joined(part.uris for part in current))
    tables = current_rows(folder, manifests, ["uri", "frame"]) if len(uris) else []
    if twice := _confirmed(tables, "uri", uris):
        yield f"{len(twice)} scans have more than one current row, such as {twice[0]!r}"
    ids = _twice(joined(part.ids for part in current))
    if len(ids):
        yield f"{len(ids)} scan ids have current rows in more than one generation"
    paths = _twice(joined(part.paths for part in current))
    if len(paths) and not twice and not len(ids):
        found = _confirmed((part.scans(folder) for part in current), "path", paths)
        if found:
            yield f"{len(found)} scans have current rows below two roots, such as {found[0]!r}"


def _twice(keys: Ids) -> Ids:
    values, counts = np.unique(keys, return_counts=True)
    return values[counts > 1]


def _confirmed(tables: Iterable[pa.Table], name: str, suspects: Ids) -> list[str]:
    """Values of a column that, with their frame, are in more than one row."""
    kept: Counter[tuple[str, int]] = Counter()
    for table in tables:
        rows = table.filter(pa.array(are_in(keys_of(table, name), suspects)))
        kept.update((row[name], row["frame"]) for row in rows.to_pylist())
    return [value for (value, _), count in kept.items() if count > 1]


def _unlisted_files(folder: ResultsFolder, manifests: list[dict[str, Any]]) -> Iterator[str]:
    """Files that no manifest lists."""
    listed = {path for m in manifests for path in (*row_files(m), *m["catalogs"])}
    committed = {f"{manifest['generation']:06d}" for manifest in manifests}
    retired, written = _compaction_files(folder)
    listed |= retired
    for parent in (ROWS, CATALOGS):
        for number in folder.names(parent):
            names = folder.names(parent, number)
            strays = [n for n in names if f"{parent}/{number}/{n}" not in listed]
            if not strays or number in written:
                continue
            if number not in committed:
                yield (
                    f"{parent}/{number} belongs to no committed run: one is in flight or was "
                    "interrupted; run 'braintumor-ray score' again to finish it"
                )
            else:
                yield f"{parent}/{number}/{strays[0]} is listed by no manifest ({len(strays)} such)"


def _compaction_files(folder: ResultsFolder) -> tuple[set[str], set[str]]:
    """Files that expire, and the names of folders that compactions write or have written."""
    records = []
    for name in folder.names(COMPACTIONS):
        if name.endswith(".json"):
            with suppress(FileNotFoundError):  # its files have just expired
                records.append(folder.read_json(COMPACTIONS, name))
    retired = {path for record in records for path in record["retired"]}
    return retired, {str(record["name"]) for record in records}


def _gaps(manifests: list[dict[str, Any]]) -> Iterator[str]:
    numbers = [manifest["generation"] for manifest in manifests]
    if [first_generation(m) for m in manifests] != [1, *(n + 1 for n in numbers[:-1])]:
        yield f"{MANIFESTS} are numbered {json.dumps(numbers)}, not from 1 without a gap"
