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
    """A copy whose convolutions compute the ReLU or ReLU6 after them.

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
    found = [(each, activation) for each, activation in found if _is_plain(each)]
    for convolution, activation in found:
        _fuse(convolution, _NAMES[type(activation)])
    replace(fused, {activation: nn.Identity() for _, activation in found})
    return fused if is_close(before, fused.features(sample)) else copy.deepcopy(model)


@torch.no_grad()
def pack_weights(model: Classifier, *, bf16: bool) -> None:
    """Pack the weights of convolutions, in place: no gradient goes through them any more.

    Only of those that the features need: maps of some networks need the gradient of their head.
    Where autocast would still cast weights in each call, nothing changes.

    Args:
        model: in its last dtype and memory format.
        bf16: it will run under autocast to bfloat16.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    shapes: dict[nn.Conv2d, list[int]] = {}

    def seen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[cast(nn.Conv2d, module)] = list(inputs[0].shape)

    found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    handles = [convolution.register_forward_pre_hook(seen) for convolution in found]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        model.features(sample_of(model))
    for handle in handles:
        handle.remove()
    dtype = torch.bfloat16 if bf16 else torch.float32
    for convolution, shape in shapes.items():
        if _is_plain(convolution) and convolution.weight.dtype == dtype:
            _fuse(convolution, _NONE)
        if isinstance(convolution, FusedConvolution):
            convolution.pack(shape)


def _fuse(convolution: nn.Conv2d, activation: Activation) -> None:
    convolution.__class__ = FusedConvolution
    cast(FusedConvolution, convolution).activation = activation


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it does what oneDNN's convolution does, no more and no less."""
    by_numbers = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return type(convolution) is nn.Conv2d and by_numbers
