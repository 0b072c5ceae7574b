"""The archive job's pipeline on Ray Data: read, decode, predict, write with checkpoints."""

import json
import math
import time
import uuid
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, SaveMode
from ray.data.checkpoint import CheckpointConfig

# Private, as of Ray 2.60: Ray has no public store of keys and values.
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from braintumor_ray.models.bundle import Bundle
from braintumor_ray.monitoring.meters import StageMeters
from braintumor_ray.parquet_dataset import read_rows
from braintumor_ray.progress import repeated
from braintumor_ray.scoring.decode_stage import ArchiveDecodeStage
from braintumor_ray.scoring.generation import Generation
from braintumor_ray.scoring.layout import JobResources
from braintumor_ray.scoring.options import PredictSettings, ScoreOptions
from braintumor_ray.scoring.predict_stage import PredictStage
from braintumor_ray.scoring.scans import ROWS_PER_PART
from braintumor_ray.storage import absolute, location_label, open_filesystem
from braintumor_ray.types import Progress


@dataclass(frozen=True)
class Stages:
    """The classes of the two stages; a benchmark of the rest puts mocks in their place."""

    decode: type = ArchiveDecodeStage
    predict: type = PredictStage


def measured(stage: type, name: str, results: str) -> Any:  # noqa: ANN401 - a class
    """The stage's class with metrics of its blocks; in Ray's lists it keeps its name."""

    class Measured(stage):
        def __init__(self, *args: Any) -> None:  # noqa: ANN401 - the stage's own
            super().__init__(*args)
            self._meters = StageMeters(results, name)

        def __call__(self, rows: pa.Table) -> pa.Table:
            started = time.perf_counter()
            made = super().__call__(rows)
            self._meters.block(made, time.perf_counter() - started)
            return made

    Measured.__name__ = Measured.__qualname__ = stage.__name__
    return Measured


class Counter:
    """Scans predicted so far, and seconds spent predicting them, as predictors report them.

    Through the cluster's key-value store: an actor would be one more process for the start to wait
    for.
    """

    def __init__(self) -> None:
        self._run = f"braintumor-ray/{uuid.uuid4().hex}/"

    def reporter(self) -> "Reporter":
        """What a predictor calls after each block."""
        return Reporter(self._run)

    def read(self) -> tuple[int, float]:
        """Scans and seconds, of all predictors."""
        told = [json.loads(_internal_kv_get(key)) for key in _internal_kv_list(self._run)]
        return sum(rows for rows, _ in told), sum(seconds for _, seconds in told)

    def close(self) -> None:
        """Forget what was reported; the store is the cluster's, and outlives the run."""
        _internal_kv_del(self._run, del_by_prefix=True)


class Reporter:
    """One predictor's share of a `Counter`; each predictor has a copy of its own."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._key = ""
        self._rows, self._seconds = 0, 0.0

    def __call__(self, rows: int, seconds: float) -> None:
        """Count a block."""
        self._key = self._key or f"{self._run}{uuid.uuid4().hex}"
        self._rows += rows
        self._seconds += seconds
        _internal_kv_put(self._key, json.dumps([self._rows, self._seconds]))


def execute(
    generation: Generation,
    catalogs: list[str],
    bundle: Bundle,
    options: ScoreOptions,
    layout: JobResources,
    counter: Counter,
    stages: Stages,
) -> None:
    """Score the catalogs' scans that have no committed row yet, and commit rows as they come.

    Raises:
        ResultsError: something failed that is no scan's fault; what is committed is kept.
    """
    filesystem, base = open_filesystem(generation.folder.location)
    # Only reads filter by checkpoints: the work must be a Parquet file, not rows in memory.
    data = read_rows([f"{base}/{path}" for path in catalogs], filesystem)
    _configure(data.context, generation, options)
    results = location_label(generation.folder.location)
    scored = (
        data.repartition(target_num_rows_per_block=options.block_size)
        .map_batches(
            measured(stages.decode, "decode", results),
            fn_constructor_args=(
                bundle.preprocessing,
                options.decode,
                bundle.cam_shape,
            ),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=layout.cpus_per_decode,
            compute=_pool(layout.decoders),
        )
        .map_batches(
            measured(stages.predict, "predict", results),
            fn_constructor_args=(
                _on_layout(options.predict, layout),
                bundle.fingerprint,
                counter.reporter(),
            ),
            batch_format="pyarrow",
            # None is refused with GPUs. A size lets Ray join short blocks: files of up to twice it.
            batch_size=options.block_size if layout.gpus_per_predictor else None,
            num_cpus=layout.cpus_per_predictor,
            num_gpus=layout.gpus_per_predictor or None,
            compute=_pool(layout.predictors),
            runtime_env=layout.runtime_env(),
        )
    )
    filesystem.create_dir(f"{base}/{generation.rows}", recursive=True)
    scored.write_parquet(
        f"{base}/{generation.rows}",
        filesystem=filesystem,
        mode=SaveMode.APPEND,  # OVERWRITE destroys committed rows, IGNORE does nothing
        compression="zstd",
    )


def _configure(context: DataContext, generation: Generation, options: ScoreOptions) -> None:
    filesystem, base = open_filesystem(generation.folder.location)
    context.checkpoint_config = CheckpointConfig(
        id_column="scan_id",
        checkpoint_path=f"{base}/{generation.checkpoints}",
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,  # the default would score everything again next time
    )
    context.execution_no_progress_timeout_s = options.no_progress_timeout_s
    context.override_object_store_memory_limit_fraction = options.object_store_fraction
    # With Ray's 2, a task that cuts a part into blocks of rows waits, with its CPU and its process,
    # until nearly its last block is wanted. Parts are smaller than this, and their rows are small.
    blocks = math.ceil(2 * ROWS_PER_PART / options.block_size)
    # Private, as of Ray 2.60: there is no public name for it.
    context._max_num_blocks_in_streaming_gen_buffer = blocks


def _pool(size: tuple[int, int]) -> ActorPoolStrategy:
    return ActorPoolStrategy(min_size=size[0], max_size=size[1])


def _on_layout(predict: PredictSettings, layout: JobResources) -> PredictSettings:
    """What travels to the predictors: the bundle's place means the same on every node."""
    threads = layout.torch_threads if predict.torch_threads is None else predict.torch_threads
    return replace(predict, bundle=absolute(predict.bundle), torch_threads=threads)


def watched(
    counter: Counter,
    done: int,
    total: int,
    progress: Progress,
) -> AbstractContextManager[None]:
    """Passes the counter on to `progress` twice a second while the job runs."""

    def read() -> None:
        with suppress(ray.exceptions.RayError):  # the job itself will report it
            rows, _ = counter.read()
            progress(min(done + rows, total), total)

    return repeated(read, 0.5, "progress")
