"""From what a backbone ends in to a map, and back: tokens, channels last, or a map already.

Transformers end in tokens (B, N, C), some of them not of the picture (class and register tokens),
or in maps with channels last (B, h, w, C). CAM needs the map (B, C, h, w) and, where the pooling is
not the average over it, the way back into the backbone's own pooling.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from braintumor_ray.errors import UsageError

Kind = Literal["map", "channels last", "tokens"]
_LEAST_SIDE = 2  # cells of a grid of tokens: one token is no map


@dataclass(frozen=True)
class FeatureLayout:
    """How features of a backbone lie in memory.

    Attributes:
        kind: 'map' (B, C, h, w), 'channels last' (B, h, w, C) or 'tokens' (B, prefix + h * w, C).
        prefix: tokens before those of the picture, which are row by row.
    """

    kind: Kind = "map"
    prefix: int = 0

    def to_map(self, features: Tensor) -> Tensor:
        """Features as the backbone gives them to (B, C, h, w); shares their memory."""
        if self.kind == "map":
            return features
        if self.kind == "tokens":
            side = isqrt(features.shape[1] - self.prefix)
            features = features[:, self.prefix :]
            # Not `unflatten`: in an exported graph it would fix the number of scans.
            features = features.reshape(features.shape[0], side, side, features.shape[2])
        return features.permute(0, 3, 1, 2)

    def from_map(self, maps: Tensor) -> Tensor:
        """The inverse of `to_map`; tokens that are not of the picture are 0."""
        if self.kind == "map":
            return maps
        features = maps.permute(0, 2, 3, 1)
        if self.kind == "channels last":
            return features
        zeros = features.new_zeros(len(maps), self.prefix, maps.shape[1])
        return torch.cat((zeros, features.flatten(1, 2)), dim=1)


def find_layout(backbone: nn.Module, features: Tensor, name: str) -> FeatureLayout:
    """The layout of a backbone's last features.

    Args:
        backbone: says how many tokens are not of the picture.
        features: what it ends in, for a square picture.
        name: for messages.

    Raises:
        UsageError: there is no square map in them.
    """
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    channels = backbone.num_features
    if len(shape) == 4 and shape[1] == channels and not _is_channels_last(backbone):
        return FeatureLayout()
    if len(shape) == 4 and shape[3] == channels:
        return FeatureLayout("channels last")
    prefix = int(getattr(backbone, "num_prefix_tokens", None) or 0)
    if len(shape) == 3 and shape[2] == channels and _is_square(shape[1] - prefix):
        return FeatureLayout("tokens", prefix)
    found = f"features of shape {shape}" if shape else "several maps"
    raise UsageError(
        f"backbone '{name}' ends in {found}: no map (B, C, h, w) or square grid of tokens that CAM "
        "can explain; use another one, such as resnet50 or vit_small_patch16_224"
    )


def pools_prefix(backbone: nn.Module, layout: FeatureLayout, shape: tuple[int, int, int]) -> bool:
    """Whether a backbone's own pooling reads tokens that are not of the picture (a class token).

    Args:
        backbone: in eval mode.
        layout: of its features.
        shape: of the map (C, h, w).
    """
    if not layout.prefix:
        return False
    features = layout.from_map(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    other = features.clone()
    other[:, : layout.prefix] = 1.0
    pooled = [backbone.forward_head(f, pre_logits=True) for f in (features, other)]  # type: ignore[operator]
    return not torch.allclose(*pooled)


def as_map(activations: Tensor, layout: FeatureLayout) -> Tensor:
    """What any layer of a transformer gives as (B, C, h, w), for the grad-cam library.

    Args:
        activations: tokens, or a map of a square picture with channels first or last.
        layout: of the backbone's features.

    Raises:
        UsageError: there is no square map in them.
    """
    shape = tuple(activations.shape)
    if len(shape) == 4:
        # Two equal sides are those of the picture; with as many channels, as the backbone has them.
        last = shape[1] == shape[2] and (shape[2] != shape[3] or layout.kind == "channels last")
        return FeatureLayout("channels last" if last else "map").to_map(activations)
    if len(shape) == 3 and _is_square(shape[1] - layout.prefix):
        return FeatureLayout("tokens", layout.prefix).to_map(activations)
    raise UsageError(
        f"--layer gives values of shape {shape}, in which there is no square grid; choose a block "
        "or a norm of the backbone"
    )


def _is_square(tokens: int) -> bool:
    side = isqrt(max(tokens, 0))
    return side >= _LEAST_SIDE and side * side == tokens


def _is_channels_last(backbone: nn.Module) -> bool:
    declared: Any = getattr(backbone, "output_fmt", None)
    return str(getattr(declared, "value", declared)).endswith("NHWC")
