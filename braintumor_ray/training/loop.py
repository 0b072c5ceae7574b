"""Training steps of one worker; no Ray in here. Sums are all-reduced where there are others."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.models.classifier import Classifier, normalize
from braintumor_ray.models.freezing import backbone_is_frozen
from braintumor_ray.training.guidance import GuidanceLoss
from braintumor_ray.training.lesions import SOME_TUMOR

# uint8 (B, S, S), int64 (B,), and float32 (B, h, w) coverage by tumor where training is guided
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class StepSettings:
    """What every step of a run shares.

    Attributes:
        preprocessing: of the bundle to be.
        class_weights: float32 (k,), on the device.
        label_smoothing: share of the target that is spread over all classes.
        clip_norm: largest gradient norm, None: not clipped.
        accumulate: batches whose gradients are added up before the weights change; an epoch's last
            step may have fewer.
        bf16: autocast of the forward pass.
        guidance: the loss of where the evidence lies; None: not guided.
        positive: indices of the positive classes, for scans labeled `SOME_TUMOR`; None: there are
            none.
    """

    preprocessing: Preprocessing
    class_weights: Tensor
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    bf16: bool = False
    guidance: GuidanceLoss | None = None
    positive: tuple[int, ...] | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 for the forward pass, where asked for."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.class_weights.device.type, dtype=torch.bfloat16)


class TrainableNetwork(nn.Module):
    """The network as it is trained: a frozen backbone runs without gradients.

    Deciding it here, in the forward pass, keeps DDP's view simple: it sees a module whose
    trainable parameters all take part, but those of `has_idle_parameters`.
    """

    def __init__(self, model: Classifier, guided: bool = False) -> None:
        super().__init__()
        self.model = model
        self.frozen = backbone_is_frozen(model)
        self.guided = guided

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Normalized images (B, 3, S, S) to logits (B, k), and to what is guided, if anything.

        That is the evidence (B, k, h, w) and the gate (B, 1, h, w), where there is one.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.model.backbone_maps(images)
        features, gate = self.model.refine(*maps)
        if not self.guided:
            return self.model.logits(features), None, None
        logits, evidence = self.model.logits_and_evidence(features)
        return logits, evidence, gate


def has_idle_parameters(network: TrainableNetwork, side: int) -> bool:
    """Whether some of the parameters that learn take no part in the logits.

    Layers of a backbone behind its last map do not, where a head pools the map itself or a neck
    refines it. DDP waits for the gradient of every parameter, unless it is told so.

    Args:
        network: left in eval mode.
        side: of the pictures that it takes, pixels.
    """
    learning = [p for p in network.eval().parameters() if p.requires_grad]
    logits, *_ = network(torch.zeros(1, 3, side, side, device=learning[0].device))
    found = torch.autograd.grad(logits.sum(), learning, allow_unused=True)
    return any(gradient is None for gradient in found)


class Averaged:
    """Exponential moving average of a network's weights and statistics: what is validated and kept.

    The decay rises to its full value over the first steps, min(decay, (1 + t) / (10 + t)), so that
    the average forgets where it began (as in TensorFlow's ExponentialMovingAverage).

    Attributes:
        model: the averaged network.
        steps: updates so far.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.steps = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: Classifier) -> None:
        """Move towards the weights as they are after a step."""
        self.steps += 1
        share = 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))
        ours, theirs = self.model.state_dict().values(), model.state_dict().values()
        pairs = list(zip(ours, theirs, strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moving], [b for _, b in moving], share)
        for mine, other in pairs:
            if not mine.is_floating_point():  # BatchNorm's counter
                mine.copy_(other)


@dataclass
class Totals:
    """Sums over scans, from which the metrics of an epoch follow; the same on every rank.

    Attributes:
        loss: weighted loss, summed.
        confusion: int64 (k, k), rows true, columns predicted.
    """

    loss: float
    confusion: npt.NDArray[np.int64]

    @property
    def scans(self) -> int:
        """Scans that were counted."""
        return int(self.confusion.sum())

    def metrics(self, prefix: str) -> dict[str, float]:
        """Mean loss, accuracy, balanced accuracy, macro precision and recall.

        Classes without scans are left out of the averages.
        """
        table = self.confusion.astype(float)
        hits, true, predicted = np.diag(table), table.sum(axis=1), table.sum(axis=0)
        recall = hits[true > 0] / true[true > 0]
        precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
        count = max(self.scans, 1)
        values = {
            "loss": self.loss / count,
            "accuracy": hits.sum() / count,
            "balanced_accuracy": recall.mean() if len(recall) else 0.0,
            "precision": precision[true > 0].mean() if len(recall) else 0.0,
            "recall": recall.mean() if len(recall) else 0.0,
        }
        return {f"{prefix}_{name}": float(value) for name, value in values.items()}


def weighted_loss(logits: Tensor, labels: Tensor, settings: StepSettings) -> Tensor:
    """Weighted cross-entropy per scan, float32 (B,).

    The mean over a batch divides by its scans, not by its weights (as in Keras), so that the mean
    over workers equals the mean over the whole batch. Of a scan with a drawn lesion only the sum of
    the positive classes' probabilities is asked.
    """
    logits, known = logits.float(), labels.clamp(min=0)
    losses = nn.functional.cross_entropy(
        logits, known, reduction="none", label_smoothing=settings.label_smoothing
    )
    losses = losses * settings.class_weights[known]
    if settings.positive is None:
        return losses
    some = torch.logsumexp(logits, dim=1) - torch.logsumexp(logits[:, settings.positive], dim=1)
    return torch.where(labels == SOME_TUMOR, some, losses)


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    settings: StepSettings,
    schedule: Iterator[float] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Totals:
    """One pass over a worker's batches; gradients are averaged by DDP where `network` is one.

    Args:
        network: in training mode; `TrainableNetwork`, perhaps wrapped in DDP.
        optimizer: of the trainable parameters.
        batches: uint8 (B, S, S) and int64 (B,) on the device.
        settings: see `StepSettings`.
        schedule: learning-rate factors, one per optimizer step, on the rates set before.
        after_step: called after each optimizer step (averaging of weights).

    Returns:
        Sums over all workers.
    """
    totals = _zeros(settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    network.zero_grad(set_to_none=True)
    source = iter(batches)
    while window := list(islice(source, settings.accumulate)):
        # The scans that are there, not those of a full window: an epoch's last one is shorter.
        # All workers have equally many, so that DDP's mean over workers is the mean over scans.
        scans = sum(len(batch[1]) for batch in window)
        for images, labels, *coverage in window:
            with settings.autocast():
                logits, evidence, gate = network(normalize(images, settings.preprocessing))
            losses = weighted_loss(logits, labels, settings)
            loss = losses.sum() / scans
            if settings.guidance is not None and evidence is not None:
                guided = settings.guidance(evidence, gate, labels, *coverage)
                loss = loss + guided * (len(labels) / scans)
            loss.backward()
            _count(totals, losses, logits, labels)
        _step(network, optimizer, settings, rates, schedule, after_step)
    return _reduced(totals)


@torch.no_grad()
def validate(network: Classifier, batches: Iterable[Batch], settings: StepSettings) -> Totals:
    """Loss and confusion over all workers' scans, each counted once; leaves eval mode on."""
    network.eval()
    totals = _zeros(settings)
    for images, labels, *_ in batches:
        with settings.autocast():
            logits = network(normalize(images, settings.preprocessing))
        _count(totals, weighted_loss(logits, labels, settings), logits, labels)
    return _reduced(totals)


def without_lone_scans(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Leave out a later batch of one scan, from which no BatchNorm can learn.

    All workers have equally many scans, so that all leave it out; the next epoch's shuffle makes
    another scan the last one.
    """
    for number, batch in enumerate(batches):
        if number == 0 or len(batch[1]) > 1:
            yield batch


def steps_per_epoch(scans: int, batch: int, accumulate: int) -> int:
    """Optimizer steps of one pass, and so factors that a schedule gives for it.

    Args:
        scans: of the whole training split.
        batch: scans per batch of all workers together.
        accumulate: batches per step.
    """
    return math.ceil(math.ceil(scans / batch) / accumulate)


def share_buffers(model: nn.Module) -> None:
    """Give all workers rank 0's BatchNorm statistics: each saw other scans in the last step."""
    if distributed.is_available() and distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def of_first_rank(value: float, device: torch.device) -> float:
    """Rank 0's value, on every rank: what is decided by it is decided alike."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.broadcast(shared, src=0)
    return float(shared)


def balanced_class_weights(labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float32]:
    """Weights n / (k * n_c), scikit-learn's 'balanced', from training labels; float32 (k,)."""
    counts = np.bincount(labels, minlength=k).astype(float)
    return (len(labels) / (k * np.maximum(counts, 1))).astype(np.float32)


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: StepSettings,
    rates: list[float],
    schedule: Iterator[float] | None,
    after_step: Callable[[], None] | None,
) -> None:
    if schedule is not None:
        factor = next(schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
    if settings.clip_norm is not None:
        trainable = [p for p in network.parameters() if p.requires_grad]
        nn.utils.clip_grad_norm_(trainable, settings.clip_norm)
    optimizer.step()
    network.zero_grad(set_to_none=True)
    if after_step is not None:
        after_step()


def _zeros(settings: StepSettings) -> Tensor:
    """A float64 vector: k * k confusion counts, then the summed loss; one all-reduce will do."""
    k = len(settings.class_weights)
    return torch.zeros(k * k + 1, dtype=torch.float64, device=settings.class_weights.device)


def _count(totals: Tensor, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
    k = logits.shape[1]
    known = labels >= 0  # a drawn lesion has no class that could be right or wrong
    cells = labels[known] * k + logits.detach().argmax(dim=1)[known]
    totals[:-1] += torch.bincount(cells, minlength=k * k)
    totals[-1] += losses.detach().double()[known].sum()


def _reduced(totals: Tensor) -> Totals:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(totals)
    values = totals.cpu().numpy()
    k = round(np.sqrt(len(values) - 1))
    return Totals(float(values[-1]), values[:-1].astype(np.int64).reshape(k, k))
