"""Which recipe fits into a time, from a short measurement on this machine."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from braintumor_ray.models.depthwise import accelerate_depthwise
from braintumor_ray.models.device import use_bf16
from braintumor_ray.models.freezing import set_trainable, train_mode
from braintumor_ray.predict.views import NUMBER_OF_VIEWS
from braintumor_ray.progress import duration
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.training.augment import Augmenter, augment_batch
from braintumor_ray.training.loop import Batch, StepSettings, TrainableNetwork, train_epoch
from braintumor_ray.training.recipe_network import architecture_of, network_of, preprocessing_of
from braintumor_ray.training.stages import build_optimizer

PRETRAINED, FROM_SCRATCH = "best", "demo"
LEAST_EPOCHS = 4  # fewer teach a pretrained network next to nothing
BATCHES = 3  # measured after one to warm up
MARGIN = 1.2  # for checkpoints, and for the guidance that is not measured
START_S = 20.0  # until workers train, in a Ray that has to start
STEP_S = 20.0  # each of the three commands after training: its start, its figures and pages
MAPS = 2.0  # prediction with maps, of what it is without


@dataclass(frozen=True)
class Speed:
    """Seconds that a scan costs with all cores, or on the GPU.

    Attributes:
        train: in an epoch of training, augmentation included.
        predict: through the network once.
    """

    train: float
    predict: float


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe, and the time that it gets.

    Attributes:
        recipe: its name.
        epochs: expected, by what a few batches took.
        own_epochs: the recipe's own: the most.
        train_s: expected seconds of `train`, which times its epochs and trains as many as fit.
        after_s: expected seconds of scoring, evaluation and worklist.
        fits: whether the time is enough for the fewest useful epochs.
    """

    recipe: str
    epochs: int
    own_epochs: int
    train_s: float
    after_s: float
    fits: bool

    def minutes(self, seconds: float) -> float:
        """For `train --minutes`, so that it and all that follows take so many seconds."""
        left = seconds - self.after_s
        return round((left if self.fits else max(left, self.train_s)) / 60, 2)

    def sentence(self) -> str:
        """What was chosen, in one line."""
        text = (
            f"plan: recipe '{self.recipe}', {duration(self.train_s)} of training (about "
            f"{self.epochs} of its {self.own_epochs} epochs), {duration(self.after_s)} for what "
            "follows"
        )
        return text if self.fits else f"{text}; fewer would teach nothing: this takes longer"


Measure = Callable[[Recipe, int], Speed]


def plan_training(
    counts: Mapping[str, int],
    positive: Collection[str],
    seconds: float,
    *,
    reading_s: float,
    pretrained: bool,
    measure: Measure | None = None,
) -> TrainingPlan:
    """The strongest recipe of which enough epochs fit.

    Args:
        counts: scans by class.
        positive: the classes with a tumor.
        seconds: for training, scoring, evaluation and worklist.
        reading_s: seconds that reading all scans once takes.
        pretrained: weights for the strong recipe can be had; it is not worth much without.
        measure: makes the `Speed` of a recipe for so many classes; for tests.
    """
    names = (PRETRAINED, FROM_SCRATCH) if pretrained else (FROM_SCRATCH,)
    for name in names:
        recipe = load_recipe(name)
        speed = (measure or measure_speed)(recipe, len(counts))
        plan = _fitted(recipe, counts, positive, seconds, reading_s, speed)
        if plan.fits:
            break
    return plan


def _fitted(
    recipe: Recipe,
    counts: Mapping[str, int],
    positive: Collection[str],
    seconds: float,
    reading_s: float,
    speed: Speed,
) -> TrainingPlan:
    shares, (stage,) = recipe.data.fractions, recipe.stages
    scans = sum(counts.values())
    shown = sum(n * (1 if c in positive else recipe.lesions.repeat) for c, n in counts.items())
    epoch = MARGIN * (shares["train"] * shown * speed.train + shares["val"] * scans * speed.predict)
    views = 1 - shares["val"] + (1 + NUMBER_OF_VIEWS) * shares["val"]
    around = START_S + reading_s + views * scans * speed.predict  # decoding before, tuning after
    after = reading_s + (1 + shares["test"]) * scans * MAPS * speed.predict + 3 * STEP_S
    room = int((seconds - after - around) / epoch)
    epochs = min(max(room, LEAST_EPOCHS), stage.epochs)
    train = min(max(seconds - after, around + LEAST_EPOCHS * epoch), around + epochs * epoch)
    return TrainingPlan(recipe.name, epochs, stage.epochs, train, after, room >= LEAST_EPOCHS)


def measure_speed(recipe: Recipe, classes: int) -> Speed:
    """Train a few batches of noise, in this process, on all cores or on the GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network_of(architecture_of(recipe, classes), recipe)
    preprocessing = preprocessing_of(model, recipe)
    if device.type == "cpu":
        accelerate_depthwise(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = StepSettings(
        preprocessing,
        torch.ones(classes, device=device),
        bf16=use_bf16(device, recipe.precision),
    )
    set_trainable(model, recipe.stages[-1].train)
    optimizer = build_optimizer(model, recipe, recipe.stages[-1])
    train_mode(model)
    network = TrainableNetwork(model)

    def train(number: int) -> None:
        batches = (_batch(recipe, seed, classes, device) for seed in range(number))
        train_epoch(network, optimizer, batches, settings)

    def predict(number: int) -> None:
        with torch.inference_mode(), settings.autocast():
            for _ in range(number):
                model(torch.rand(shape, device=device)).sum().item()

    shape = (recipe.data.batch_size, 3, recipe.data.image_size, recipe.data.image_size)
    trained = _seconds(train)
    model.eval()
    scans = BATCHES * recipe.data.batch_size
    return Speed(trained / scans, _seconds(predict) / scans)


def _batch(recipe: Recipe, seed: int, classes: int, device: Any) -> Batch:  # noqa: ANN401 - torch's
    """Noise of a batch's size, changed as scans are: uint8 (B, S, S), int64 (B,)."""
    size, number = recipe.data.image_size, recipe.data.batch_size
    noise = np.random.default_rng(seed).integers(0, 256, (number, size, size), np.uint8)
    changed = augment_batch(noise, np.arange(number), Augmenter(recipe.augment, seed, 0))
    labels = torch.arange(number) % classes
    return torch.from_numpy(changed).to(device), labels.to(device)


def _seconds(work: Callable[[int], None]) -> float:
    work(1)
    started = time.perf_counter()
    work(BATCHES)
    return time.perf_counter() - started
