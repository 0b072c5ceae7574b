"""What each worker of Ray Train does: stages of epochs on its share of the data."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.train
import torch
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train import Checkpoint
from torch import nn

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import TrainingError
from braintumor_ray.models.classifier import Architecture, Classifier
from braintumor_ray.models.depthwise import accelerate_depthwise
from braintumor_ray.models.device import use_bf16
from braintumor_ray.models.freezing import set_trainable, train_mode
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.training.augment import Augmenter, augment_batch
from braintumor_ray.training.guidance import GuidanceLoss, coverage, unpack_mask
from braintumor_ray.training.lesions import LesionMaker
from braintumor_ray.training.loop import (
    Averaged,
    Batch,
    StepSettings,
    TrainableNetwork,
    has_idle_parameters,
    of_first_rank,
    share_buffers,
    steps_per_epoch,
    train_epoch,
    validate,
    without_lone_scans,
)
from braintumor_ray.training.pace import Deadline, Pace
from braintumor_ray.training.shards import squares
from braintumor_ray.training.stages import (
    RunState,
    State,
    build_optimizer,
    from_checkpoint,
    step_factors,
    to_checkpoint,
)
from braintumor_ray.types import GrayImage

SHUFFLE_BUFFER = 2048  # scans; 100 MB at 224 px
CHECKPOINT = "checkpoint.pt"


class ToBatch(ArrowBatchCollateFn):
    """Arrow rows (scan_id, label, image) to tensors, augmented where there is an augmenter.

    Ray Data runs it in threads of its own, ahead of the steps.
    """

    def __init__(
        self,
        size: int,
        augmenter: Augmenter | None,
        guided: "GuidedCells | None" = None,
        lesions: LesionMaker | None = None,
    ) -> None:
        super().__init__()
        self._size, self._augmenter = size, augmenter
        self._guided, self._lesions = guided, lesions

    def __call__(self, batch: pa.Table) -> Batch:
        """uint8 (B, S, S), of the augmenter's size, and int64 (B,); see `loop.Batch`."""
        images = squares(batch["image"], self._size)
        labels = torch.tensor(batch["label"].to_numpy(), dtype=torch.int64)
        if self._augmenter is None:
            return torch.from_numpy(images), labels
        if self._guided is None:
            images = augment_batch(images, batch["scan_id"].to_numpy(), self._augmenter)
            return torch.from_numpy(images), labels
        names = ("scan_id", "copy", "label", "mask")
        rows = zip(images, *(batch[name].to_pylist() for name in names), strict=True)
        changed = [self._guided_scan(*row) for row in rows]
        shown, told, covered = zip(*changed, strict=True)
        return (
            torch.from_numpy(np.stack(shown)),
            torch.tensor(told, dtype=torch.int64),
            torch.from_numpy(np.stack(covered)),
        )

    def _guided_scan(
        self, image: GrayImage, scan_id: int, copy: int, label: int, packed: bytes | None
    ) -> tuple[GrayImage, int, npt.NDArray[np.float32]]:
        """A changed scan, its label, and the share of each cell of its map that tumor covers."""
        assert self._augmenter is not None
        assert self._guided is not None
        random = self._augmenter.random(scan_id, *([copy] if copy else []))
        mask = None if packed is None else unpack_mask(packed, self._size)
        if self._lesions is not None:
            image, mask, label = self._lesions(random, image, mask, label)
        shown, kept = self._augmenter.with_mask(image, mask, scan_id, random)
        return shown, label, self._guided.coverage(kept, label)


@dataclass(frozen=True)
class GuidedCells:
    """What a batch's coverage is made for.

    Attributes:
        shape: (h, w) of the map.
        positive: indices of the classes with a tumor.
    """

    shape: tuple[int, int]
    positive: tuple[int, ...]

    def coverage(self, mask: GrayImage | None, label: int) -> npt.NDArray[np.float32]:
        """float32 (h, w); zeros for a scan without a tumor, NaN where its tumor is not known."""
        if mask is not None:
            return coverage(mask, self.shape)
        return np.full(self.shape, np.nan if label in self.positive else 0.0, np.float32)


@dataclass(frozen=True)
class TrainingTask:
    """What every worker trains.

    Attributes:
        recipe: the schedule.
        architecture: the network.
        preprocessing: how pixels reach it.
        state: its weights at the start.
        class_weights: float32 (k,).
        train_rows: rows of 'train', over all workers.
        guided_classes: indices of the classes with a tumor; None: training is not guided, and no
            scan is changed by `lesions`.
        lesions: changes which scans have a tumor.
        deadline: fewer epochs are trained, so that the run is finished by then.
    """

    recipe: Recipe
    architecture: Architecture
    preprocessing: Preprocessing
    state: State
    class_weights: npt.NDArray[np.float32]
    train_rows: int
    guided_classes: tuple[int, ...] | None = None
    lesions: LesionMaker | None = None
    deadline: Deadline | None = None


def train_worker(config: dict[str, Any]) -> None:
    """The loop of one worker: stages of epochs, a report and a checkpoint after each.

    Args:
        config: `task`, a reference to a `TrainingTask`; `epoch_log`, an actor that gets each
            epoch's entry; `threads` of torch.

    Raises:
        TrainingError: a batch does not fit into a GPU, or the checkpoint is of another version.
    """
    torch.set_num_threads(config["threads"])
    worker = _Worker(ray.get(config["task"]), config["epoch_log"])
    try:
        while worker.progress.stage < len(worker.recipe.stages):
            worker.run_stage()
            worker.progress.next_stage()
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            f"a batch of {worker.batch} scans does not fit into the memory of {worker.device}: "
            "give more workers, or another --output and --set data.batch_size=N with a smaller N"
        ) from error


class _Worker:
    """One rank's network, data and state."""

    def __init__(self, task: TrainingTask, epoch_log: Any) -> None:  # noqa: ANN401 - an actor
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.epoch_log, self.recipe, self.preprocessing = epoch_log, task.recipe, task.preprocessing
        torch.manual_seed(self.recipe.seed + self.rank)  # each rank drops other units
        self.model = Classifier(task.architecture)
        self.model.load_state_dict(task.state)
        self.progress = RunState()
        self.average: Averaged | None = None
        self.saved = _last_checkpoint()
        if self.saved is not None:
            self.progress = from_checkpoint(self.saved)
            self.model.load_state_dict(self.saved["model"])
            if self.progress.stage_is_over(self.recipe):
                self._end_stage()
                self.saved = None
                self.progress.next_stage()
        if self.device.type == "cpu":
            accelerate_depthwise(self.model)
        self.model = self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        section = self.recipe.optimizer
        self.settings = StepSettings(
            self.preprocessing,
            torch.tensor(task.class_weights, device=self.device),
            section.label_smoothing,
            section.clip_norm,
            section.accumulate,
            use_bf16(self.device, self.recipe.precision),
        )
        self.positive, self.lesions = task.guided_classes, task.lesions
        if self.positive is not None:
            losses = self.recipe.guidance
            guidance = GuidanceLoss(losses, self.positive) if losses.weight else None
            self.settings = replace(self.settings, guidance=guidance, positive=self.positive)
        self.train_rows = task.train_rows
        # Rounded up: over all workers, a batch is never smaller than the recipe's.
        self.batch = max(1, -(-self.recipe.data.batch_size // self.world))
        self.pace = Pace(task.deadline) if task.deadline else None

    def run_stage(self) -> None:
        """Train the current stage to its end; the best weights are in place afterwards."""
        stage = self.recipe.stages[self.progress.stage]
        set_trainable(self.model, stage.train)
        guided = self.settings.guidance is not None
        network = self._distributed(TrainableNetwork(self.model, guided))
        optimizer = build_optimizer(self.model, self.recipe, stage)
        decay = self.recipe.optimizer.average
        self.average = Averaged(self.model, decay) if decay is not None else None
        if self.saved is not None:
            _load_optimizer(optimizer, self.saved["optimizer"])
            if self.average is not None:
                self.average.model.load_state_dict(self.saved["average"])
                self.average.steps = self.progress.stage_steps
            self.saved = None
        base = [
            self.recipe.optimizer.lr * stage.lr_scale * factor
            for factor in (1.0, self.recipe.optimizer.backbone_lr_scale)
        ][: len(optimizer.param_groups)]
        if self.pace is not None:
            self.pace.start_stage()
        while not self.progress.stage_is_over(self.recipe):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * self.progress.lr_factor
            self._run_epoch(network, optimizer)
        self._end_stage()

    def _run_epoch(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        stage = self.recipe.stages[self.progress.stage]
        started = time.perf_counter()
        train_mode(self.model)
        augmenter = Augmenter(
            self.recipe.augment, self.recipe.seed, self.progress.epoch, stage.image_size
        )
        steps = steps_per_epoch(self.train_rows, self.batch * self.world, self.settings.accumulate)
        factors = step_factors(self.recipe, self.progress, steps)
        batches = without_lone_scans(self._batches("train", augmenter))
        trained = train_epoch(network, optimizer, batches, self.settings, factors, self._after_step)
        middle = time.perf_counter()
        share_buffers(self.kept)
        validated = validate(self.kept, self._batches("val", None), self.settings)
        ended = time.perf_counter()
        entry = {
            "stage": stage.name,
            "epoch": self.progress.epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            **trained.metrics("train"),
            **validated.metrics("val"),
            "train_scans": trained.scans,
            "val_scans": validated.scans,
            "train_scans_per_s": trained.scans / (middle - started),
            "seconds": ended - started,
            "workers": self.world,
        }
        self.progress.note(entry, self.kept, self.recipe)
        if self.pace is not None:
            predict_s = (ended - middle) * self.world / max(validated.scans, 1)
            left = of_first_rank(self.pace.epochs_left(predict_s), self.device)
            self.progress.settle(self.recipe, left)
        self._report(entry, optimizer)

    @property
    def kept(self) -> Classifier:
        """The network that is validated and kept: the average, where there is one."""
        return self.model if self.average is None else self.average.model

    def _after_step(self) -> None:
        if self.average is not None:
            self.average.update(self.model)
            self.progress.stage_steps = self.average.steps

    def _report(self, entry: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Every rank reports equally often; rank 0 adds the checkpoint."""
        if self.rank != 0:
            ray.train.report(entry)
            return
        with tempfile.TemporaryDirectory() as folder:
            state = to_checkpoint(self.progress, self.model, optimizer, self.kept)
            with open(Path(folder) / CHECKPOINT, "wb") as stream:
                torch.save(state, stream)  # given a path, torch does not say that a disk is full
            ray.train.report(entry, checkpoint=Checkpoint.from_directory(folder))
        self.epoch_log.append.remote(entry)

    def _end_stage(self) -> None:
        """Go on from the best weights so far, not from the last."""
        if self.progress.best_state is not None:
            self.model.load_state_dict(self.progress.best_state)
            name = self.recipe.stages[self.progress.stage].name
            self.progress.stage_states[name] = self.progress.best_state

    def _distributed(self, network: TrainableNetwork) -> nn.Module:
        if self.world == 1:
            return network
        idle = has_idle_parameters(network, self.preprocessing.image_size)
        if self.recipe.sync_batchnorm and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=devices, find_unused_parameters=idle
        )

    def _batches(self, name: str, augmenter: Augmenter | None) -> Iterator[Batch]:
        shuffle = {}
        guided = None
        if augmenter is not None:
            if self.positive is not None:
                side = augmenter.size or self.preprocessing.image_size
                guided = GuidedCells(self.model.map_size(side), self.positive)
            seed = self.recipe.seed + self.progress.epoch
            shuffle = {"local_shuffle_buffer_size": SHUFFLE_BUFFER, "local_shuffle_seed": seed}
        shard = ray.train.get_dataset_shard(name)
        for batch in shard.iter_torch_batches(
            batch_size=self.batch,
            collate_fn=ToBatch(self.preprocessing.image_size, augmenter, guided, self.lesions),
            prefetch_batches=4,
            **shuffle,
        ):
            yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise TrainingError(
            "the interrupted run was begun by another version, in which other layers learned; "
            "remove its folder, or choose another --output"
        ) from error


def _last_checkpoint() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else read_checkpoint(checkpoint)


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `to_checkpoint` made."""
    with checkpoint.as_directory() as folder:
        saved: dict[str, Any] = torch.load(
            Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True
        )
    return saved
