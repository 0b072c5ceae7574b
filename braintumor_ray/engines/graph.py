"""The explained network as one graph of forward operations: it can be exported.

Autograd does not export. The gradient of a class's logit with respect to the target map is
therefore written out. Every head but a convolutional one is two affine layers with a ReLU between
(a linear head has only the second; attention over one token and BatchNorm are affine), so that
dy_c / dp = (V_c * [h > 0]) U for y = V relu(h) + b and h = U p + a.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.cam import ClassGradient, grad_cam, grad_cam_pp
from braintumor_ray.models.classifier import Classifier
from braintumor_ray.models.folding import fold_batch_norms
from braintumor_ray.models.heads import AttentionHead, FlattenHead, MlpHead

OUTPUTS = ("probabilities", "logits", "predicted_class", "gradcam", "gradcam_pp", "pooled")
ALL_CLASSES = ("gradcam_all", "gradcam_pp_all")
Maps = tuple[Tensor, Tensor]
MapsOf = Callable[[Tensor], Maps]  # class indices (B,) to Grad-CAM and Grad-CAM++, (B, h, w) each


class Normalized(nn.Module):
    """Gray uint8 (B, S, S) to the target map (B, C, h, w) float32, normalization included.

    Args:
        model: in eval mode, on CPU; a copy with folded BatchNorms is taken.
        preprocessing: mean and std of the network's input.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Classifier, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = fold_batch_norms(model)
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (mean / std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, S, S) to (B, C, h, w)."""
        return self.network.features(images.unsqueeze(1).float() * self.scale - self.shift)


class ExplainedGraph(nn.Module):
    """uint8 (B, S, S) to the tensors that `OUTPUTS` names, then those of `ALL_CLASSES`.

    `probabilities` (after temperature) and `logits` float32 (B, k), `predicted_class` int64 (B,),
    raw maps of that class float32 (B, h, w), `pooled` float32 (B, C), the mean of the target map;
    raw maps of every class float32 (B, k, h, w).

    Args:
        model: in eval mode, on CPU; it is not changed.
        preprocessing: of its bundle.
        temperature: of its bundle.
        all_classes: whether the maps of every class are outputs, too.

    Raises:
        UsageError: the head's gradient is not known as forward operations.
    """

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        temperature: float,
        *,
        all_classes: bool = False,
    ) -> None:
        super().__init__()
        self.head = explained_head(model)
        self.features = Normalized(model, preprocessing)
        self.classes = model.architecture.classes
        self.temperature = temperature
        self.all_classes = all_classes

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return OUTPUTS + (ALL_CLASSES if self.all_classes else ())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        features = self.features(images)
        mean = features.mean(dim=(2, 3))
        logits, maps_of = self.head(features, mean)
        predicted = logits.argmax(dim=1)
        probabilities = (logits / self.temperature).softmax(dim=1)
        found = (probabilities, logits, predicted, *maps_of(predicted), mean)
        if not self.all_classes:
            return found
        each = [maps_of(torch.zeros_like(predicted) + c) for c in range(self.classes)]
        return (*found, *(torch.stack(maps, dim=1) for maps in zip(*each, strict=True)))


class Affine(NamedTuple):
    """x to weight x + bias, in float64 until the network is built: (m, n) and (m,)."""

    weight: Tensor
    bias: Tensor

    def after(self, inner: "Affine") -> "Affine":
        """First `inner`, then this one."""
        return Affine(self.weight @ inner.weight, self.weight @ inner.bias + self.bias)


class DenseHead(nn.Module):
    """The head over the pooled vector: affine layers `hidden` (may be missing) and `out`.

    Args:
        layers: one or two.
    """

    def __init__(self, layers: list[Affine]) -> None:
        super().__init__()
        self.hidden = _linear(layers[0]) if len(layers) > 1 else None
        self.out = _linear(layers[-1])

    def forward(self, features: Tensor, mean: Tensor) -> tuple[Tensor, MapsOf]:
        """Target map (B, C, h, w) and its mean (B, C) to logits (B, k) and the maps by class."""
        logits, gradient_of = self.scores(mean)

        def maps_of(classes: Tensor) -> Maps:
            gradient = ClassGradient(logits, classes, mean, gradient_of(classes), None)
            return grad_cam(features, gradient), grad_cam_pp(features, gradient)

        return logits, maps_of

    def scores(self, vector: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Vector (B, n) to logits (B, k), and class indices (B,) to gradients (B, n)."""
        hidden, out = self.hidden, self.out
        if hidden is None:
            return out(vector), lambda classes: out.weight[classes]
        before = hidden(vector)
        active = (before > 0).to(before.dtype)
        return out(before.relu()), lambda classes: (out.weight[classes] * active) @ hidden.weight


class LogSumExpHead(nn.Module):
    """A linear head over cells, joined by log-sum-exp."""

    def __init__(self, layer: Affine) -> None:
        super().__init__()
        self.out = _linear(layer)

    def forward(self, features: Tensor, mean: Tensor) -> tuple[Tensor, MapsOf]:
        """As `DenseHead`."""
        weight, bias = self.out.weight, self.out.bias
        cells = functional.conv2d(features, weight[:, :, None, None])
        # log mean exp = log-sum-exp - log(number of cells); written by hand: not every runtime
        # has an operation for it.
        flat = cells.flatten(2)
        top = flat.amax(dim=2, keepdim=True)
        logits = (flat - top).exp().mean(dim=2).log() + top.squeeze(2) + bias

        def maps_of(classes: Tensor) -> Maps:
            chosen = flat.gather(1, classes.view(-1, 1, 1).expand(-1, 1, flat.shape[2]))
            shares = chosen.squeeze(1).softmax(dim=1).reshape(cells[:, 0].shape)
            gradient = ClassGradient(logits, classes, mean, weight[classes], None, shares)
            return grad_cam(features, gradient), grad_cam_pp(features, gradient)

        return logits, maps_of


class FlatHead(nn.Module):
    """2x2 max pooling, then dense layers over all that is left.

    Each window of the pooling gives its gradient to one of its four cells. Which one does not
    matter to Grad-CAM and Grad-CAM++: both add up over the positions, and where g is 0 nothing is
    added.
    """

    def __init__(self, layers: list[Affine]) -> None:
        super().__init__()
        self.dense = DenseHead(layers)

    def forward(self, features: Tensor, mean: Tensor) -> tuple[Tensor, MapsOf]:
        """As `DenseHead`."""
        windows = functional.max_pool2d(features, 2)
        logits, gradient_of = self.dense.scores(windows.flatten(1))

        def maps_of(classes: Tensor) -> Maps:
            g = gradient_of(classes).reshape(windows.shape)
            pooled = ClassGradient(logits, classes, mean, g.sum(dim=(2, 3)), None)
            full = ClassGradient(logits, classes, mean, None, g)
            return grad_cam(features, pooled), grad_cam_pp(features, full)

        return logits, maps_of


def explained_head(model: Classifier) -> nn.Module:
    """The head of a network with its gradient written out.

    Raises:
        UsageError: it is not known how.
    """
    architecture, head = model.architecture, model.head
    linear = model.linear
    units = [_affine(linear)] if linear is not None else _layers(head)
    if units is None or not (linear or model.pools or isinstance(head, FlattenHead)):
        raise UsageError(
            f"head '{architecture.head}' behind backbone '{architecture.backbone}' cannot be "
            "exported: its gradient is not known as forward operations (heads over plain average "
            "or log-sum-exp pooling and flattening heads are); use the torch engine"
        )
    if architecture.sigmoid:  # one unit z to the logits (-z/2, z/2)
        both = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
        units[-1] = Affine(both, torch.zeros(2, dtype=torch.float64)).after(units[-1])
    if isinstance(head, FlattenHead):
        return FlatHead(units)
    return DenseHead(units) if model.averages else LogSumExpHead(units[-1])


def _layers(head: nn.Module) -> list[Affine] | None:
    """The affine layers of a head, with a ReLU between two; None for one of another kind."""
    if isinstance(head, MlpHead | FlattenHead):
        return [_affine(layer) for layer in head if isinstance(layer, nn.Linear)]
    if isinstance(head, AttentionHead):
        _, first_norm, narrow, _, _, second_norm, last = head.classify
        hidden = _affine(narrow).after(_affine(first_norm)).after(_attention(head.attention))
        return [hidden.after(_affine(head.project)), _affine(last).after(_affine(second_norm))]
    return None


def _affine(layer: nn.Module) -> Affine:
    """A linear layer, or a BatchNorm in eval mode."""
    if isinstance(layer, nn.Linear):
        return Affine(layer.weight.detach().double(), layer.bias.detach().double())
    assert isinstance(layer, nn.BatchNorm1d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = layer.weight.detach().double() / (layer.running_var.double() + layer.eps).sqrt()
    shift = layer.bias.detach().double() - layer.running_mean.double() * scale
    return Affine(torch.diag(scale), shift)


def _attention(layer: nn.MultiheadAttention) -> Affine:
    """Self-attention over one token: every attention weight is 1, so that only values pass."""
    assert layer.in_proj_weight is not None
    width = layer.embed_dim
    weight, bias = (
        t.detach().double()[2 * width :] for t in (layer.in_proj_weight, layer.in_proj_bias)
    )
    return _affine(layer.out_proj).after(Affine(weight, bias))


def _linear(affine: Affine) -> nn.Linear:
    made = nn.Linear(affine.weight.shape[1], affine.weight.shape[0])
    made.weight.data, made.bias.data = affine.weight.float(), affine.bias.float()
    return made.requires_grad_(False)
