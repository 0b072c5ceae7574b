"""Parquet files as Ray Data sets, read with settings that suit a catalog of small rows."""

import logging
import os

import ray
from pyarrow.fs import FileSystem
from ray.data import DataContext, Dataset

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
    """In this process Ray Data writes nothing, and raises the errors of stages as they are."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # its wrapper loses what a stage says
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
