"""Which layers learn in a stage. Frozen BatchNorm stays in eval mode."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from braintumor_ray.errors import UsageError
from braintumor_ray.models.classifier import Classifier

Trainable = Literal["all", "head"] | int | Sequence[str]


def set_trainable(model: Classifier, what: Trainable) -> int:
    """Let a part of the backbone and all that is not backbone learn; returns how many values do.

    Args:
        model: the network; changed in place.
        what: 'all'; 'head' (the backbone is frozen); a number: its last layers with parameters, in
            the order in which they are defined; or names of modules (a stage such as 'blocks.6', a
            layer) and patterns of parameter names ('blocks.[56].*', '*.bn3.*').

    Raises:
        UsageError: a name or pattern that fits nothing in the backbone, or more layers than it has.
    """
    chosen = _chosen_parameters(model, what)
    model.requires_grad_(True)  # head and neck
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(name in chosen)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _chosen_parameters(model: Classifier, what: Trainable) -> set[str]:
    names = [name for name, _ in model.backbone.named_parameters()]
    if isinstance(what, int):
        return _last_layers(model, names, what)
    if isinstance(what, str):
        return set(names) if what == "all" else set()
    chosen: set[str] = set()
    for wanted in what:
        found = {name for name in names if _fits(name, wanted)}
        if not found:
            raise UsageError(
                f"stages.train '{wanted}' names no layer of {model.architecture.backbone}; "
                f"layers begin with {', '.join(sorted({n.split('.')[0] for n in names}))}"
            )
        chosen |= found
    return chosen


def _last_layers(model: Classifier, names: list[str], count: int) -> set[str]:
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    if count > len(layers):
        raise UsageError(
            f"stages.train {count}: {model.architecture.backbone} has {len(layers)} layers with "
            "parameters; use 'all'"
        )
    last = set(layers[-count:])
    return {name for name in names if name.rpartition(".")[0] in last}


def train_mode(model: Classifier) -> None:
    """Training mode, but eval mode for everything in the backbone that is frozen.

    Frozen BatchNorm keeps its statistics, and frozen dropout (as in EfficientNet) drops nothing.
    """
    model.train()
    for module in model.backbone.modules():
        own = list(module.parameters(recurse=True))
        learns = any(p.requires_grad for p in own)
        bare = not own and not isinstance(module, _BatchNorm)  # dropout: frozen with the rest
        if not learns and not (bare and _any_trainable(model.backbone)):
            module.eval()


def backbone_is_frozen(model: Classifier) -> bool:
    """Whether no parameter of the backbone learns, so that its forward needs no gradients."""
    return not _any_trainable(model.backbone)


def _any_trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _fits(name: str, wanted: str) -> bool:
    """Whether a parameter is below the module, or fits the pattern, that was named."""
    return name == wanted or name.startswith(wanted + ".") or fnmatchcase(name, wanted)
