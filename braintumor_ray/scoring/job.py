"""The archive job on Ray Data: exactly once, resumable, incremental."""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, SaveMode
from ray.data.checkpoint import CheckpointConfig

from braintumor_ray.data.pipeline import quiet_progress
from braintumor_ray.data.storage import open_filesystem
from braintumor_ray.errors import ResultsError
from braintumor_ray.models.bundle import Bundle, load_bundle
from braintumor_ray.predict.results import (
    MANIFESTS,
    META,
    ResultsFolder,
    results_folder,
)
from braintumor_ray.predict.schema import SCHEMA_VERSION, stored_shape
from braintumor_ray.scoring.lease import Lease
from braintumor_ray.scoring.plan import Plan, drop_other_attempts, make_plan, write_work
from braintumor_ray.scoring.preflight import Resources, check_cluster
from braintumor_ray.scoring.stages import (
    DecodeSettings,
    DecodeStage,
    PredictSettings,
    PredictStage,
)
from braintumor_ray.scoring.summary import Summary, summarize

ATTEMPTS = 3
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ScoreOptions:
    """How a job runs; nothing here changes a prediction but `predict`.

    Attributes:
        predict: the predictor's settings.
        decode: the decoders' settings.
        block_size: scans per commit: what a crash can cost; a multiple of the batch size.
        num_predictors: (least, most) predictor actors.
        num_decoders: (least, most) decoder actors; None: as many as the cluster has room for.
        gpus_per_predictor: 0 on CPU.
        limit: at most so many new scans.
        retry_quarantined: score quarantined scans again; their newer rows become current.
        no_progress_timeout_s: the job fails instead of hanging when nothing moves so long.
    """

    predict: PredictSettings
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    block_size: int = 256
    num_predictors: tuple[int, int] = (1, 1)
    num_decoders: tuple[int, int] | None = None
    gpus_per_predictor: float = 0.0
    limit: int | None = None
    retry_quarantined: bool = False
    no_progress_timeout_s: float = 600.0


@ray.remote(num_cpus=0)
class _Counter:
    """Scans predicted so far, and seconds spent predicting them."""

    def __init__(self) -> None:
        self._rows, self._seconds = 0, 0.0

    def add(self, rows: int, seconds: float) -> None:
        self._rows += rows
        self._seconds += seconds

    def read(self) -> tuple[int, float]:
        return self._rows, self._seconds


def score(
    catalog: pa.Table, results: str, options: ScoreOptions, progress: Progress | None = None
) -> Summary:
    """Score what is new in a catalog and commit it as one generation.

    A run that was interrupted, however hard, is resumed by calling this again.

    Args:
        catalog: all scans of the source (`data.catalog.load_catalog`).
        results: the results folder, made if it is not there; belongs to one bundle.
        options: how to run.
        progress: called with scans done and to do.

    Raises:
        ResultsError: the folder belongs to another bundle or is held by a live job, or the rows
            could not be made to agree with the catalog.
        UsageError: the cluster lacks CPUs or GPUs that the job must have.
    """
    bundle = load_bundle(options.predict.bundle)
    folder = results_folder(results)
    fingerprint = open_results(folder, bundle, options)
    with Lease(folder.location) as lease:
        plan = _plan(folder, catalog, fingerprint, options)
        plan.generation.reconcile()
        if not plan.work.num_rows:
            return summarize(plan, [], None, 0.0, 0.0)
        return _run(plan, bundle, options, lease, progress)


def plan_only(catalog: pa.Table, results: str, options: ScoreOptions) -> Plan:
    """What `score` would do; writes nothing and needs no Ray."""
    bundle = load_bundle(options.predict.bundle)
    folder = results_folder(results)
    new = META not in folder.names()
    fingerprint = "none" if new else open_results(folder, bundle, options)
    return _plan(folder, catalog, fingerprint, options)


def _plan(
    folder: ResultsFolder, catalog: pa.Table, fingerprint: str, options: ScoreOptions
) -> Plan:
    return make_plan(
        folder,
        catalog,
        folder.manifests(),
        fingerprint,
        options.limit,
        retry_quarantined=options.retry_quarantined,
        redaction=options.decode.redaction,
    )


def describe_settings(bundle: Bundle, options: ScoreOptions) -> dict[str, Any]:
    """What makes rows comparable; results with other settings are another folder's."""
    predict, redaction = options.predict, options.decode.redaction
    cam_shape = stored_shape(bundle.build_model().map_shape[1:])
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle_fingerprint": bundle.fingerprint,
        "class_names": list(bundle.fields.class_names),
        "positive_classes": list(bundle.fields.positive_classes),
        "threshold": bundle.fields.threshold,
        "image_size": bundle.fields.preprocessing.image_size,
        "cam_class": predict.cam_class,
        "cam_methods": list(predict.methods),
        "cam_shape": list(cam_shape),
        "uri_redaction": redaction.check if redaction else None,
    }


def open_results(folder: ResultsFolder, bundle: Bundle, options: ScoreOptions) -> str:
    """Claim a new folder for a bundle, or check that it is this bundle's; returns a fingerprint.

    Raises:
        ResultsError: names the first setting that differs.
    """
    wanted, predict = describe_settings(bundle, options), options.predict
    if META not in folder.names():
        folder.write_json(wanted, META)
    meta = folder.meta
    for key, value in wanted.items():
        if meta.get(key) != value:
            raise ResultsError(
                f"results '{folder.location}' were made with {key} {meta.get(key)!r}, this run has "
                f"{value!r}; score into another folder"
            )
    digest = "-".join([bundle.fingerprint, predict.cam_class, *predict.methods])
    return f"{digest}-v{SCHEMA_VERSION}"


def _run(
    plan: Plan, bundle: Bundle, options: ScoreOptions, lease: Lease, progress: Progress | None
) -> Summary:
    started = time.time()
    generation = plan.generation
    resources = check_cluster(options.gpus_per_predictor, options.num_predictors)
    attempt = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
    catalogs = write_work(plan, attempt)
    counter = _Counter.remote()  # type: ignore[attr-defined]
    for _ in range(ATTEMPTS):
        if not _missing(plan):
            break
        with _watched(counter, plan, progress):
            _execute(plan, catalogs, bundle, options, resources, counter)
        generation.reconcile()
    lost = _missing(plan)
    if lost:
        raise ResultsError(
            f"{lost} of {plan.work.num_rows} scans have no committed row after {ATTEMPTS} "
            "attempts; nothing was published; run the same command again"
        )
    predicted, seconds = ray.get(counter.read.remote())
    lease.check()
    redaction = options.decode.redaction
    if redaction:  # from here on nothing in the folder tells where a scan is
        catalogs = write_work(plan, f"{attempt}-redacted", redaction)
    manifest = _manifest(plan, catalogs, started)
    folder = generation.folder
    summary = summarize(
        plan,
        folder.read_parquet([file["path"] for file in manifest["files"]], SUMMARY_COLUMNS),
        folder.location,
        time.time() - started,
        predicted / seconds if seconds else 0.0,
    )
    folder.write_json(manifest | {"summary": asdict(summary)}, MANIFESTS, f"{generation.name}.json")
    drop_other_attempts(generation, catalogs)
    generation.drop_checkpoints()
    return summary


SUMMARY_COLUMNS = ["status", "reason", "predicted_class", "entropy", "out_of_domain"]


def _execute(
    plan: Plan,
    catalogs: list[str],
    bundle: Bundle,
    options: ScoreOptions,
    resources: Resources,
    counter: Any,  # noqa: ANN401 - an actor handle
) -> None:
    folder, generation = plan.generation.folder, plan.generation
    quiet_progress()
    filesystem, base = open_filesystem(folder.location)
    # Only reads filter by checkpoints: the work must be a Parquet file, not rows in memory.
    data = ray.data.read_parquet([f"{base}/{path}" for path in catalogs], filesystem=filesystem)
    context = data.context
    context.checkpoint_config = CheckpointConfig(
        id_column="scan_id",
        checkpoint_path=f"{base}/{generation.checkpoints}",
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,  # the default would score everything again next time
    )
    context.execution_no_progress_timeout_s = options.no_progress_timeout_s
    decoders = options.num_decoders or resources.decoders
    report = _reporter(counter)
    scored = (
        data.repartition(target_num_rows_per_block=options.block_size)
        .map_batches(
            DecodeStage,
            fn_constructor_args=(bundle.preprocessing, options.decode),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=1,
            compute=ActorPoolStrategy(min_size=decoders[0], max_size=decoders[1]),
        )
        .map_batches(
            PredictStage,
            fn_constructor_args=(
                _with_threads(options.predict, resources),
                bundle.fingerprint,
                report,
            ),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=resources.cpus_per_predictor,
            num_gpus=options.gpus_per_predictor or None,
            compute=ActorPoolStrategy(
                min_size=options.num_predictors[0], max_size=options.num_predictors[1]
            ),
        )
    )
    filesystem.create_dir(f"{base}/{generation.rows}", recursive=True)
    scored.write_parquet(
        f"{base}/{generation.rows}",
        filesystem=filesystem,
        mode=SaveMode.APPEND,  # OVERWRITE destroys committed rows, IGNORE does nothing
        compression="zstd",
    )


def _with_threads(predict: PredictSettings, resources: Resources) -> PredictSettings:
    if predict.torch_threads is not None:
        return predict
    return PredictSettings(**{**asdict(predict), "torch_threads": resources.torch_threads})


def _reporter(counter: Any) -> Callable[[int, float], None]:  # noqa: ANN401 - an actor handle
    def report(rows: int, seconds: float) -> None:
        counter.add.remote(rows, seconds)

    return report


def _missing(plan: Plan) -> int:
    """Scans of the work without a committed row.

    Raises:
        ResultsError: a scan has two rows, which no restart can mend.
    """
    ids = plan.generation.committed_ids()
    if len(np.unique(ids)) != len(ids):
        raise ResultsError(
            f"{len(ids) - len(np.unique(ids))} scans have two rows in "
            f"'{plan.generation.folder.at(plan.generation.rows)}'; remove that folder and "
            f"'{plan.generation.folder.at(plan.generation.checkpoints)}', then score again"
        )
    return int((~np.isin(plan.work["scan_id"].to_numpy(), ids)).sum())


def _manifest(plan: Plan, catalogs: list[str], started: float) -> dict[str, Any]:
    generation = plan.generation
    files = []
    for name in sorted(generation.committed_files()):
        path = f"{generation.rows}/{name}"
        filesystem, inner = open_filesystem(generation.folder.at(path))
        size = filesystem.get_file_info(inner).size
        rows = pq.read_metadata(inner, filesystem=filesystem).num_rows
        files.append({"path": path, "rows": rows, "bytes": size})
    return {
        "generation": generation.number,
        "run_id": uuid.uuid4().hex,
        "fingerprint": generation.fingerprint,
        "started_at": datetime.fromtimestamp(started, timezone.utc).isoformat(),
        "finished_at": datetime.now(timezone.utc).isoformat(),
        "catalogs": catalogs,
        "files": files,
        "supersedes": {str(number): ids for number, ids in plan.supersedes.items()},
    }


class _watched:
    """Passes the counter on to `progress` twice a second while the job runs."""

    def __init__(self, counter: Any, plan: Plan, progress: Progress | None) -> None:  # noqa: ANN401
        self._counter, self._plan, self._progress = counter, plan, progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> None:
        if self._progress:
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._progress:
            self._thread.join()

    def _watch(self) -> None:
        assert self._progress is not None
        total = self._plan.work.num_rows
        while not self._stop.wait(0.5):
            with suppress(ray.exceptions.RayError):  # the job itself will report it
                rows, _ = ray.get(self._counter.read.remote(), timeout=5)
                self._progress(min(self._plan.resumed + rows, total), total)
        self._progress(total - _missing(self._plan), total)
