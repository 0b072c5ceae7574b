"""Which layers learn in a stage. Frozen BatchNorm stays in eval mode."""

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from braintumor_ray.errors import UsageError
from braintumor_ray.models.classifier import Classifier

Trainable = Literal["all", "head"] | Sequence[str]


def set_trainable(model: Classifier, what: Trainable) -> int:
    """Let the head and the named part of the backbone learn; returns how many values do.

    Args:
        model: the network; changed in place.
        what: 'all', 'head' (the backbone is frozen) or prefixes of module names in the backbone.

    Raises:
        UsageError: a prefix that names nothing in the backbone.
    """
    names = [name for name, _ in model.backbone.named_parameters()]
    if not isinstance(what, str):
        for prefix in what:
            if not any(_below(name, prefix) for name in names):
                raise UsageError(
                    f"stages.train '{prefix}' names no layer of {model.architecture.backbone}; "
                    f"layers begin with {', '.join(sorted({n.split('.')[0] for n in names}))}"
                )
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(_chosen(name, what))
    for parameter in model.head.parameters():
        parameter.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


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


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _chosen(name: str, what: Trainable) -> bool:
    if isinstance(what, str):
        return what == "all"
    return any(_below(name, prefix) for prefix in what)
