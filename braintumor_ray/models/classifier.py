"""The network: a backbone whose last feature map is the CAM target, and a head."""

import math
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braintumor_ray.errors import UsageError
from braintumor_ray.models.heads import build_head
from braintumor_ray.models.neck import TopDownNeck, neck_levels
from braintumor_ray.models.small_cnn import Cnn3Conv, SmallCnn
from braintumor_ray.models.tokens import find_layout, pools_prefix
from braintumor_ray.models.vision_libraries import import_timm
from braintumor_ray.recipes.schema import Head, Neck, Pooling

SMALL = {"cnn-3conv": Cnn3Conv, "small-cnn": SmallCnn}


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build the network again.

    Attributes:
        backbone: a timm name, 'cnn-3conv' or 'small-cnn'.
        head: 'linear', 'mlp', 'attention' or 'flatten'.
        classes: number of classes k, at least 2.
        image_size: side of the square input, pixels.
        sigmoid: one output unit z for two classes; logits are then (-z/2, z/2), whose softmax
            is (1 - sigmoid(z), sigmoid(z)).
        neck: 'topdown' refines the last map by earlier stages, see `models.neck`.
        neck_stride, neck_channels, gate: of the refined map.
        pooling: how a linear head goes from cells to the picture, 'mean' or 'lse'.
    """

    backbone: str
    head: Head
    classes: int
    image_size: int
    hidden: int = 128
    dropout: float = 0.0
    sigmoid: bool = False
    neck: Neck = "none"
    neck_stride: int = 8
    neck_channels: int = 128
    gate: bool = False
    pooling: Pooling = "mean"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _check(architecture: Architecture) -> None:
    """Refuse parts that do not go together."""
    if architecture.sigmoid and architecture.classes != 2:
        raise UsageError(
            f"model.output 'sigmoid' is for 2 classes, there are {architecture.classes}; "
            "use softmax or auto"
        )
    if architecture.gate and architecture.neck == "none":
        raise UsageError(
            "model.gate is a part of the neck; set model.neck = 'topdown', or leave gate out"
        )
    if architecture.pooling == "lse" and (architecture.head != "linear" or architecture.sigmoid):
        raise UsageError(
            "model.pooling 'lse' is for head 'linear' with softmax; set model.head = 'linear' "
            "and model.output = 'softmax', or model.pooling = 'mean'"
        )


class Classifier(nn.Module):
    """`features` gives the target map A (B, C, h, w); `logits` takes it on to (B, k).

    Attributes:
        pools: the head sees nothing of A but its average over positions, so that gradients with
            respect to A are those with respect to the pooled vector, divided by h * w.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        _check(architecture)
        self.architecture = architecture
        name, size = architecture.backbone, architecture.image_size
        self.backbone = build_backbone(name, size)
        features = _last_features(self.backbone, size, name)
        self.layout = find_layout(self.backbone, features, name)
        self.map_shape = _shape_of(self.layout.to_map(features))
        self.neck: TopDownNeck | None = None
        self.levels: list[int] = []
        if architecture.neck != "none":
            if self.layout.kind != "map":
                raise UsageError(
                    f"model.neck '{architecture.neck}': backbone '{name}' ends in "
                    f"{self.layout.kind}; neck and gate need convolutional stages, so set "
                    "model.neck = 'none' and model.gate = false, or use one such as mobilenetv2_100"
                )
            levels = neck_levels(self.backbone, name, architecture.neck_stride)
            self.levels = [level.stage for level in levels]
            self.neck = TopDownNeck(
                self.map_shape[0], levels, architecture.neck_channels, architecture.gate
            )
            self.map_shape = (architecture.neck_channels, *self.map_size(size))
        units = 1 if architecture.sigmoid else architecture.classes
        self.averages = architecture.pooling == "mean"
        own = self._own_pooling() if self.averages and architecture.head != "flatten" else None
        self.pools = self.averages and architecture.head != "flatten" and own is None
        shape = self.map_shape if own is None else (own, *self.map_shape[1:])
        self.head = build_head(
            architecture.head, shape, units, architecture.hidden, architecture.dropout
        )

    def features(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, S, S) to the target map A (B, C, h, w)."""
        return self.features_and_gate(images)[0]

    def features_and_gate(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `features`, and the gate's logits (B, 1, h, w) where the neck has a gate."""
        return self.refine(*self.backbone_maps(images))

    def backbone_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The backbone's last map (B, C, h, w), and those that the neck takes, coarsest first."""
        if self.neck is None:
            features: Tensor = self.backbone.forward_features(images)  # type: ignore[operator]
            return self.layout.to_map(features), []
        last, stages = self.backbone.forward_intermediates(images, self.levels)  # type: ignore[operator]
        return last, stages[::-1]

    def refine(self, last: Tensor, finer: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What the neck, if there is one, makes of `backbone_maps`: A, and the gate's logits."""
        if self.neck is None:
            return last, None
        refined: tuple[Tensor, Tensor | None] = self.neck(last, finer)
        return refined

    @torch.no_grad()
    def map_size(self, side: int) -> tuple[int, int]:
        """(h, w) of the target map for a picture of another side, by its black one."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        device = next(self.parameters()).device
        height, width = self.features(torch.zeros(1, 3, side, side, device=device)).shape[2:]
        for module, training in modes:  # frozen layers stay in eval mode
            module.training = training
        return height, width

    def evidence(self, features: Tensor) -> Tensor | None:
        """W_c . A at each position, (B, k, h, w) as the head's weights; None for other heads.

        Its ReLU is the map of Grad-CAM but for a positive factor per class.
        """
        linear = self.linear
        if linear is None:
            return None
        weight = linear.weight
        with torch.autocast(features.device.type, enabled=False):  # small, and its sign matters
            cells = torch.einsum("kc,bchw->bkhw", weight, features.to(weight.dtype))
        return torch.cat((-cells, cells), dim=1) / 2 if self.architecture.sigmoid else cells

    def logits(self, features: Tensor) -> Tensor:
        """Target map A (B, C, h, w) to logits (B, k)."""
        if not self.averages:
            return self.logits_and_evidence(features)[0]
        if self.pools:
            return self.logits_from_pooled(features.mean(dim=(2, 3)))
        if self.architecture.head == "flatten":
            return self._as_logits(self.head(features))
        return self.logits_from_pooled(self._forward_head(features))

    def logits_and_evidence(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `logits` and `evidence`; in training with the same channels left out."""
        if self.averages:
            return self.logits(features), self.evidence(features)
        evidence = self.evidence(self._dropped(features))
        return self.logits_from_evidence(evidence), evidence

    def logits_from_evidence(self, evidence: Tensor | None) -> Tensor:
        """Evidence per cell (B, k, h, w) to logits (B, k), by log-sum-exp: log mean exp(e) + b."""
        linear = self.linear
        assert evidence is not None
        assert linear is not None
        cells = evidence.flatten(2)
        return torch.logsumexp(cells, dim=2) - math.log(cells.shape[2]) + linear.bias

    def _dropped(self, features: Tensor) -> Tensor:
        """Whole channels left out in training, as dropout before a pooled head does."""
        share = self.architecture.dropout if self.training else 0.0
        return functional.dropout2d(features, share, training=share > 0)

    def logits_from_pooled(self, pooled: Tensor) -> Tensor:
        """Pooled vector (B, C) to logits (B, k)."""
        return self._as_logits(self.head(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, S, S) to logits (B, k)."""
        return self.logits(self.features(images))

    @property
    def linear(self) -> nn.Linear | None:
        """The head's one linear layer over cells or their average, where there is nothing else."""
        head = self.head
        if isinstance(head, nn.Sequential) and [type(m) for m in head] == [nn.Dropout, nn.Linear]:
            head = head[1]
        found = self.pools or not self.averages
        return head if found and isinstance(head, nn.Linear) else None

    def linear_weight(self) -> Tensor | None:
        """dy/dp of a linear head as (k, C) float32, else None."""
        linear = self.linear
        if linear is None:
            return None
        weight = linear.weight.detach().float()
        return torch.cat((-weight, weight)) / 2 if self.architecture.sigmoid else weight

    def _forward_head(self, features: Tensor) -> Tensor:
        """Timm's own pooling, with what follows it, such as a norm."""
        native = self.layout.from_map(features)
        pooled: Tensor = self.backbone.forward_head(native, pre_logits=True)  # type: ignore[operator]
        return pooled

    @torch.no_grad()
    def _own_pooling(self) -> int | None:
        """Width of what the backbone pools to, where that is not the plain average of the map.

        A class token sees the map only through the last block, whose attention CAM does not
        explain: the average of the picture's tokens takes its place.
        """
        backbone, shape = self.backbone, self.map_shape
        if self.neck is not None or isinstance(backbone, tuple(SMALL.values())):
            return None
        training = backbone.training
        backbone.eval()
        features = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        pooled = self._forward_head(features)
        by_class_token = pools_prefix(backbone, self.layout, shape)
        backbone.train(training)
        mean = features.mean(dim=(2, 3))
        plain = pooled.shape == mean.shape and torch.allclose(pooled, mean, atol=1e-5)
        return None if plain or by_class_token else pooled.shape[1]

    def _as_logits(self, units: Tensor) -> Tensor:
        return torch.cat((-units, units), dim=1) / 2 if self.architecture.sigmoid else units


def build_backbone(name: str, size: int | None = None) -> nn.Module:
    """A backbone without classifier and with random weights.

    Args:
        name: 'cnn-3conv', 'small-cnn' or a timm name.
        size: side of the input, pixels, for those that are built for one; None: their own.

    Raises:
        UsageError: timm knows no such name (the nearest names are in the message), or has it for
            other sizes only.
    """
    if name in SMALL:
        return SMALL[name]()
    timm = _timm_that_knows(name)
    chosen = size_argument(name, size)
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **chosen)
    except (TypeError, ValueError, AssertionError) as error:
        raise _wrong_size(name, size, error) from error
    return backbone


def size_argument(name: str, size: int | None) -> dict[str, int]:
    """The argument of timm for the input side: nothing where a backbone takes any."""
    config = _timm_that_knows(name).get_pretrained_cfg(name)
    if size is None or config is None or not config.fixed_input_size:
        return {}
    return {} if config.input_size[-1] == size else {"img_size": size}


def input_size_of(name: str) -> int | None:
    """Side of the square that a backbone's pretrained weights expect, pixels; None: any.

    Raises:
        UsageError: timm knows no such name.
    """
    if name in SMALL:
        return None
    config = _timm_that_knows(name).get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config is not None else None


def _timm_that_knows(name: str) -> ModuleType:
    timm = import_timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_', 1)[0]}*")[:5]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UsageError(f"backbone '{name}' is neither in timm nor one of {sorted(SMALL)}{hint}")
    return timm


def normalization_of(backbone: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per RGB channel that the backbone's pretrained weights expect."""
    config = getattr(backbone, "pretrained_cfg", None)
    if not config:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(config["mean"]), tuple(config["std"])


@torch.no_grad()
def _last_features(backbone: nn.Module, size: int, name: str) -> Tensor:
    """What the backbone ends in, for one black picture."""
    training = backbone.training
    backbone.eval()
    try:
        features: Tensor = backbone.forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]
    except (RuntimeError, AssertionError) as error:
        raise _wrong_size(name, size, error) from error
    backbone.train(training)
    return features


def _wrong_size(name: str, size: int | None, error: Exception) -> UsageError:
    return UsageError(
        f"data.image_size {size}: backbone '{name}' does not take it ({error}); use "
        f"{input_size_of(name) or 'a larger one'}"
    )


def _shape_of(maps: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = maps.shape
    return channels, height, width


def normalize(images: Tensor, preprocessing: Any) -> Tensor:  # noqa: ANN401
    """Gray uint8 (B, S, S) to the network's float32 input (B, 3, S, S), channels last.

    Each of the 256 grays is normalized once and looked up: half the time of the arithmetic.
    """
    mean = torch.tensor(preprocessing.mean, device=images.device)
    std = torch.tensor(preprocessing.std, device=images.device)
    grays = torch.arange(256, dtype=torch.float32, device=images.device).unsqueeze(1)
    table = grays * (1 / (255 * std)) - mean / std
    return functional.embedding(images.int(), table).permute(0, 3, 1, 2)
