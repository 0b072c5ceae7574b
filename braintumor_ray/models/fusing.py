"""Convolutions as oneDNN runs them fastest on CPUs: activations inside, weights packed once.

An activation of its own reads and writes the whole map once more. oneDNN computes a ReLU or ReLU6
while it writes a convolution's output, with the same result. It also reorders the weights into
blocks that fit its registers, in every call, unless they come that way: a tenth of the time of a
batch of one to three scans. torch asks it for both only when it compiles a network, by the
operators that are called here.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from braintumor_ray.models.classifier import Classifier
from braintumor_ray.models.folding import is_close, pairs, replace, sample_of

Activation = tuple[str, list[float]]  # oneDNN's name of it, and its limits
_NONE: Activation = ("none", [])
_NAMES: dict[type[nn.Module], Activation] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class FusedConvolution(nn.Conv2d):
    """An `nn.Conv2d` and the activation that follows it, if any.

    Attributes:
        activation: see `Activation`.
    """

    activation: Activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), in the weights' dtype."""
        name, limits = self.activation
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(self.weight.dtype),
            self.weight,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            name,
            limits,
            "",
        )
        return y

    def pack(self, shape: list[int]) -> None:
        """Keep the weights in oneDNN's own order for inputs of a shape; others get slower."""
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight.detach(), self.padding, self.stride, self.dilation, self.groups, shape
        )
        del self.weight
        self.weight = packed  # no parameter: an opaque tensor, which only `forward` can read


@torch.no_grad()
def fuse_activations(model: Classifier) -> Classifier:
    """A copy whose convolutions are oneDNN's, with the ReLU or ReLU6 after them.

    As with `folding.fold_batch_norms`, pairs are seen in one forward pass, and that nothing else
    takes a convolution's output is seen from the features being the same afterwards.

    Args:
        model: in eval mode, on CPU.

    Returns:
        The copy, or a plain one where there is no oneDNN or the features would change.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return copy.deepcopy(model)
    fused, sample = copy.deepcopy(model), sample_of(model)
    found, before = pairs(fused, sample, lambda module: type(module) in _NAMES)
    followers = {each: activation for each, activation in found if _is_plain(each)}
    for convolution in filter(_is_plain, fused.modules()):
        follower = followers.get(cast(nn.Conv2d, convolution))
        convolution.__class__ = FusedConvolution
        fused_one = cast(FusedConvolution, convolution)
        fused_one.activation = _NAMES[type(follower)] if follower is not None else _NONE
    replace(fused, {activation: nn.Identity() for activation in followers.values()})
    return fused if is_close(before, fused.features(sample)) else copy.deepcopy(model)


@torch.no_grad()
def pack_weights(model: Classifier, *, bf16: bool) -> None:
    """Pack the weights of fused convolutions, in place: afterwards the network can only predict.

    Args:
        model: in its last dtype and memory format.
        bf16: it will run under autocast to bfloat16.
    """
    shapes: dict[FusedConvolution, list[int]] = {}

    def seen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[cast(FusedConvolution, module)] = list(inputs[0].shape)

    fused = [module for module in model.modules() if isinstance(module, FusedConvolution)]
    if not fused:
        return
    handles = [module.register_forward_pre_hook(seen) for module in fused]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        model.features(sample_of(model))
    for handle in handles:
        handle.remove()
    for convolution, shape in shapes.items():
        convolution.pack(shape)


def _is_plain(module: nn.Module) -> bool:
    """Whether it does what oneDNN's convolution does, no more and no less."""
    if type(module) is not nn.Conv2d:
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)
