"""Reading a results folder: current, committed rows, without Ray and without the model.

    RESULTS/
      results.json                what the rows were made with; never changes
      catalogs/000001/*.parquet   the scans of each generation
      rows/000001/*.parquet       their predictions
      manifests/000001.json       written last: the generation is committed
      judged/000001.json          the verdict of `nightly` on it, where that ran
      history/, compactions/      after `compact`: what is kept of each run, and files that expire

A generation is one run that had something to score. Rows without a manifest are in flight.
A compacted manifest takes the place of several: it has their rows, from `first_generation` to
`generation`, and among its files those of rows that are not current (`superseded_files`).
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from braintumor_ray.choices import EngineName, Precision
from braintumor_ray.errors import ResultsError
from braintumor_ray.storage import Folder, keep_on_disk

META = "results.json"
MANIFESTS, CATALOGS, ROWS, CHECKPOINTS = "manifests", "catalogs", "rows", "checkpoints"
JUDGED, HISTORY, COMPACTIONS = "judged", "history", "compactions"
# Why a stored map is not drawn over a file whose pixels are not those of its row.
CHANGED_FILE = "the file has changed since it was scored"
FIRST_ENGINE: EngineName = "torch"
LISTINGS = 10  # of manifests, while a compaction removes some


class ResultsFolder(Folder):
    """A results folder; see the top of this file."""

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The content of results.json.

        Raises:
            ResultsError: this is not a results folder.
        """
        try:
            return self.read_json(META)
        except FileNotFoundError as error:
            raise ResultsError(
                f"'{self.location}' is not a results folder: it has no {META}; "
                "'braintumor-ray score' makes one"
            ) from error
        except (OSError, ValueError) as error:
            raise ResultsError(f"'{self.at(META)}' cannot be read: {error}") from error

    def manifests(self) -> list[dict[str, Any]]:
        """The committed manifests, oldest first, without those that a compacted one replaces.

        Raises:
            ResultsError: one cannot be read.
        """
        for _ in range(LISTINGS):
            found = self._listed_manifests()
            if found is not None:
                return _not_replaced(found)
        raise ResultsError(f"'{self.at(MANIFESTS)}' changes while it is read; try again")

    def settle(self, manifest: dict[str, Any]) -> None:
        """Have the files of a manifest on the disk, before `write_manifest` makes them count.

        A loss of power could else leave it with empty files, and no later night would score their
        scans.
        """
        listed = [*row_files(manifest), *manifest["catalogs"]]
        keep_on_disk(self.at(path) for path in listed)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Commit: from here on the files of the manifest count."""
        self.write_json(manifest, MANIFESTS, f"{int(manifest['generation']):06d}.json")

    def run(self, generation: int) -> dict[str, Any]:
        """What is kept of one run: its manifest or, after compaction, its record in `history/`.

        Raises:
            ResultsError: it is missing or damaged.
        """
        numbers = [int(name[:-5]) for name in self.names(MANIFESTS) if name[:-5].isdigit()]
        holder = next((number for number in sorted(numbers) if number >= generation), generation)
        manifest = self.manifest(holder)
        if not is_compacted(manifest):
            return manifest if holder == generation else self.manifest(generation)
        found = [run for run in self._history(manifest) if run["generation"] == generation]
        if not found:
            raise ResultsError(f"'{self.at(manifest['history'])}' has no run {generation}")
        return found[0]

    def runs(self) -> list[dict[str, Any]]:
        """What is kept of each run, oldest first, see `run`.

        Raises:
            ResultsError: something is missing or damaged.
        """
        kept = ([m] if not is_compacted(m) else self._history(m) for m in self.manifests())
        return [run for runs in kept for run in runs]

    def manifest(self, generation: int) -> dict[str, Any]:
        """One committed manifest.

        Raises:
            ResultsError: it is missing or damaged.
        """
        return self._manifest(f"{generation:06d}.json")

    def read_parquet(
        self,
        paths: Sequence[str],
        columns: list[str] | None = None,
        where: pc.Expression | None = None,
    ) -> Iterator[pa.Table]:
        """Parquet files by their path below the folder, a table each, read one at a time.

        Args:
            paths: below the folder.
            columns: None: all.
            where: only rows for which it is true; row groups without any are not read.

        Raises:
            ResultsError: one is missing or damaged.
        """
        for path in paths:
            try:
                table = self.read_table(path, columns=columns, where=where)
            except (OSError, pa.ArrowException) as error:
                raise ResultsError(
                    f"'{self.at(path)}' is listed in a manifest and cannot be read: {error}; "
                    "'braintumor-ray verify' shows what else is wrong"
                ) from error
            yield table

    def catalog_of(self, manifest: dict[str, Any], columns: list[str] | None = None) -> pa.Table:
        """The scans of one generation."""
        tables = self.read_parquet(manifest["catalogs"], columns)
        return pa.concat_tables(tables, promote_options="default")

    def _listed_manifests(self) -> list[dict[str, Any]] | None:
        """All that are there; None where one was removed between the listing and its reading."""
        try:
            names = [name for name in self.names(MANIFESTS) if name.endswith(".json")]
        except OSError as error:
            raise ResultsError(f"'{self.at(MANIFESTS)}' cannot be listed: {error}") from error
        try:
            return [self._manifest(name) for name in names]
        except ResultsError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            return None

    def _manifest(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._record(f"{MANIFESTS}/{name}")
        return found

    def _history(self, compacted: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The runs that a compacted manifest has taken the place of."""
        found: list[dict[str, Any]] = self._record(compacted["history"])
        return found

    def _record(self, path: str) -> Any:  # noqa: ANN401 - JSON
        try:
            return self.read_json(path)
        except (OSError, ValueError) as error:
            raise ResultsError(f"'{self.at(path)}' cannot be read: {error}") from error


def results_folder(path: str | Path) -> ResultsFolder:
    """The folder at a path or URI.

    Raises:
        ResultsError: its name has a line break or tab. Ray Data reads paths as web addresses, which
            have none: the rows would go to another folder.
    """
    text = str(path)
    if set("\t\r\n") & set(text):
        raise ResultsError(
            f"results folder {text!r} has a line break or tab in its name; rename it"
        )
    return ResultsFolder(text.rstrip("/") if len(text) > 1 else text)


def read_results(
    path: str | Path,
    columns: Sequence[str] | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """Current, committed rows of a results folder: one per scan, the newest version of each.

    Args:
        path: the folder, a local path or a URI.
        columns: names of the wanted columns (see `predict.schema.result_schema`); None: all.
        where: only rows for which it is true, such as
            `pyarrow.compute.field("status") == "ok"`, of any columns; row groups that cannot have
            such a row are not read.

    Raises:
        ResultsError: not a results folder, nothing committed yet, or a listed file is damaged.
    """
    folder = results_folder(path)
    manifests = committed_runs(folder)
    wanted = list(columns) if columns is not None else None
    return pa.concat_tables(rows for _, rows in current_files(folder, manifests, wanted, where))


def committed_runs(folder: ResultsFolder) -> list[dict[str, Any]]:
    """The manifests of a results folder, oldest first; there is at least one.

    Raises:
        ResultsError: not a results folder, or nothing committed yet.
    """
    manifests = folder.manifests()
    if not manifests:
        _ = folder.meta  # raises for a wrong path; an unfinished first run has it
        raise ResultsError(
            f"'{folder.location}' has no committed run yet; run 'braintumor-ray score' to its end"
        )
    return manifests


def current_rows(
    folder: ResultsFolder, manifests: Sequence[dict[str, Any]], columns: list[str] | None
) -> list[pa.Table]:
    """Rows of the manifests' files without those that a later version supersedes."""
    return [rows for _, rows in current_files(folder, manifests, columns)]


def current_files(
    folder: ResultsFolder,
    manifests: Sequence[dict[str, Any]],
    columns: list[str] | None,
    where: pc.Expression | None = None,
) -> Iterator[tuple[str, pa.Table]]:
    """As `current_rows`, a file at a time with its path below the folder, read when asked for.

    Args:
        folder: the results.
        manifests: all of them, in the order in which their files are wanted.
        columns: None: all.
        where: as for `read_results`.
    """
    wanted = None if columns is None else list(dict.fromkeys([*columns, "scan_id"]))
    superseded = superseded_rows(manifests)
    for manifest in manifests:
        gone = superseded.get(int(manifest["generation"]), np.empty(0, np.int64))
        for path in current_row_files(manifest):
            (table,) = folder.read_parquet([path], wanted, where)
            if len(gone):
                table = table.filter(
                    pc.invert(pc.is_in(table["scan_id"], value_set=pa.array(gone)))
                )
            yield path, table if columns is None else table.select(columns)


def row_files(manifest: dict[str, Any]) -> list[str]:
    """Paths of a manifest's files of rows, below the folder."""
    return [file["path"] for file in manifest["files"]]


def current_row_files(manifest: dict[str, Any]) -> list[str]:
    """As `row_files`, without the files of a compacted manifest whose rows are not current."""
    superseded = set(manifest.get("superseded_files", ()))
    return [path for path in row_files(manifest) if path not in superseded]


def is_compacted(manifest: dict[str, Any]) -> bool:
    """Whether `compact` has written it."""
    return "compaction" in manifest


def first_generation(manifest: dict[str, Any]) -> int:
    """The oldest of the runs whose rows a manifest has."""
    return int(manifest.get("first_generation", manifest["generation"]))


def engine_of(record: Mapping[str, Any]) -> tuple[EngineName, Precision | None]:
    """Engine and precision that results.json or a manifest gives; None: not known.

    Earlier runs give neither: theirs was torch, in a precision that each predictor chose.
    """
    precision = record.get("precision")
    return record.get("engine", FIRST_ENGINE), None if precision == "auto" else precision


def foreign_engine(record: Mapping[str, Any], meta: Mapping[str, Any]) -> str | None:
    """What of a manifest's engine and precision is not that of its results, as a sentence."""
    (engine, precision), (own, own_precision) = engine_of(record), engine_of(meta)
    if engine != own:
        return f"rows made with engine '{engine}' among those of '{own}'"
    if precision != own_precision and None not in (precision, own_precision):
        return f"rows made in {precision} among those in {own_precision}"
    return None


def superseded_rows(manifests: Sequence[dict[str, Any]]) -> dict[int, NDArray[np.int64]]:
    """Sorted ids of the scans whose row is not current, by the generation that holds the row.

    The rows of a compacted manifest are those of its last generation.
    """
    gone: dict[int, set[int]] = {int(manifest["generation"]): set() for manifest in manifests}
    spans = sorted((int(m["generation"]), first_generation(m)) for m in manifests)
    for manifest in manifests:
        for generation, ids in manifest["supersedes"].items():
            gone.setdefault(_holder_of(int(generation), spans), set()).update(ids)
    return {number: np.array(sorted(ids), np.int64) for number, ids in gone.items()}


def _holder_of(generation: int, spans: list[tuple[int, int]]) -> int:
    """The last generation of the manifest that has a generation's rows."""
    place = bisect_left(spans, (generation, 0))
    if place < len(spans) and spans[place][1] <= generation:
        return spans[place][0]
    return generation


def _not_replaced(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those in the span of a newer, compacted one; oldest first."""
    kept: list[dict[str, Any]] = []
    for manifest in reversed(manifests):
        if not kept or int(manifest["generation"]) < first_generation(kept[-1]):
            kept.append(manifest)
    return kept[::-1]
