"""The network that a recipe builds."""

from dataclasses import replace

import torch

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import UsageError
from braintumor_ray.models.classifier import Architecture, Classifier, normalization_of
from braintumor_ray.models.freezing import set_trainable
from braintumor_ray.recipes.schema import Recipe, StageSection


def architecture_of(recipe: Recipe, k: int) -> Architecture:
    """What a recipe builds for `k` classes."""
    section = recipe.model
    automatic = section.output == "auto" and k == 2 and section.pooling == "mean"
    sigmoid = section.output == "sigmoid" or automatic
    return Architecture(
        section.backbone,
        section.head,
        k,
        recipe.data.image_size,
        section.hidden,
        section.dropout,
        sigmoid,
        section.neck,
        section.neck_stride,
        section.neck_channels,
        section.gate,
        section.pooling,
    )


def network_of(architecture: Architecture, recipe: Recipe) -> Classifier:
    """The network with the recipe's own random weights.

    Raises:
        UsageError: a stage names a layer that it does not have, or pictures of a size that it does
            not take.
    """
    torch.manual_seed(recipe.seed)
    model = Classifier(architecture)
    for stage in recipe.stages:
        set_trainable(model, stage.train)  # an unknown layer is found now, not after stage one
        _check_size(model, stage)
    return model


@torch.no_grad()
def _check_size(model: Classifier, stage: StageSection) -> None:
    """Let the network see a black picture of the stage's own size, where it has one."""
    if stage.image_size is None:
        return
    size = model.architecture.image_size
    try:
        model.eval()(torch.zeros(1, 3, stage.image_size, stage.image_size))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"stages '{stage.name}' image_size {stage.image_size}: the network is built for "
            f"data.image_size {size} and takes no other ({error}); leave it out"
        ) from error
    model.train()


def preprocessing_of(model: Classifier, recipe: Recipe) -> Preprocessing:
    """How pixels reach the network."""
    unit = unit_preprocessing(recipe)
    if recipe.model.normalization == "unit":
        return unit
    mean, std = normalization_of(model.backbone)
    return replace(unit, mean=mean, std=std)  # type: ignore[arg-type]


def unit_preprocessing(recipe: Recipe) -> Preprocessing:
    """The square that the recipe shows, without a network's normalization: pixels in [0, 1]."""
    data = recipe.data
    return Preprocessing(
        data.image_size, data.interpolation, (0.0,) * 3, (1.0,) * 3, data.crop, data.intensity
    )
