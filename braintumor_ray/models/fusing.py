"""Activations computed by the convolutions before them, on CPUs.

An activation of its own reads and writes the whole map once more. oneDNN computes a ReLU or ReLU6
while it writes a convolution's output, with the same result. torch asks it to only when it compiles
a network, by the operator that is called here.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from braintumor_ray.models.classifier import Classifier
from braintumor_ray.models.folding import is_close, pairs, replace, sample_of

_NAMES: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class FusedConvolution(nn.Conv2d):
    """An `nn.Conv2d` and the activation that follows it.

    Attributes:
        activation: oneDNN's name of it, and its limits.
    """

    activation: tuple[str, list[float]]

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
        convolution.__class__ = FusedConvolution
        cast(FusedConvolution, convolution).activation = _NAMES[type(activation)]
    replace(fused, {activation: nn.Identity() for _, activation in found})
    return fused if is_close(before, fused.features(sample)) else copy.deepcopy(model)


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it does what oneDNN's convolution does, no more and no less."""
    by_numbers = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return type(convolution) is nn.Conv2d and by_numbers
