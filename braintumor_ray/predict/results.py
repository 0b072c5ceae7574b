"""Reading a results folder: current, committed rows, without Ray and without the model.

    RESULTS/
      results.json                what the rows were made with; never changes
      catalogs/000001/*.parquet   the scans of each generation
      rows/000001/*.parquet       their predictions
      manifests/000001.json       written last: the generation is committed
      judged/000001.json          the verdict of `nightly` on it, where that ran

A generation is one run that had something to score. Rows without a manifest are in flight.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from braintumor_ray.errors import ResultsError
from braintumor_ray.storage import Folder

META = "results.json"
MANIFESTS, CATALOGS, ROWS, CHECKPOINTS = "manifests", "catalogs", "rows", "checkpoints"
JUDGED = "judged"


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
        """The committed manifests, oldest first."""
        return [self._manifest(n) for n in self.names(MANIFESTS) if n.endswith(".json")]

    def manifest(self, generation: int) -> dict[str, Any]:
        """One committed manifest.

        Raises:
            ResultsError: it is missing or damaged.
        """
        return self._manifest(f"{generation:06d}.json")

    def read_parquet(
        self, paths: Sequence[str], columns: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """Parquet files by their path below the folder, a table each, read one at a time.

        Raises:
            ResultsError: one is missing or damaged.
        """
        for path in paths:
            try:
                table = self.read_table(path, columns=columns)
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

    def _manifest(self, name: str) -> dict[str, Any]:
        try:
            return self.read_json(MANIFESTS, name)
        except (OSError, ValueError) as error:
            raise ResultsError(f"'{self.at(MANIFESTS, name)}' cannot be read: {error}") from error


def results_folder(path: str | Path) -> ResultsFolder:
    """The folder at a path or URI."""
    text = str(path)
    return ResultsFolder(text.rstrip("/") if len(text) > 1 else text)


def read_results(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Current, committed rows of a results folder: one per scan, the newest version of each.

    Args:
        path: the folder, a local path or a URI.
        columns: names of the wanted columns (see `predict.schema.result_schema`); None: all.

    Raises:
        ResultsError: not a results folder, nothing committed yet, or a listed file is damaged.
    """
    folder = results_folder(path)
    manifests = committed_runs(folder)
    tables = current_rows(folder, manifests, list(columns) if columns is not None else None)
    return pa.concat_tables(tables)


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
    folder: ResultsFolder, manifests: Sequence[dict[str, Any]], columns: list[str] | None
) -> Iterator[tuple[str, pa.Table]]:
    """As `current_rows`, a file at a time with its path below the folder, read when asked for.

    Args:
        folder: the results.
        manifests: all of them, in the order in which their files are wanted.
        columns: None: all.
    """
    wanted = None if columns is None else list(dict.fromkeys([*columns, "scan_id"]))
    superseded = superseded_rows(manifests)
    for manifest in manifests:
        gone = superseded.get(int(manifest["generation"]), np.empty(0, np.int64))
        for path in row_files(manifest):
            (table,) = folder.read_parquet([path], wanted)
            if len(gone):
                table = table.filter(
                    pc.invert(pc.is_in(table["scan_id"], value_set=pa.array(gone)))
                )
            yield path, table if columns is None else table.select(columns)


def row_files(manifest: dict[str, Any]) -> list[str]:
    """Paths of a generation's files of rows, below the folder."""
    return [file["path"] for file in manifest["files"]]


def superseded_rows(manifests: Sequence[dict[str, Any]]) -> dict[int, NDArray[np.int64]]:
    """Sorted ids of the scans whose row is not current, by the generation that holds the row."""
    gone: dict[int, set[int]] = {int(manifest["generation"]): set() for manifest in manifests}
    for manifest in manifests:
        for generation, ids in manifest["supersedes"].items():
            gone.setdefault(int(generation), set()).update(ids)
    return {number: np.array(sorted(ids), np.int64) for number, ids in gone.items()}
