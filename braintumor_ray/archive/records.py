"""What compactions leave in `compactions/`: which files they replaced, and since when."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from braintumor_ray.predict.results import (
    CATALOGS,
    COMPACTIONS,
    HISTORY,
    MANIFESTS,
    ROWS,
    ResultsFolder,
    first_generation,
    row_files,
)
from braintumor_ray.storage import open_filesystem

REGISTERED = "registered"  # tables of data lakes that list files of this folder

Record = dict[str, Any]


def now() -> str:
    """The time as records have it."""
    return datetime.now(timezone.utc).isoformat()


def identity_of(manifest: dict[str, Any]) -> str:
    """Names what a manifest holds: the id of its run or of its compaction."""
    return str(manifest.get("run_id") or f"generation-{manifest['generation']}")


def read_records(folder: ResultsFolder, parent: str = COMPACTIONS) -> Iterator[Record]:
    """The records of compactions, or of registrations."""
    for name in folder.names(parent):
        if name.endswith(".json"):
            yield folder.read_json(parent, name)


def write_record(folder: ResultsFolder, record: Record) -> None:
    """Write or replace the record of a compaction."""
    folder.write_json(record, COMPACTIONS, f"{record['name']}.json")


def delete_unfinished(folder: ResultsFolder, parent: str) -> None:
    """Delete files that a killed process was writing; the caller holds the lease."""
    for name in folder.names(parent):
        if name.endswith(".tmp"):
            folder.delete_file(parent, name)


def finish_or_abandon(folder: ResultsFolder, planned: Sequence[str]) -> None:
    """Make the folder agree with what interrupted compactions have committed.

    Args:
        folder: the results.
        planned: names of compactions that are about to be made: their files are used again.
    """
    live = {str(m["compaction"]): m for m in folder.manifests() if "compaction" in m}
    for record in list(read_records(folder)):
        if record["committed_at"] is None and record["name"] in live:
            finish(folder, record, live[record["name"]])
        elif record["committed_at"] is None and record["name"] not in planned:
            _delete_outputs(folder, record["name"])
            folder.delete_file(COMPACTIONS, f"{record['name']}.json")


def finish(folder: ResultsFolder, record: Record, manifest: dict[str, Any]) -> None:
    """After the commit: remove the manifests that the new one replaces, and start the clock.

    Readers that hold them still find their files.
    """
    span = range(first_generation(manifest), int(manifest["generation"]))
    for name in folder.names(MANIFESTS):
        if name.endswith(".json") and int(name.removesuffix(".json")) in span:
            folder.delete_file(MANIFESTS, name)
    write_record(folder, record | {"committed_at": now()})


def expire(folder: ResultsFolder, grace_hours: float) -> dict[str, int]:
    """Delete files that were replaced longer ago than the grace time.

    A table of a data lake that still lists them keeps them: 'register' must run first.

    Returns:
        `expired`: files deleted; `waiting`: files whose time has not come; `registered`: files
        that a table still lists.
    """
    counts = {"expired": 0, "waiting": 0, "registered": 0}
    live = {p for m in folder.manifests() for p in (*row_files(m), *m["catalogs"])}
    live |= {m["history"] for m in folder.manifests() if "history" in m}
    held = {run for record in read_records(folder, REGISTERED) for run in record["holds"]}
    for record in list(read_records(folder)):
        doomed = [path for path in record["retired"] if path not in live]
        if record["committed_at"] is None:
            continue
        if _age_hours(record) < grace_hours:
            counts["waiting"] += len(doomed)
        elif held & set(record["replaces"]):
            counts["registered"] += len(doomed)
        else:
            counts["expired"] += _delete(folder, doomed)
            folder.delete_file(COMPACTIONS, f"{record['name']}.json")
    return counts


def _age_hours(record: Record) -> float:
    committed = datetime.fromisoformat(record["committed_at"])
    return (datetime.now(timezone.utc) - committed).total_seconds() / 3600


def _delete(folder: ResultsFolder, paths: Sequence[str]) -> int:
    """Delete what is still there, and folders that become empty; returns how many files."""
    deleted = 0
    for parent in sorted({path.rsplit("/", 1)[0] for path in paths}):
        there = folder.names(parent)
        for path in paths:
            name = path.rsplit("/", 1)[1]
            if path == f"{parent}/{name}" and name in there:
                folder.delete_file(path)
                deleted += 1
        if not folder.names(parent) and parent != HISTORY:
            _delete_folder(folder, parent)
    return deleted


def _delete_folder(folder: ResultsFolder, parent: str) -> None:
    filesystem, path = open_filesystem(folder.at(parent))
    if filesystem.get_file_info(path).type.name == "Directory":
        filesystem.delete_dir(path)


def _delete_outputs(folder: ResultsFolder, name: str) -> None:
    """The files of a compaction that was never committed and whose inputs have changed."""
    for parent in (f"{ROWS}/{name}", f"{CATALOGS}/{name}"):
        _delete_folder(folder, parent)
    if f"{name}.json" in folder.names(HISTORY):
        folder.delete_file(HISTORY, f"{name}.json")
