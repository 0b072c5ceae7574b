"""SQL over the current rows of a results folder, by DuckDB."""

import os
import re
import secrets
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from braintumor_ray.errors import ResultsError, UsageError, first_line
from braintumor_ray.extras import require
from braintumor_ray.predict.results import (
    ResultsFolder,
    committed_runs,
    current_row_files,
    results_folder,
    superseded_rows,
)
from braintumor_ray.storage import is_local, local_path, open_filesystem

VIEW = "scans"
PROTOCOL = "results"
# A folder named `frame=7` on the way would take the place of the column `frame`.
READING = "union_by_name = true, hive_partitioning = false"


def connect(results: str) -> Any:  # noqa: ANN401 - DuckDB's connection
    """A DuckDB connection with a view `scans`: the current row of every scan.

    Filters and columns are pushed down into the Parquet files.

    Raises:
        ResultsError: nothing is committed.
        UsageError: DuckDB is not installed.
    """
    duckdb = require("duckdb")
    folder = results_folder(results)
    manifests = committed_runs(folder)
    gone = superseded_rows(manifests)
    connection = duckdb.connect()
    place = _place(connection, folder)
    whole: list[str] = []
    mixed: list[str] = []
    generations, ids = [], []
    for manifest in manifests:
        old = gone[int(manifest["generation"])]
        paths = [f"{place}/{path}" for path in current_row_files(manifest)]
        (mixed if len(old) else whole).extend(paths)
        for path in paths if len(old) else ():
            generations += [path] * len(old)
            ids.append(pa.array(old))
    superseded = pa.table(
        {
            "file": pa.array(generations, pa.string()),
            "scan_id": pa.chunked_array(ids, pa.int64()),
        }
    )
    connection.register("__superseded", superseded)
    connection.execute(f"CREATE VIEW {VIEW} AS {_view(whole, mixed)}")
    return connection


def query(results: str, sql: str) -> pa.Table:
    """The answer to one SQL statement over the view `scans`.

    Of columns that have one name, as joins give them, the second is called `name_1`.

    Raises:
        UsageError: DuckDB is not installed, or refuses the statement.
        ResultsError: nothing is committed, or a file cannot be read.
    """
    duckdb = require("duckdb")
    connection = connect(results)
    try:
        relation = connection.sql(sql)
        found = relation.to_arrow_table() if relation is not None else pa.table({})
    except duckdb.IOException as error:
        raise ResultsError(
            f"'{results}' cannot be read: {first_line(error)}; 'braintumor-ray verify' shows more"
        ) from error
    except duckdb.Error as error:
        raise UsageError(
            f"SQL '{sql}': {first_line(error)}; the current rows are the view '{VIEW}' "
            f'(its columns: "DESCRIBE {VIEW}")'
        ) from error
    finally:
        connection.close()
    return found.rename_columns(_distinct(found.column_names))


def _distinct(names: Sequence[str]) -> list[str]:
    """As in DuckDB's own data frames."""
    made: list[str] = []
    for name in names:
        same = chain([name], (f"{name}_{number}" for number in count(1)))
        made.append(next(each for each in same if each not in made))
    return made


def write_answer(table: pa.Table, output: str) -> None:
    """Write an answer as .csv or .parquet.

    Raises:
        UsageError: another ending, or it cannot be written.
    """
    path = Path(output)
    write = {".parquet": pq.write_table, ".csv": pyarrow.csv.write_csv}.get(path.suffix)
    if write is None:
        raise UsageError(f"--output '{output}' ends neither in .csv nor in .parquet")
    work = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        write(table, work)
        os.replace(work, path)
    except OSError as error:
        raise UsageError(
            f"--output '{output}' cannot be written: {error}; give another file, or free space"
        ) from error
    except pa.ArrowException as error:
        raise UsageError(
            f"--output '{output}' cannot be written: {error}; lists go to .parquet only"
        ) from error
    finally:
        work.unlink(missing_ok=True)


def _place(connection: Any, folder: ResultsFolder) -> str:  # noqa: ANN401 - as above
    """How DuckDB names the folder: a path, or our own access to the object store."""
    if is_local(folder.location):
        return str(local_path(folder.location).absolute())
    filesystem, path = open_filesystem(folder.location)
    connection.register_filesystem(_as_fsspec(filesystem))
    return f"{PROTOCOL}://{path}"


def _as_fsspec(filesystem: Any) -> Any:  # noqa: ANN401 - as above
    """Pyarrow's file system as DuckDB takes it: with our retries and endpoint, no extension."""
    from fsspec.implementations.arrow import ArrowFSWrapper

    class Store(ArrowFSWrapper):  # type: ignore[misc]  # fsspec has no types
        protocol = PROTOCOL
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix(f"{PROTOCOL}://")

    return Store(filesystem)


def _view(whole: list[str], mixed: list[str]) -> str:
    """Files whose rows are all current are read as they are; others by their list of old ids."""
    parts = []
    if whole:
        parts.append(f"SELECT * FROM read_parquet({_listed(whole)}, {READING})")
    if mixed:
        parts.append(
            f"SELECT * EXCLUDE (filename) FROM read_parquet({_listed(mixed)}, {READING}, "
            "filename = true) AS r ANTI JOIN __superseded AS s "
            "ON r.filename = s.file AND r.scan_id = s.scan_id"
        )
    return " UNION ALL BY NAME ".join(parts)


def _listed(paths: list[str]) -> str:
    """Paths that mean themselves: DuckDB would read `results*` as a pattern for other folders."""
    exact = (re.sub(r"[*?[]", r"[\g<0>]", path).replace("'", "''") for path in paths)
    return "[" + ", ".join(f"'{path}'" for path in exact) + "]"
