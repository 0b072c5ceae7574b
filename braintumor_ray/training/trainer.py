"""Ray Train: the loop of each worker, and the trainer that starts them."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.train
import torch
from ray.data import Dataset, ExecutionOptions
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer
from torch import nn

from braintumor_ray.data.augment import Augmenter, augment_batch
from braintumor_ray.data.preprocess import Preprocessing
from braintumor_ray.models.classifier import Architecture, Classifier
from braintumor_ray.models.freezing import set_trainable, train_mode
from braintumor_ray.recipes.loader import recipe_from_dict
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.training.loop import (
    Batch,
    StepSettings,
    Trained,
    train_epoch,
    validate,
)
from braintumor_ray.training.stages import (
    Course,
    State,
    build_optimizer,
    from_checkpoint,
    step_factors,
    to_checkpoint,
)

SHUFFLE_BUFFER = 2048  # scans; 100 MB at 224 px
FILE = "checkpoint.pt"
OnEpoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Workers:
    """Who trains.

    Attributes:
        number: workers, or (least, most) for an elastic run.
        use_gpu: a GPU for each.
        max_failures: how often a dead worker is replaced before the run fails.
        threads: torch threads per worker on CPU; None: the machine's cores shared out.
    """

    number: int | tuple[int, int]
    use_gpu: bool = False
    max_failures: int = 3
    threads: int | None = None

    @property
    def most(self) -> int:
        """Largest number of workers."""
        return self.number if isinstance(self.number, int) else self.number[1]

    def scaling(self) -> ScalingConfig:
        """What the run asks Ray for."""
        resources = {"CPU": 1.0, "GPU": 1.0} if self.use_gpu else {"CPU": 1.0}
        return ScalingConfig(
            num_workers=self.number, use_gpu=self.use_gpu, resources_per_worker=resources
        )


class UnevenValidation(DataConfig):
    """Splits validation without dropping rows.

    Ray's default gives every worker equally many rows and drops the rest: 33 rows on 2 workers
    become 32. Training keeps that (all ranks must take equally many steps), validation must not.
    """

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,  # noqa: ANN401 - Ray's signature
        worker_node_ids: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> list[dict[str, Any]]:
        """One dictionary of iterators per worker; Ray may ask for one data set at a time."""
        training = {name: data for name, data in datasets.items() if name != "val"}
        output: list[dict[str, Any]] = super().configure(
            training, world_size, worker_handles, worker_node_ids, **kwargs
        )
        if "val" not in datasets:
            return output
        data = datasets["val"].copy(datasets["val"])
        data.context.execution_options = self._resolve_execution_options("val")
        shards = data.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
        for shares, shard in zip(output, shards, strict=True):
            shares["val"] = shard
        return output


class ToBatch(ArrowBatchCollateFn):
    """Arrow rows (scan_id, label, image) to tensors, augmented where there is an augmenter."""

    def __init__(self, size: int, augmenter: Augmenter | None) -> None:
        super().__init__()
        self._size, self._augmenter = size, augmenter

    def __call__(self, batch: pa.Table) -> Batch:
        """uint8 (B, S, S) and int64 (B,)."""
        size = self._size
        column = batch["image"].combine_chunks()
        images = np.stack(
            [np.frombuffer(v.as_buffer(), np.uint8).reshape(size, size) for v in column]
        )
        if self._augmenter is not None:
            images = augment_batch(images, batch["scan_id"].to_numpy(), self._augmenter)
        labels = np.array(batch["label"].to_numpy(), dtype=np.int64)
        return torch.from_numpy(images), torch.from_numpy(labels)


@ray.remote(num_cpus=0)
class _Board:
    """Where rank 0 pins an epoch's figures, and the driver reads them."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def pin(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)

    def read(self, seen: int) -> list[dict[str, Any]]:
        return self._entries[seen:]


@contextmanager
def _read_aloud(board: Any, on_epoch: OnEpoch | None) -> Iterator[None]:  # noqa: ANN401
    """Pass each new entry of the board on while the workers train."""
    stop = threading.Event()
    seen = 0

    def read() -> None:
        nonlocal seen
        for entry in ray.get(board.read.remote(seen)):
            seen += 1
            if on_epoch:
                on_epoch(entry)

    def watch() -> None:
        while not stop.wait(1.0):
            read()

    thread = threading.Thread(target=watch, name="epochs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        read()


def fit(
    recipe: Recipe,
    architecture: Architecture,
    preprocessing: Preprocessing,
    state: State,
    class_weights: npt.NDArray[np.float32],
    train_rows: int,
    datasets: dict[str, Dataset],
    workers: Workers,
    storage: str,
    name: str,
    on_epoch: OnEpoch | None = None,
) -> Result:
    """Train over all workers; resumes where a run of the same storage and name was interrupted.

    Args:
        recipe: the schedule.
        architecture: the network.
        preprocessing: how pixels reach it.
        state: its weights at the start, the same for every worker.
        class_weights: float32 (k,).
        train_rows: scans in 'train', over all workers.
        datasets: 'train' and 'val', columns scan_id, label, image.
        workers: who trains.
        storage: folder or URI that all nodes see.
        name: of the run inside `storage`.
        on_epoch: called with each epoch's entry of the history.

    Returns:
        Ray's result; its checkpoint holds the best weights.
    """
    board = _Board.remote()  # type: ignore[attr-defined]
    config = {
        "board": board,
        "recipe": recipe.model_dump(mode="json"),
        "architecture": architecture.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "state": ray.put(state),
        "class_weights": class_weights.tolist(),
        "train_rows": train_rows,
        "threads": workers.threads or max(1, (os.cpu_count() or 1) // workers.most),
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=workers.scaling(),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets=datasets,
        dataset_config=UnevenValidation(
            execution_options=ExecutionOptions(preserve_order=True),
        ),
    )
    with _read_aloud(board, on_epoch):
        return trainer.fit()


def train_worker(config: dict[str, Any]) -> None:
    """The loop of one worker: stages of epochs, a report and a checkpoint after each."""
    torch.set_num_threads(config["threads"])
    worker = _Worker(config)
    while worker.course.stage < len(worker.recipe.stages):
        worker.run_stage()
        worker.course.next_stage()


class _Worker:
    """One rank's network, data and course."""

    def __init__(self, config: dict[str, Any]) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.board = config["board"]
        self.recipe = recipe_from_dict(config["recipe"])
        self.preprocessing = Preprocessing.from_dict(config["preprocessing"])
        torch.manual_seed(self.recipe.seed + self.rank)
        self.model = Classifier(Architecture(**config["architecture"]))
        self.model.load_state_dict(ray.get(config["state"]))
        self.course = Course()
        self.saved = _last_checkpoint()
        if self.saved is not None:
            self.course = from_checkpoint(self.saved)
            self.model.load_state_dict(self.saved["model"])
            if self.course.stage_is_over(self.recipe):
                self._end_stage()
                self.saved = None
                self.course.next_stage()
        self.model = self.model.to(self.device)
        bf16 = self.recipe.precision == "bf16" or (
            self.recipe.precision == "auto" and self.device.type == "cuda"
        )
        section = self.recipe.optimizer
        self.settings = StepSettings(
            self.preprocessing,
            torch.tensor(config["class_weights"], device=self.device),
            section.label_smoothing,
            section.clip_norm,
            section.accumulate,
            bf16,
        )
        self.train_rows = int(config["train_rows"])
        self.batch = max(1, -(-self.recipe.data.batch_size // self.world))

    def run_stage(self) -> None:
        """Train the current stage to its end; the best weights are in place afterwards."""
        stage = self.recipe.stages[self.course.stage]
        set_trainable(self.model, stage.train)
        network = self._distributed(Trained(self.model))
        optimizer = build_optimizer(self.model, self.recipe, stage)
        if self.saved is not None:
            optimizer.load_state_dict(self.saved["optimizer"])
            self.saved = None
        base = [
            self.recipe.optimizer.lr * stage.lr_scale * factor
            for factor in (1.0, self.recipe.optimizer.backbone_lr_scale)
        ][: len(optimizer.param_groups)]
        while not self.course.stage_is_over(self.recipe):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * self.course.lr_factor
            self._run_epoch(network, optimizer)
        self._end_stage()

    def _run_epoch(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        stage = self.recipe.stages[self.course.stage]
        started = time.perf_counter()
        train_mode(self.model)
        augmenter = Augmenter(self.recipe.augment, self.recipe.seed, self.course.epoch)
        steps = -(-self.train_rows // (self.batch * self.world))
        factors = step_factors(self.recipe.schedule, stage, self.course.stage_epoch, steps)
        batches = self._batches("train", augmenter)
        trained = train_epoch(network, optimizer, batches, self.settings, factors)
        middle = time.perf_counter()
        validated = validate(self.model, self._batches("val", None), self.settings)
        entry = {
            "stage": stage.name,
            "epoch": self.course.epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            **trained.metrics("train"),
            **validated.metrics("val"),
            "train_scans": trained.scans,
            "val_scans": validated.scans,
            "train_scans_per_s": trained.scans / (middle - started),
            "seconds": time.perf_counter() - started,
            "workers": self.world,
        }
        self.course.note(entry, self.model, self.recipe)
        self._report(entry, optimizer)

    def _report(self, entry: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Every rank reports equally often; rank 0 adds the checkpoint."""
        if self.rank != 0:
            ray.train.report(entry)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(to_checkpoint(self.course, self.model, optimizer), Path(folder) / FILE)
            ray.train.report(entry, checkpoint=Checkpoint.from_directory(folder))
        self.board.pin.remote(entry)

    def _end_stage(self) -> None:
        """Go on from the best weights so far, not from the last."""
        if self.course.best_state is not None:
            self.model.load_state_dict(self.course.best_state)
            name = self.recipe.stages[self.course.stage].name
            self.course.stage_states[name] = self.course.best_state

    def _distributed(self, network: nn.Module) -> nn.Module:
        if self.world == 1:
            return network
        if self.recipe.sync_batchnorm and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    def _batches(self, name: str, augmenter: Augmenter | None) -> Iterator[Batch]:
        shuffle = {}
        if augmenter is not None:
            seed = self.recipe.seed + self.course.epoch
            shuffle = {"local_shuffle_buffer_size": SHUFFLE_BUFFER, "local_shuffle_seed": seed}
        shard = ray.train.get_dataset_shard(name)
        for images, labels in shard.iter_torch_batches(
            batch_size=self.batch,
            collate_fn=ToBatch(self.preprocessing.image_size, augmenter),
            prefetch_batches=4,
            **shuffle,
        ):
            yield images.to(self.device, non_blocking=True), labels.to(self.device)


@dataclass(frozen=True)
class Fitted:
    """What training ended in.

    Attributes:
        best: weights with the best monitored value of all stages.
        stages: the best weights so far at the end of each stage but the last, by its name.
        history: one entry per epoch.
    """

    best: State
    stages: dict[str, State]
    history: list[dict[str, Any]]


def read_fitted(result: Result) -> Fitted:
    """The weights and the history of a finished run."""
    if result.checkpoint is None:
        raise RuntimeError("the run reported no checkpoint")
    with result.checkpoint.as_directory() as folder:
        saved = torch.load(Path(folder) / FILE, map_location="cpu", weights_only=True)
    return Fitted(saved["best"], saved["stages"], saved["course"]["history"])


def _last_checkpoint() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        saved: dict[str, Any] = torch.load(
            Path(folder) / FILE, map_location="cpu", weights_only=True
        )
    return saved
