"""The state of a run over its stages: rates, plateaus, early stopping, the best weights.

Everything here is decided from all-reduced metrics, so that all ranks decide alike.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from braintumor_ray.models.classifier import Classifier
from braintumor_ray.recipes.schema import Recipe, ScheduleSection, StageSection

State = dict[str, Tensor]


@dataclass
class RunState:
    """Where a run is; all of it goes into a checkpoint.

    Attributes:
        stage: index of the stage.
        stage_epoch: epochs of this stage that are done.
        epoch: epochs done in all.
        stage_epochs: epochs that this stage will have, by the time that is left; None: its own.
        bend: where that number was last changed: epochs of the stage, and the share of the
            schedule that had passed.
        stage_steps: optimizer steps of this stage that the average of the weights has seen.
        lr_factor: of the plateau schedule.
        bad_epochs: epochs of this stage without improvement, for early stopping.
        plateau_epochs: the same for the plateau schedule.
        best_score: the monitored value of `best_state`, higher is better.
        best_loss: lowest validation loss of this stage, for the plateau schedule.
        best_state: weights with the best score of all stages.
        history: one entry per epoch.
        stage_states: the best weights so far at the end of each stage, by its name.
    """

    stage: int = 0
    stage_epoch: int = 0
    epoch: int = 0
    stage_epochs: int | None = None
    bend: tuple[int, float] = (0, 0.0)
    stage_steps: int = 0
    lr_factor: float = 1.0
    bad_epochs: int = 0
    plateau_epochs: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    best_state: State | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    stage_states: dict[str, State] = field(default_factory=dict)

    def note(self, entry: dict[str, Any], model: Classifier, recipe: Recipe) -> None:
        """Count an epoch, keep the weights if they are the best, move rates and patience."""
        self.history.append(entry)
        self.epoch += 1
        self.stage_epoch += 1
        score = score_of(entry, recipe)
        # Weights that are no numbers give a constant answer, whose accuracy may be the best.
        improved = score > self.best_score and math.isfinite(entry["val_loss"])
        if improved:
            self.best_score = score
            self.best_state = cpu_state(model)
        self.bad_epochs = 0 if improved else self.bad_epochs + 1
        self._plateau(float(entry["val_loss"]), recipe)

    def stage_is_over(self, recipe: Recipe) -> bool:
        """Whether the stage has had its epochs, or its patience has run out."""
        patience = recipe.schedule.early_stopping
        exhausted = patience is not None and self.bad_epochs >= patience
        return exhausted or self.stage_epoch >= self.epochs(recipe)

    def epochs(self, recipe: Recipe) -> int:
        """Epochs of this stage: the recipe's, or as many as there is time for."""
        return self.stage_epochs or recipe.stages[self.stage].epochs

    def settle(self, recipe: Recipe, fitting: float) -> None:
        """Give each stage its share of the epochs that still fit, at most the recipe's own.

        A stage that goes on has at least one more, which brings its schedule to the end.

        Args:
            recipe: the schedule.
            fitting: epochs that fit into the time left.
        """
        if self.stage_is_over(recipe):
            return
        own = recipe.stages[self.stage].epochs
        later = sum(stage.epochs for stage in recipe.stages[self.stage + 1 :])
        share = math.floor(own * (self.stage_epoch + fitting) / (own + later))
        epochs = max(self.stage_epoch + 1, min(own, share))
        if epochs != self.epochs(recipe):
            course = _Cosine(recipe.schedule, self, self.epochs(recipe), 1)
            self.bend = (self.stage_epoch, course.passed(self.stage_epoch))
            self.stage_epochs = epochs

    def next_stage(self) -> None:
        """Go on to the next stage with fresh patience and rates."""
        self.stage += 1
        self.stage_epochs, self.bend = None, (0, 0.0)
        self.stage_epoch = self.stage_steps = self.bad_epochs = self.plateau_epochs = 0
        self.lr_factor, self.best_loss = 1.0, math.inf

    def _plateau(self, loss: float, recipe: Recipe) -> None:
        """Lower the rate as Keras' ReduceLROnPlateau does: never after an improvement."""
        schedule = recipe.schedule
        if schedule.kind != "plateau":
            return
        if loss < self.best_loss - 1e-4:
            self.best_loss, self.plateau_epochs = loss, 0
            return
        self.plateau_epochs += 1
        if self.plateau_epochs >= schedule.patience:
            base = recipe.optimizer.lr * recipe.stages[self.stage].lr_scale
            lowered = max(self.lr_factor * schedule.factor, schedule.min_lr / base)
            self.lr_factor = min(self.lr_factor, lowered)  # not up to a least rate above it
            self.plateau_epochs = 0


def score_of(entry: dict[str, Any], recipe: Recipe) -> float:
    """The monitored value, higher is better."""
    value = float(entry[recipe.monitor])
    return -value if recipe.monitor.endswith("loss") else value


def cpu_state(model: Classifier) -> State:
    """A copy of the weights in main memory."""
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def build_optimizer(
    model: Classifier, recipe: Recipe, stage: StageSection
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that learn in this stage."""
    section = recipe.optimizer
    rate = section.lr * stage.lr_scale
    pretrained = set(model.backbone.parameters())
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [  # the head, and whatever else is new, first
        {"params": [p for p in learning if p not in pretrained], "lr": rate},
        {
            "params": [p for p in learning if p in pretrained],
            "lr": rate * section.backbone_lr_scale,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if section.name == "sgd":
        return torch.optim.SGD(
            groups, lr=rate, momentum=0.9, nesterov=True, weight_decay=section.weight_decay
        )
    kind = torch.optim.AdamW if section.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, weight_decay=section.weight_decay)


def step_factors(recipe: Recipe, state: RunState, steps_per_epoch: int) -> Iterator[float] | None:
    """Learning-rate factor per step from here on for 'cosine' (with linear warm-up), else None."""
    if recipe.schedule.kind != "cosine":
        return None
    epochs = state.epochs(recipe)
    course = _Cosine(recipe.schedule, state, epochs, steps_per_epoch)
    first, total = state.stage_epoch * steps_per_epoch, max(epochs * steps_per_epoch, 1)
    return (course.factor(step) for step in range(first, total + steps_per_epoch))


def to_checkpoint(
    state: RunState, model: Classifier, optimizer: torch.optim.Optimizer, average: Classifier
) -> dict[str, Any]:
    """Everything that a resumed run needs, as tensors and plain values.

    `average` is the network that is validated: `model` itself where weights are not averaged.
    """
    weights = ("best_state", "stage_states")
    fields = {k: v for k, v in vars(state).items() if k not in weights}
    return {
        "course": copy.deepcopy(fields),
        "best": state.best_state,
        "stages": state.stage_states,
        "model": cpu_state(model),
        "average": None if average is model else cpu_state(average),
        "optimizer": optimizer.state_dict(),
    }


def from_checkpoint(saved: dict[str, Any]) -> RunState:
    """The inverse of `to_checkpoint` for the state."""
    return RunState(
        **saved["course"], best_state=saved["best"], stage_states=saved.get("stages", {})
    )


class _Cosine:
    """Half a cosine wave over a stage, after a linear warm-up.

    Where the number of epochs was changed, what was left of the wave is stretched or pressed into
    the new rest: the rate makes no jump, and is zero at the end.
    """

    def __init__(
        self, schedule: ScheduleSection, state: RunState, epochs: int, steps_per_epoch: int
    ) -> None:
        epoch, self._before = state.bend
        self._warmup = schedule.warmup_epochs * steps_per_epoch
        self._start = max(self._warmup, epoch * steps_per_epoch)
        self._total = max(epochs * steps_per_epoch, 1)

    def passed(self, step: int) -> float:
        """Share of the wave before a step, 0 to 1."""
        share = (step - self._start) / max(self._total - self._start, 1)
        return self._before + (1 - self._before) * min(max(share, 0.0), 1.0)

    def factor(self, step: int) -> float:
        if step < self._warmup:
            return (step + 1) / (self._warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * self.passed(step)))
