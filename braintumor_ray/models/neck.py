"""A light top-down neck: the last map, refined by earlier and finer ones.

Feature pyramid (Lin et al. 2017, arXiv 1612.03144) with one output: a cell of the last map of most
networks covers 2% of the picture, about as much as a tumor does, which is too coarse to point at
one. Keeping the stride small inside the backbone (dilation) costs several times as much.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from braintumor_ray.errors import UsageError


class Level(NamedTuple):
    """A stage of a backbone whose output the neck takes.

    Attributes:
        stage: its number, as `forward_intermediates` of timm counts them.
        channels: of its output.
        stride: pixels of the input per cell.
    """

    stage: int
    channels: int
    stride: int


GATE_BIAS = -3.0  # nearly shut at the start: most cells show no tumor


class TopDownNeck(nn.Module):
    """Maps of several strides, finest last, to one map of the finest stride, >= 0.

    With a gate the map of each cell is multiplied by sigmoid(z), z a 1x1 convolution of it. Where
    the gate is shut, no class finds evidence and no heatmap shows any. The gated map is the target
    map of all CAM methods: their formulas stay as they are.

    Args:
        last: channels of the backbone's last map.
        levels: the finer stages, coarsest first.
        channels: of the result.
        gate: whether there is one.
    """

    def __init__(
        self, last: int, levels: Sequence[Level], channels: int, gate: bool = False
    ) -> None:
        super().__init__()
        self.top = _projection(last, channels)
        self.lateral = nn.ModuleList(_projection(level.channels, channels) for level in levels)
        self.smooth = nn.ModuleList(_separable(channels) for _ in levels)
        self.gate: nn.Conv2d | None = None
        if gate:
            self.gate = nn.Conv2d(channels, 1, 1)
            self.set_gate(GATE_BIAS)

    def set_gate(self, bias: float) -> None:
        """Where the gate of an untrained neck begins: its logit in every cell, nearly."""
        if self.gate is not None:
            nn.init.constant_(self.gate.bias, bias)  # type: ignore[arg-type]

    def forward(self, last: Tensor, finer: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Refine a map.

        Args:
            last: the backbone's last map (B, C, h, w).
            finer: maps of the stages, coarsest first.

        Returns:
            (B, channels, H, W) of the finest stage, and the gate's logits (B, 1, H, W).
        """
        merged = self.top(last)
        for lateral, smooth, stage in zip(self.lateral, self.smooth, finer, strict=True):
            size = (stage.shape[2], stage.shape[3])
            coarse = functional.interpolate(merged, size, mode="bilinear", align_corners=False)
            merged = smooth(functional.relu6(coarse + lateral(stage)))
        if self.gate is None:
            return merged, None
        opening = self.gate(merged)
        return merged * torch.sigmoid(opening), opening


def neck_levels(backbone: nn.Module, name: str, stride: int) -> list[Level]:
    """The stages that a neck of some stride takes, coarsest first.

    Raises:
        UsageError: the backbone does not give its stages' maps, or none has that stride.
    """
    info = getattr(backbone, "feature_info", None)
    if info is None or not hasattr(backbone, "forward_intermediates"):
        raise UsageError(
            f"model.neck 'topdown': backbone '{name}' does not give the maps of its stages; "
            "use model.neck = 'none', or a timm backbone such as mobilenetv2_100"
        )
    stages = [
        Level(number, int(stage["num_chs"]), int(stage["reduction"]))
        for number, stage in enumerate(info)
    ]
    last = max(level.stride for level in stages)
    wanted = {level.stride: level for level in stages if stride <= level.stride < last}
    if stride not in wanted:
        known = sorted({level.stride for level in stages if level.stride < last})
        raise UsageError(
            f"model.neck_stride {stride}: backbone '{name}' has stages of stride "
            f"{', '.join(map(str, known))}; choose one of them"
        )
    return [wanted[key] for key in sorted(wanted, reverse=True)]


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _separable(channels: int) -> nn.Sequential:
    """A depthwise separable 3x3 convolution that ends in a ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
