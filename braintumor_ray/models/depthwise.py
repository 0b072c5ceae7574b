"""Gradients of strided depthwise convolutions, quick in bfloat16 on CPUs.

oneDNN has no quick kernel for the input gradient of a depthwise convolution with a stride in
bfloat16: four such layers take a third of a training step of MobileNetV2. The same gradient is a
plain depthwise convolution, for which there is one: the output's gradient with zeros between its
rows and columns, convolved with the kernel turned by half (Dumoulin and Visin 2016, "A guide to
convolution arithmetic for deep learning", section 4).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

Pair = tuple[int, int]


def accelerate_depthwise(model: nn.Module) -> int:
    """Let strided depthwise convolutions of a network compute their gradients the quick way.

    What they compute stays the same, and so do the names of their weights. Under CPU autocast to
    bfloat16 only; elsewhere these layers do what they always did.

    Args:
        model: changed in place.

    Returns:
        How many layers it was.
    """
    found = [module for module in model.modules() if _is_strided_depthwise(module)]
    for module in found:
        module.__class__ = StridedDepthwise
    return len(found)


class StridedDepthwise(nn.Conv2d):
    """A depthwise `nn.Conv2d` with a stride and no bias, see `accelerate_depthwise`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        if not (x.is_cpu and torch.is_grad_enabled() and _autocasts_to_bf16()):
            return super().forward(x)
        y: Tensor = _Strided.apply(x.bfloat16(), self.weight.bfloat16(), self.stride, self.padding)
        return y


class _Strided(torch.autograd.Function):
    """The convolution itself, with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = _input_gradient(x, weight, gradient, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = conv2d_weight(
                x, weight.shape, gradient, ctx.stride, ctx.padding, 1, len(weight)
            )
        return of_input, of_weight, None, None


def _input_gradient(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: Pair, padding: Pair
) -> Tensor:
    kernel = weight.shape[2:]
    sides = [x.shape[2 + i] + 2 * padding[i] - kernel[i] + 1 for i in (0, 1)]  # of stride 1
    shape = (*x.shape[:2], *sides)
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    spread = torch.empty(shape, dtype=gradient.dtype, memory_format=layout).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    rest = [kernel[i] - 1 - padding[i] for i in (0, 1)]
    return functional.conv2d(spread, weight.flip(2, 3), None, 1, rest, 1, len(weight))


def _is_strided_depthwise(module: nn.Module) -> bool:
    """Exactly the plain layer, as it stands before a BatchNorm; not those that pad as 'same'."""
    return (
        type(module) is nn.Conv2d
        and module.groups == module.in_channels == module.out_channels
        and max(module.stride) > 1
        and module.bias is None
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and all(p < k for p, k in zip(module.padding, module.kernel_size, strict=True))
    )


def _autocasts_to_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
