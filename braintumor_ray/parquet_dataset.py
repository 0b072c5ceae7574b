"""Parquet files as Ray Data sets, read with settings that suit a catalog of small rows."""

import logging
import os
from typing import TYPE_CHECKING

import ray
from pyarrow.fs import FileSystem
from ray.data import DataContext, Dataset

# Private, as of Ray 2.60; where it is registered (`DataContext`) is not.
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

# How Ray Data reads Parquet. Its defaults are 32 processes for each read, to look into footers (one
# reads 128 at a time; on few cores the others were most of a job's start), and tasks of 128 MB,
# which are too much memory and too little at once for a catalog of small rows.
_READING = {
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "RAY_DATA_PARQUET_BIN_PACKING_BYTES": str(4 << 20),
}


def read_rows(
    paths: list[str], filesystem: FileSystem, columns: list[str] | None = None
) -> Dataset:
    """Parquet files as a data set.

    Args:
        paths: of files, on `filesystem`.
        filesystem: where the files are.
        columns: to read; None: all.
    """
    for name, value in _READING.items():
        os.environ.setdefault(name, value)
    configure_ray_data()
    # A folder named `label=x` on the way would take the place of the column `label`.
    return ray.data.read_parquet(paths, filesystem=filesystem, columns=columns, partitioning=None)


def configure_ray_data() -> None:
    """In this process Ray Data writes nothing, raises what stages raise, and ends what fails."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # its wrapper loses what a stage says
    context.custom_execution_callback_classes = [EndedByForce]
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


class EndedByForce(ExecutionCallback):
    """An execution that fails gives its CPUs back at once, and for certain.

    Left to itself, Ray Data 2.60 drops its handles of the actors, which live on for as long as
    anything holds the error or a frame of it (a log record, a notebook, a thread that is just
    ending), and the next execution waits for their CPUs for ever.
    """

    def before_execution_starts(self, executor: "StreamingExecutor") -> None:
        """Have the shutdown that follows an error end actors and tasks, and wait for that."""
        shutdown = executor.shutdown

        def shut_down(force: bool, exception: Exception | None = None) -> None:
            shutdown(force or exception is not None, exception)

        executor.shutdown = shut_down
