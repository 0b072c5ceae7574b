"""Every other method, and every other layer, through the grad-cam library: slower, by name."""

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from braintumor_ray.errors import UsageError
from braintumor_ray.models.classifier import Classifier
from braintumor_ray.models.tokens import as_map
from braintumor_ray.models.vision_libraries import import_grad_cam

METHODS = {
    "gradcam": "GradCAM",
    "gradcam_pp": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "elementwise": "GradCAMElementWise",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "shapleycam": "ShapleyCAM",
    "finercam": "FinerCAM",
    "kpcacam": "KPCA_CAM",
    "randomcam": "RandomCAM",
    # What notebooks compute under the name of Grad-CAM: kept to compare with, not to be trusted.
    "gradcam_abs": "GradCAM",
    "gradcam_loss": "GradCAM",
}
_DRAW_BARS = ("scorecam", "ablationcam")  # on stderr, a raw bar for each scan


class _Tapped(nn.Module):
    """The network with its target map passing through a module that can be hooked."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.tap = model, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to logits (B, k)."""
        features = self.model.features(images).clone()  # no view: the library detaches it in place
        return self.model.logits(self.tap(features))


def library_cams(
    model: Classifier,
    images: Tensor,
    classes: Sequence[int],
    method: str,
    layer: str | None = None,
) -> npt.NDArray[np.float32]:
    """Maps of the grad-cam library, upsampled and stretched to [0, 1] by it.

    Args:
        model: in eval mode; the library's hooks are removed again.
        images: normalized, (B, 3, S, S).
        classes: the class that each map explains.
        method: a key of `METHODS`.
        layer: dotted name of a module of the backbone; None: the last feature map.

    Returns:
        float32 (B, S, S) in [0, 1].

    Raises:
        UsageError: unknown method or layer, or classes that do not fit (the library itself would
            return zero maps without a word).
    """
    if method not in METHODS:
        raise UsageError(f"--method '{method}' is unknown; use {', '.join(METHODS)}")
    k = model.architecture.classes
    if len(classes) != len(images) or not all(0 <= c < k for c in classes):
        raise UsageError(f"classes {list(classes)} for {len(images)} images and {k} classes")
    if method == "shapleycam" and layer is not None and model.layout.kind != "map":
        raise UsageError(
            "--method shapleycam is known of layers of convolutional networks, and --layer "
            f"'{layer}' is of a network of {model.layout.kind}; leave --layer out"
        )
    library: Any = import_grad_cam()
    tapped = _Tapped(model).eval()
    target = tapped.tap if layer is None else _module(model, layer)
    targets = [_target(library, method, int(c)) for c in classes]
    method_class = _method_class(library, method)
    reshape = None  # the target map is a map already
    if layer is not None:
        reshape = partial(as_map, layout=model.layout)
    # The weights are frozen, so only a gradient asked of the input reaches the target map.
    taps = {"target_layers": [target], "reshape_transform": reshape}
    made = method_class(model=tapped, **taps)
    # Of attention, only the plain kernel has the second derivative that ShapleyCAM takes.
    plain = sdpa_kernel(SDPBackend.MATH)
    with made as cam, torch.enable_grad(), _without_bar(method), plain:
        maps = cam(input_tensor=images.clone().requires_grad_(), targets=targets)
    return np.asarray(maps, dtype=np.float32)


def _method_class(library: Any, method: str) -> Any:  # noqa: ANN401 - of the library
    found = getattr(library, METHODS[method])
    if method == "shapleycam":
        return _with_curvature(found)
    if method != "gradcam_abs":
        return found

    class AbsoluteGradCAM(found):  # type: ignore[misc, valid-type]
        """w_k = mean_ij |g|: channels against the class count as much as those for it."""

        def get_cam_weights(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401
            grads = named["grads"] if "grads" in named else args[-1]
            return np.abs(grads).mean(axis=(2, 3))

    return AbsoluteGradCAM


def _with_curvature(found: Any) -> Any:  # noqa: ANN401 - of the library
    class CurvedShapleyCAM(found):  # type: ignore[misc]
        """Also of a logit that is linear in the map, whose curvature is 0.

        Its gradient is constant, and autograd refuses to differentiate what depends on nothing.
        """

        def get_cam_weights(self, *args: Any) -> Any:  # noqa: ANN401
            *others, activations, grads = args
            return super().get_cam_weights(*others, activations, grads + 0 * activations)

    return CurvedShapleyCAM


def _target(library: Any, method: str, index: int) -> Callable[[Tensor], Tensor]:  # noqa: ANN401
    """What is differentiated of the logits (k,) of an image."""
    if method != "gradcam_loss":
        target: Callable[[Tensor], Tensor] = library.utils.model_targets.ClassifierOutputTarget(
            index
        )
        return target
    # The loss falls where the class rises: warm cells speak against the class.
    return lambda logits: functional.cross_entropy(
        logits[None], torch.tensor([index], device=logits.device)
    )


def _without_bar(method: str) -> AbstractContextManager[Any]:
    return redirect_stderr(io.StringIO()) if method in _DRAW_BARS else nullcontext()


def _module(model: Classifier, layer: str) -> nn.Module:
    try:
        return model.backbone.get_submodule(layer)
    except AttributeError as error:
        known = [name for name, _ in model.backbone.named_children()]
        raise UsageError(
            f"--layer '{layer}' is no module of {model.architecture.backbone}; it has "
            f"{', '.join(known)} and what is below them"
        ) from error
