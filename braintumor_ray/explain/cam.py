"""Grad-CAM and its relatives from one forward pass, without going back through the backbone.

Notation: target map A (B, C, h, w), Z = h * w, logit y_c before softmax, g = dy_c / dA. What the
head needs decides how g is found; the caller never chooses:

1. linear: g = W_c / Z everywhere for average pooling, g = s W_c for log-sum-exp, where s is the
   softmax of the cells' evidence (closed form, both);
2. pooling + any head: differentiate the head with respect to the pooled vector only;
3. anything else: differentiate the head with respect to A.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braintumor_ray.errors import UsageError
from braintumor_ray.models.classifier import Classifier


@dataclass(frozen=True)
class ClassGradient:
    """Logits and the gradient of one logit per image.

    Attributes:
        logits: (B, k) float32.
        classes: (B,) int64, the class that each map explains.
        mean: (B, C) float32, average of A over positions.
        pooled: (B, C), the sum of g over positions; None where only `full` is known.
        full: gradient g (B, C, h, w); None where `pooled` and `shares` give it.
        shares: (B, h, w), g = pooled * shares; None: 1 / Z at every position.
    """

    logits: Tensor
    classes: Tensor
    mean: Tensor
    pooled: Tensor | None
    full: Tensor | None
    shares: Tensor | None = None


ChooseClass = Callable[[Tensor], Tensor]


def predicted_class(logits: Tensor) -> Tensor:
    """The class of the highest logit, (B, k) to (B,)."""
    return logits.argmax(dim=1)


def class_gradient(model: Classifier, features: Tensor, choose: ChooseClass) -> ClassGradient:
    """Logits of a target map and the gradient of the chosen logit with respect to it.

    Args:
        model: in eval mode; nothing is left on it (no hooks, no `.grad`).
        features: A (B, C, h, w), any float dtype; computed under no_grad.
        choose: logits (B, k) to class indices (B,).

    Raises:
        UsageError: `choose` gives a wrong number of classes or an index out of range.
    """
    features = features.detach().float()
    mean = features.mean(dim=(2, 3))
    weight = model.linear_weight()
    if weight is not None and model.averages:
        return _closed_form(model, mean, weight, choose)
    if weight is not None:
        return _log_sum_exp(model, features, mean, weight, choose)
    if model.pools:
        logits, classes, gradient = _differentiate(model.logits_from_pooled, mean, choose)
        return ClassGradient(logits, classes, mean, gradient, None)
    logits, classes, gradient = _differentiate(model.logits, features, choose)
    return ClassGradient(logits, classes, mean, None, gradient)


def _closed_form(
    model: Classifier, mean: Tensor, weight: Tensor, choose: ChooseClass
) -> ClassGradient:
    with torch.no_grad():
        logits = model.logits_from_pooled(mean)
        classes = _checked(choose(logits), logits)
    return ClassGradient(logits, classes, mean, weight[classes], None)


def _log_sum_exp(
    model: Classifier, features: Tensor, mean: Tensor, weight: Tensor, choose: ChooseClass
) -> ClassGradient:
    with torch.no_grad():
        evidence = model.evidence(features)
        assert evidence is not None
        logits = model.logits_from_evidence(evidence)
        classes = _checked(choose(logits), logits)
        chosen = evidence[torch.arange(len(classes), device=classes.device), classes]
        shares = chosen.flatten(1).softmax(dim=1).reshape(chosen.shape)
    return ClassGradient(logits, classes, mean, weight[classes], None, shares)


def _differentiate(
    head: Callable[[Tensor], Tensor], inputs: Tensor, choose: ChooseClass
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        # A tensor that was made in inference mode never records gradients; a copy of it does.
        leaf = inputs.clone() if inputs.is_inference() else inputs.detach()
        leaf.requires_grad_()
        logits = head(leaf)
        classes = _checked(choose(logits.detach()), logits)
        # One pass for all images: in eval mode a logit depends on its own image only.
        chosen = logits.gather(1, classes.unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(chosen, leaf)
    return logits.detach(), classes, gradient


def _checked(classes: Tensor, logits: Tensor) -> Tensor:
    count, k = logits.shape
    if classes.shape != (count,):
        raise UsageError(
            f"{tuple(classes.shape)} class indices for {count} images; give one per image"
        )
    if count and not (int(classes.min()) >= 0 and int(classes.max()) < k):
        raise UsageError(f"class indices {classes.tolist()} are not all in 0..{k - 1}")
    return classes


def grad_cam(features: Tensor, gradient: ClassGradient) -> Tensor:
    """Grad-CAM (arXiv 1610.02391): ReLU(sum_k w_k A_k), w_k = mean_ij g. Returns (B, h, w)."""
    if gradient.pooled is not None:
        return _weighted(features, gradient.pooled / _positions(features))
    assert gradient.full is not None
    return _weighted(features, gradient.full.mean(dim=(2, 3)))


def grad_cam_pp(features: Tensor, gradient: ClassGradient) -> Tensor:
    """Grad-CAM++ (arXiv 1710.11063, Eq. 19 with Y = exp(y_c)). Returns (B, h, w).

    alpha = g^2 / (2 g^2 + (sum_ab A_ab) g^3), 0 where g is 0; w_k = sum_ij alpha ReLU(g). The
    factor exp(y_c) is one positive scale per image and is left out. Where g is the same at every
    position this is relu(p) / (2 + p mean(A)) with p = Z g.
    """
    if gradient.pooled is not None and gradient.shares is None:
        p = gradient.pooled
        return _weighted(features, _safe_ratio(p.relu(), 2 + p * gradient.mean))
    g = _spread(features, gradient)
    total = _positions(features) * gradient.mean[:, :, None, None]
    return _weighted(features, _safe_ratio(g.relu(), 2 + total * g).sum(dim=(2, 3)))


def x_grad_cam(features: Tensor, gradient: ClassGradient) -> Tensor:
    """XGrad-CAM (arXiv 2008.02312): w_k = sum(g A) / sum(A). Returns (B, h, w)."""
    g = _spread(features, gradient)
    activations = features.float()
    weights = _safe_ratio((g * activations).sum(dim=(2, 3)), activations.sum(dim=(2, 3)))
    return _weighted(features, weights)


def hires_cam(features: Tensor, gradient: ClassGradient) -> Tensor:
    """HiResCAM (arXiv 2011.08891): ReLU(sum_k g A_k). Returns (B, h, w)."""
    return (_spread(features, gradient) * features.float()).sum(dim=1).relu()


def layer_cam(features: Tensor, gradient: ClassGradient) -> Tensor:
    """LayerCAM (Jiang et al. 2021): ReLU(sum_k ReLU(g) A_k). Returns (B, h, w)."""
    return (_spread(features, gradient).relu() * features.float()).sum(dim=1).relu()


METHODS: Mapping[str, Callable[[Tensor, ClassGradient], Tensor]] = {
    "gradcam": grad_cam,
    "gradcam_pp": grad_cam_pp,
    "xgradcam": x_grad_cam,
    "hirescam": hires_cam,
    "layercam": layer_cam,
}
SCORED_METHODS = ("gradcam", "gradcam_pp")


def cams(
    features: Tensor, gradient: ClassGradient, methods: Sequence[str] = SCORED_METHODS
) -> dict[str, Tensor]:
    """Raw maps (B, h, w) float32, not normalized, by method name.

    Raises:
        UsageError: a method that is not one of `METHODS`.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UsageError(f"CAM method '{unknown[0]}' is unknown; use {', '.join(METHODS)}")
    with torch.no_grad():
        return {name: METHODS[name](features.detach(), gradient) for name in methods}


def _positions(features: Tensor) -> int:
    return features.shape[2] * features.shape[3]


def _spread(features: Tensor, gradient: ClassGradient) -> Tensor:
    """The gradient at every position, (B, C, h, w) or (B, C, 1, 1) where it is the same."""
    if gradient.full is not None:
        return gradient.full
    assert gradient.pooled is not None
    if gradient.shares is not None:
        return gradient.pooled[:, :, None, None] * gradient.shares[:, None]
    return (gradient.pooled / _positions(features))[:, :, None, None]


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """ReLU(sum_k w_k A_k) in float32."""
    batch, channels, height, width = features.shape
    flat = features.float().reshape(batch, channels, height * width)
    # Not (weights * features).sum(): that would keep another (B, C, h, w) in memory.
    return torch.bmm(weights.unsqueeze(1), flat).reshape(batch, height, width).relu()


def _safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; 0 where the denominator is 0 (the formula has no value there)."""
    return (numerator / denominator).masked_fill(denominator == 0, 0)
