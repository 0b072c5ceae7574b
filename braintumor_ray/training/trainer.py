"""Ray Train: who trains, on which share of the data, and what they end in."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchTrainer

from braintumor_ray.errors import BrainTumorError, TrainingError, innermost, lacks_space
from braintumor_ray.models.allocator import allocator_environment
from braintumor_ray.progress import repeated
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.storage import open_filesystem
from braintumor_ray.training.options import Workers
from braintumor_ray.training.stages import State
from braintumor_ray.training.uneven import UnevenValidation
from braintumor_ray.training.worker import TrainingTask, read_checkpoint, train_worker

OnEpoch = Callable[[dict[str, Any]], None]


@ray.remote(num_cpus=0)  # it computes nothing; a CPU of its own would be one less for workers
class _EpochLog:
    """Entries of the history: rank 0 appends them, the driver reads them."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def append(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)

    def read(self, seen: int) -> list[dict[str, Any]]:
        return self._entries[seen:]


@contextmanager
def _forward_epochs(epoch_log: Any, on_epoch: OnEpoch | None) -> Iterator[None]:  # noqa: ANN401
    """Pass each new entry on while the workers train."""
    seen = 0

    def read() -> None:
        nonlocal seen
        for entry in ray.get(epoch_log.read.remote(seen)):
            seen += 1
            if on_epoch:
                on_epoch(entry)

    try:
        with repeated(read, 1.0, "epochs"):
            yield
    finally:
        read()  # entries since the last call


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends as everywhere, in KeyboardInterrupt.

    Ray Train's own handler aborts the run, exits with code 0, and stays in place after the run.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


class EndAtOnce(UserCallback):
    """Ends a run for what its user must mend first; Ray Train alone would try everything again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401 - Ray's
        """Called in Ray Train's controller, which retries no error of a callback."""
        for error in map(innermost, worker_exceptions.values()):
            if isinstance(error, BrainTumorError) or lacks_space(error):
                raise error


@contextmanager
def _as_own_errors() -> Iterator[None]:
    """Raise an error of this package that a worker raised, in place of Ray's that holds it."""
    try:
        yield
    except TrainingFailedError as error:
        cause = innermost(error)
        if isinstance(cause, BrainTumorError):
            raise cause from error
        raise


def scaling(workers: Workers) -> ScalingConfig:
    """What the run asks Ray for."""
    resources = {"CPU": 1.0, "GPU": 1.0} if workers.use_gpu else {"CPU": 1.0}
    return ScalingConfig(
        num_workers=workers.number, use_gpu=bool(workers.use_gpu), resources_per_worker=resources
    )


def runtime_env(workers: Workers) -> dict[str, dict[str, str]]:
    """In what environment Ray starts the workers."""
    return {} if workers.use_gpu else {"env_vars": allocator_environment()}


def _checkpoint_config(recipe: Recipe) -> CheckpointConfig:
    return CheckpointConfig(
        num_to_keep=recipe.keep_checkpoints,
        checkpoint_score_attribute=recipe.monitor,
        checkpoint_score_order="min" if recipe.monitor.endswith("loss") else "max",
    )


@dataclass(frozen=True)
class Fitted:
    """What training ended in.

    Attributes:
        best: weights with the best monitored value of all stages (the last ones, if so chosen).
        stages: the best weights so far at the end of each stage but the last, by its name.
        history: one entry per epoch.
    """

    best: State
    stages: dict[str, State]
    history: list[dict[str, Any]]


def fit(
    task: TrainingTask,
    datasets: dict[str, Dataset],
    workers: Workers,
    storage: str,
    name: str,
    on_epoch: OnEpoch | None = None,
) -> Fitted:
    """Train over all workers; resumes where a run of the same storage and name was interrupted.

    Args:
        task: what each worker trains.
        datasets: 'train' and 'val', columns scan_id, label, image; of a guided run, 'train' has
            mask and copy, too.
        workers: who trains.
        storage: folder or URI that all nodes see.
        name: of the run inside `storage`.
        on_epoch: called with each epoch's entry of the history.

    Raises:
        TrainingError: no epoch gave weights that are numbers, or the interrupted run was begun by
            a version in which other layers learned.
    """
    filesystem, path = open_filesystem(storage)
    epoch_log = _EpochLog.remote()  # type: ignore[attr-defined]
    config = {
        "epoch_log": epoch_log,
        "task": ray.put(task),  # the config itself is copied for every worker
        "threads": workers.threads or max(1, (os.cpu_count() or 1) // workers.most),
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=scaling(workers),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            worker_runtime_env=runtime_env(workers),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=_checkpoint_config(task.recipe),
            callbacks=[EndAtOnce()],
        ),
        datasets=datasets,
        dataset_config=UnevenValidation(
            execution_options=ExecutionOptions(preserve_order=True),  # one seed, one order
        ),
    )
    with _forward_epochs(epoch_log, on_epoch), _interruptible(), _as_own_errors():
        result = trainer.fit()
    if result.checkpoint is None:  # every stage reports one: a fault of ours or of Ray's
        raise RuntimeError("the run reported no checkpoint")
    saved = read_checkpoint(result.checkpoint)
    if saved["best"] is None:
        raise TrainingError(
            f"no epoch of {len(saved['course']['history'])} ended in a validation loss that is a "
            "number: training diverged; set a lower optimizer.lr or optimizer.clip_norm=1.0, and "
            "choose another --output"
        )
    return Fitted(saved["best"], saved["stages"], saved["course"]["history"])
