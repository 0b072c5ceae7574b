"""The archive job on Ray Data: exactly once, resumable, incremental."""

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data.exceptions import ExecutionTimeoutError

from braintumor_ray.engines.choice import Choice, possible_engine, resolve_engine
from braintumor_ray.errors import ResultsError, innermost, root_cause
from braintumor_ray.lease import Lease, lease_on
from braintumor_ray.models.bundle import Bundle, load_bundle
from braintumor_ray.models.device import use_bf16
from braintumor_ray.monitoring.meters import RunMeters
from braintumor_ray.predict.results import (
    FIRST_ENGINE,
    META,
    ResultsFolder,
    results_folder,
)
from braintumor_ray.scoring.generation import drop_unlisted, tidy_newest
from braintumor_ray.scoring.layout import Cluster, allocate
from braintumor_ray.scoring.options import ScoreOptions
from braintumor_ray.scoring.pipeline import Counter, Stages, execute, watched
from braintumor_ray.scoring.plan import ScorePlan, make_plan, write_manifest, write_work
from braintumor_ray.scoring.result_settings import open_results, resolve_options, with_stored_engine
from braintumor_ray.scoring.scans import Scans, are_in
from braintumor_ray.scoring.summary import RowStatistics, Summary, nothing_new, summarize
from braintumor_ray.storage import absolute, location_label
from braintumor_ray.types import Progress

ATTEMPTS = 5  # executions of one run: nodes and workers die, and orphans of theirs are tidied up
logger = logging.getLogger(__name__)


def score(
    catalog: pa.Table | Scans,
    results: str,
    options: ScoreOptions,
    progress: Progress | None = None,
    stages: Stages | None = None,
) -> Summary:
    """Score what is new in a catalog and commit it as one generation.

    A run that was interrupted, however hard, is resumed by calling this again.

    Args:
        catalog: all scans of the source (`scoring.scans.open_scans`, or a table).
        results: the results folder, made if it is not there; belongs to one bundle.
        options: how to run.
        progress: called with scans done and to do.
        stages: other classes than the decoder's and the predictor's, for measurements.

    Raises:
        ResultsError: the folder belongs to another bundle, is held by a live job or cannot be
            written, or the rows could not be made to agree with the catalog.
        UsageError: the cluster lacks CPUs or GPUs that the job must have.
    """
    bundle = scoring_bundle(options)
    folder = results_folder(results)
    with _as_results_errors(results):
        if META in folder.names():  # a wrong folder is refused before it is held
            open_results(folder, bundle, with_stored_engine(options, folder.meta))
        with lease_on(folder.location) as lease:
            # A new folder is claimed only here: of two first runs one must find the other's claim.
            options, choice = _resolved(folder, bundle, options)
            fingerprint = open_results(folder, bundle, options)
            tidy_newest(folder, fingerprint)
            plan = _plan(folder, catalog, fingerprint, options)
            plan.generation.reconcile()
            if not plan.work.num_rows:
                return _with_engine(nothing_new(plan), options, choice)
            summary = _run(plan, bundle, options, lease, progress, stages or Stages())
            return _with_engine(summary, options, choice)


def plan_only(
    catalog: pa.Table | Scans, results: str, bundle: Bundle, options: ScoreOptions
) -> ScorePlan:
    """What `score` would do with a bundle (`scoring_bundle`); writes nothing and needs no Ray."""
    folder = results_folder(results)
    with _as_results_errors(results):
        if META not in folder.names():
            return _plan(folder, catalog, "none", options)
        fingerprint = open_results(folder, bundle, with_stored_engine(options, folder.meta))
        return _plan(folder, catalog, fingerprint, options)


def scoring_bundle(options: ScoreOptions) -> Bundle:
    """The bundle of a job: with test-time augmentation it has another fingerprint and threshold.

    Raises:
        BundleError: from `load_bundle` or `Bundle.averaging`.
    """
    bundle = load_bundle(options.predict.bundle)
    return bundle.averaging() if options.predict.tta else bundle


def _resolved(
    folder: ResultsFolder, bundle: Bundle, options: ScoreOptions
) -> tuple[ScoreOptions, Choice]:
    """Engine and precision decided here, once, for all predictors."""
    meta = folder.meta if META in folder.names() else None
    if meta is None:
        engine = possible_engine(options.predict.engine or FIRST_ENGINE, bundle.fields)
        options = replace(options, predict=replace(options.predict, engine=engine))
    return resolve_options(
        options, meta, lambda: _fastest_engine(options), lambda: _torch_gains_by_bf16(options)
    )


def _with_engine(summary: Summary, options: ScoreOptions, choice: Choice) -> Summary:
    precision = options.predict.precision
    return replace(
        summary,
        engine=choice.engine,
        precision=None if precision == "auto" else precision,
        engine_scans_per_s=dict(choice.scans_per_s),
    )


def _gpu_share(options: ScoreOptions) -> float:
    """Of a GPU, that a predictor of this job gets; 0 on CPUs."""
    return options.request_for(connected_cluster().gpus).gpus_per_predictor or 0.0


def _fastest_engine(options: ScoreOptions) -> Choice:
    """Measured on the driver's node as a predictor runs there: a thread for each batch."""
    if _gpu_share(options):
        return Choice("torch")
    predict = options.predict
    return resolve_engine(
        "auto",
        absolute(predict.bundle),
        device="cpu",
        precision=predict.precision,
        parallel=predict.torch_threads or os.cpu_count() or 1,
    )


def _torch_gains_by_bf16(options: ScoreOptions) -> bool:
    share = _gpu_share(options)
    if not share:
        return use_bf16(torch.device("cpu"), "auto")
    asked = _gpu_gains_by_bf16.options(num_gpus=share)  # the driver may have no GPU
    return bool(ray.get(asked.remote()))


@ray.remote(num_cpus=0)
def _gpu_gains_by_bf16() -> bool:
    return use_bf16(torch.device("cuda"), "auto")


def _plan(
    folder: ResultsFolder, catalog: pa.Table | Scans, fingerprint: str, options: ScoreOptions
) -> ScorePlan:
    return make_plan(
        folder,
        catalog,
        folder.manifests(),
        fingerprint,
        options.limit,
        retry_quarantined=options.retry_quarantined,
        redaction=options.decode.redaction,
    )


def _run(
    plan: ScorePlan,
    bundle: Bundle,
    options: ScoreOptions,
    lease: Lease,
    progress: Progress | None,
    stages: Stages,
) -> Summary:
    started = time.time()
    cluster = connected_cluster()
    layout = allocate(options.request_for(cluster.gpus), cluster)
    attempt = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
    catalogs = write_work(plan, attempt)
    with closing(Counter()) as counter:
        progress = _metered(plan, bundle, options, progress)
        for number in range(1, ATTEMPTS + 1):
            if not _missing(plan):
                break
            lease.check()  # before our files in flight meet another job's
            with watched(counter, plan.resumed, plan.work.num_rows, progress), _retried(number):
                execute(plan.generation, catalogs, bundle, options, layout, counter, stages)
            plan.generation.reconcile()
        lost = _missing(plan)
        if lost:
            raise ResultsError(
                f"{lost} of {plan.work.num_rows} scans have no committed row after {ATTEMPTS} "
                "attempts; nothing was published; run the same command again"
            )
        progress(plan.work.num_rows, plan.work.num_rows)
        predicted, seconds = counter.read()
        speed = predicted / seconds if seconds else 0.0
    return _commit(plan, catalogs, lease, started, speed, options, RowStatistics(bundle))


def _metered(
    plan: ScorePlan, bundle: Bundle, options: ScoreOptions, progress: Progress | None
) -> Progress:
    """Progress that is exported, too."""
    predict = options.predict
    made_by = {
        "engine": str(predict.engine),
        "precision": predict.precision,
        "bundle_fingerprint": bundle.fingerprint,
    }
    meters = RunMeters(location_label(plan.generation.folder.location), made_by)

    def report(done: int, total: int) -> None:
        meters.backlog(total - done + plan.backlog)
        if progress:
            progress(done, total)

    return report


def _commit(
    plan: ScorePlan,
    catalogs: list[str],
    lease: Lease,
    started: float,
    model_scans_per_s: float,
    options: ScoreOptions,
    statistics: RowStatistics,
) -> Summary:
    """Write the manifest, after which the generation counts, and tidy up."""
    generation, redaction = plan.generation, options.decode.redaction
    if redaction:  # from here on nothing in the folder shows where a scan is
        catalogs = write_work(plan, f"{_attempt_of(catalogs)}-redacted", redaction)
    predict = options.predict
    made_by = {"engine": predict.engine, "precision": predict.precision}
    manifest = _manifest(plan, catalogs, started, statistics) | made_by
    summary = summarize(plan, statistics, time.time() - started, model_scans_per_s)
    generation.folder.settle(manifest)
    lease.check()
    write_manifest(plan, manifest | {"summary": asdict(summary)})
    drop_unlisted(generation, manifest)
    generation.drop_checkpoints()
    return summary


def _attempt_of(catalogs: list[str]) -> str:
    """The attempt that wrote some catalogs."""
    return catalogs[0].rsplit("/", 1)[-1].rsplit("-", 1)[0]


def _missing(plan: ScorePlan) -> int:
    """Scans of the work without a committed row."""
    done = np.sort(plan.generation.settled_ids())
    return int(np.count_nonzero(~are_in(plan.work.ids, done)))


def _manifest(
    plan: ScorePlan, catalogs: list[str], started: float, statistics: RowStatistics
) -> dict[str, Any]:
    generation = plan.generation
    sizes = generation.folder.sizes(generation.rows)
    files = []
    for path, rows in generation.read_files(
        sorted(generation.committed_files()), statistics.columns
    ):
        statistics.add(rows)
        size = sizes[path.rsplit("/", 1)[-1]]
        files.append({"path": path, "rows": rows.num_rows, "bytes": size})
    return {
        "generation": generation.number,
        "run_id": uuid.uuid4().hex,
        "fingerprint": generation.fingerprint,
        "started_at": datetime.fromtimestamp(started, timezone.utc).isoformat(),
        "finished_at": datetime.now(timezone.utc).isoformat(),
        "catalogs": catalogs,
        "files": files,
        "supersedes": {str(number): ids for number, ids in plan.supersedes.items()},
        "retired": plan.retired,
    }


@contextmanager
def _retried(number: int) -> Iterator[None]:
    """The death of a node, worker, actor or GPU ends an execution, not the run."""
    try:
        yield
    except ray.exceptions.RayError as error:
        if number == ATTEMPTS or not _is_of_a_process(innermost(error)):
            raise  # our code or the file system, and would again
        logger.warning("execution %d of %d ended: %s", number, ATTEMPTS, root_cause(error))


def _is_of_a_process(cause: BaseException) -> bool:
    """Whether new processes may do better; after an error of CUDA no call works in the old one."""
    if str(cause).startswith("CUDA error"):
        return True
    raised = isinstance(cause, ray.exceptions.RayTaskError)
    return isinstance(cause, ray.exceptions.RayError) and not raised


@contextmanager
def _as_results_errors(results: str) -> Iterator[None]:
    """Failures that are no scan's fault, as one line that says what to do."""
    try:
        yield
    except (OSError, ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise ResultsError(
            f"scoring into '{results}' stopped: {root_cause(error)}; every committed scan is kept: "
            "mend the cause and run the same command again"
        ) from error


def connected_cluster() -> Cluster:
    """What the cluster has."""
    have = ray.cluster_resources()
    alive = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
    return Cluster(
        cpus=float(have.get("CPU", 0)),
        gpus=float(have.get("GPU", 0)),
        nodes=max(1, len(alive)),
        cores=os.cpu_count() or 1,
    )
