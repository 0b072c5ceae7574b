"""Where the cells of a map lie in the picture, from the network's own strides and paddings.

With symmetric padding each stride of 2 moves the center of a cell by half a pixel of its input:
cell j of a plain network looks at pixel 32 j, not at 32 j + 15.5, where maps are usually drawn.
Keras-style 'same' padding moves it the other way.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.models.classifier import Classifier
from braintumor_ray.models.tokens import as_map

_CLOSE = 0.01  # of a cell: not worth resampling
_FADING = 0.1  # of a kernel's weights per step from its center, while gradients are looked at
_PROBES = 4  # random inputs, and random directions of the features, that are averaged
_MAP_DIMENSIONS = 4


class Axis(NamedTuple):
    """Centers of cells along an axis: cell j at pixel `offset + stride * j`, the first pixel 0."""

    offset: float
    stride: float

    def windowed(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> "Axis":
        """After a convolution or a pooling: a cell's center is that of its window."""
        center = (kernel - 1) * dilation / 2 - padding
        return Axis(self.offset + self.stride * center, self.stride * stride)

    def resized(self, cells: int, wanted: int) -> "Axis":
        """After interpolation from `cells` to `wanted` cells, corners not aligned."""
        share = cells / wanted
        return Axis(self.offset + self.stride * (share - 1) / 2, self.stride * share)

    def covered(self, size: int, cells: int) -> tuple[float, float]:
        """Where the first cell begins and the last one ends, in fractions of `size` pixels."""
        start = self.offset + 0.5 - self.stride / 2
        return start / size, (start + self.stride * cells) / size


class Geometry(NamedTuple):
    """Centers of the cells of a map in the network's input."""

    rows: Axis
    columns: Axis

    def covered(self, size: int, shape: tuple[int, int]) -> Box:
        """The part of a picture of side `size` that the cells (h, w) of the map cover."""
        top, bottom = self.rows.covered(size, shape[0])
        left, right = self.columns.covered(size, shape[1])
        return Box(left, top, right, bottom)

    def center(self, row: int, column: int) -> tuple[float, float]:
        """Row and column, in pixels, at which a cell looks."""
        rows, columns = self
        return rows.offset + rows.stride * row, columns.offset + columns.stride * column


PIXELS = Geometry(Axis(0.0, 1.0), Axis(0.0, 1.0))


def standard_geometry(size: int, shape: tuple[int, int]) -> Geometry:
    """Cells (h, w) that divide a picture of side `size` evenly."""
    return Geometry(*(PIXELS.rows.resized(size, cells) for cells in shape))


def find_geometry(model: Classifier) -> Geometry | None:
    """The geometry of a network's target map: derived from its layers, confirmed by its gradients.

    Args:
        model: in eval mode, on CPU; it is not changed.

    Returns:
        None where maps are to be drawn as usual: the cells divide the picture evenly, the layers
        do not show it (tokens), or the gradients do not confirm it.
    """
    size, shape = model.architecture.image_size, model.map_shape[1:]
    traced, standard = trace_geometry(model), standard_geometry(size, shape)
    if traced is None or _same(traced, standard, shape):
        return None
    return traced if _confirmed(model, traced, standard) else None


def trace_geometry(model: Classifier, layer: str | None = None) -> Geometry | None:
    """Follow the centers of cells through one forward pass, operation by operation.

    Args:
        model: in eval mode, on CPU.
        layer: dotted name of a module of the backbone; None: the target map.

    Returns:
        None where an operation on the way is not known to keep or move centers.
    """
    return _trace(model, layer)[1]


def layer_frame(model: Classifier, layer: str, target: Box) -> Box:
    """What the cells of a layer of the backbone cover of the input; all of it where not known.

    Guidance teaches the layers of the last grid to answer for the cells of an evenly divided
    picture. The layers before them still look where their strides and paddings lead.

    Args:
        model: in eval mode, on CPU.
        layer: dotted name of a module of the backbone.
        target: what the cells of the target map cover.
    """
    output, geometry = _trace(model, layer)
    if geometry is None:
        return WHOLE
    _, _, *grid = as_map(output, model.layout).shape
    if target == WHOLE and model.neck is None and tuple(grid) == model.map_shape[1:]:
        return WHOLE
    return geometry.covered(model.architecture.image_size, (grid[0], grid[1]))


def _trace(model: Classifier, layer: str | None) -> tuple[Tensor, Geometry | None]:
    size = model.architecture.image_size
    images = torch.zeros(1, 3, size, size)
    tracer, outputs = _Tracer(images), []
    hook = None
    if layer is not None:
        module = model.backbone.get_submodule(layer)
        hook = module.register_forward_hook(lambda *seen: outputs.append(seen[2]))
    try:
        with torch.no_grad(), tracer:
            outputs.append(model.features(images))
    finally:
        if hook is not None:
            hook.remove()
    found = outputs[0]
    return found, tracer.known.get(found) if isinstance(found, Tensor) else None


class _Tracer(TorchDispatchMode):
    """Notes where the cells of each tensor lie that operations make of the first one."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.known: Any = WeakIdKeyDictionary()
        self.known[images] = PIXELS

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - as torch declares it
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = [(tuple(t.shape), self.known[t]) for t in inputs if t in self.known]
        result = func(*args, **(kwargs or {}))
        for output in tree_leaves(result):
            if before and isinstance(output, Tensor):
                self._note(func.overloadpacket, args, before, output)
        return result

    def _note(
        self,
        operation: Any,  # noqa: ANN401
        args: Sequence[Any],
        before: Sequence[tuple[tuple[int, ...], Geometry]],
        output: Tensor,
    ) -> None:
        moved = _MOVES.get(operation)
        if moved is None:
            kept = [at for shape, at in before if _holds_grid(tuple(output.shape), shape)]
            after = _mean(kept) if kept else None
        else:
            after = moved(before[0][1], args, output)
        if after is not None:
            self.known[output] = after
        else:
            self.known.pop(output, None)  # changed in place


def _holds_grid(shape: tuple[int, ...], before: tuple[int, ...]) -> bool:
    """Whether rows and columns of a map are still there, channels first or last."""
    if len(shape) != _MAP_DIMENSIONS or len(before) != _MAP_DIMENSIONS:
        return False
    grids = {grid for grid in (before[2:], before[1:3]) if min(grid) > 1}
    return shape[2:] in grids or shape[1:3] in grids


def _mean(found: Sequence[Geometry]) -> Geometry:
    """Of branches that are joined: those of a shortcut may lie elsewhere by half a pixel."""
    numbers = np.mean(found, axis=0).tolist()
    return Geometry(*(Axis(*axis) for axis in numbers))


def _convolved(at: Geometry, args: Sequence[Any], output: Tensor) -> Geometry | None:
    """aten.convolution(input, weight, bias, stride, padding, dilation, transposed, ...)."""
    if output.ndim != _MAP_DIMENSIONS or args[6]:
        return None
    return _windowed(at, args[1].shape[2:], args[3], args[4], args[5])


def _pooled(at: Geometry, args: Sequence[Any], _: Tensor) -> Geometry:
    """aten.max_pool2d(input, kernel, stride, padding, dilation, ...); the average has no last."""
    given = [value if isinstance(value, list | tuple) else [] for value in args[1:5]]
    kernel, stride, padding, dilation = given + [[]] * (4 - len(given))
    return _windowed(at, kernel, stride or kernel, padding or [0], dilation or [1])


def _windowed(at: Geometry, *sizes: Sequence[int]) -> Geometry:
    """Kernel, stride, padding and dilation, each one number or one per axis."""
    rows, columns = ([values[i % len(values)] for values in sizes] for i in (0, 1))
    return Geometry(at.rows.windowed(*rows), at.columns.windowed(*columns))


def _padded(at: Geometry, args: Sequence[Any], output: Tensor) -> Geometry | None:
    """aten.constant_pad_nd(input, [left, right, top, bottom], ...) and its like."""
    if output.ndim != _MAP_DIMENSIONS or len(args[1]) != 4:  # two axes
        return None
    left, _, top, _ = args[1]
    return Geometry(at.rows.windowed(1, 1, top), at.columns.windowed(1, 1, left))


def _resized(at: Geometry, args: Sequence[Any], output: Tensor) -> Geometry | None:
    """aten.upsample_bilinear2d(input, size, align_corners, ...) and its like."""
    if args[2] is True:
        return None
    (height, width), (rows, columns) = args[0].shape[2:], output.shape[2:]
    return Geometry(at.rows.resized(height, rows), at.columns.resized(width, columns))


def _lost(at: Geometry, args: Sequence[Any], output: Tensor) -> None:
    """Of operations that move cells and keep the shape."""


_ATEN = torch.ops.aten
_MOVES: dict[Any, Callable[[Geometry, Sequence[Any], Tensor], Geometry | None]] = {
    _ATEN.convolution: _convolved,
    _ATEN.max_pool2d: _pooled,
    _ATEN.max_pool2d_with_indices: _pooled,
    _ATEN.avg_pool2d: _pooled,
    _ATEN.constant_pad_nd: _padded,
    _ATEN.reflection_pad2d: _padded,
    _ATEN.replication_pad2d: _padded,
    _ATEN.upsample_bilinear2d: _resized,
    _ATEN.upsample_bicubic2d: _resized,
    _ATEN.upsample_nearest2d: _resized,
    _ATEN.roll: _lost,
    _ATEN.flip: _lost,
}


def _same(one: Geometry, other: Geometry, shape: tuple[int, int]) -> bool:
    last = (shape[0] - 1, shape[1] - 1)
    limit = _CLOSE * min(one.rows.stride, one.columns.stride)
    return all(_distance(one.center(*cell), other.center(*cell)) < limit for cell in ((0, 0), last))


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return max(abs(one[0] - other[0]), abs(one[1] - other[1]))


def _confirmed(model: Classifier, traced: Geometry, standard: Geometry) -> bool:
    """Whether cells in the middle look nearer to their traced centers than to the usual ones."""
    _, height, width = model.map_shape
    cells = [(height // 3, width // 3), (height - 1 - height // 3, width - 1 - width // 3)]
    seen = seen_centers(model, cells)
    return all(
        _distance(at, traced.center(*cell)) < _distance(at, standard.center(*cell))
        for cell, at in zip(cells, seen, strict=True)
    )


def seen_centers(model: Classifier, cells: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Where cells look: the centroid of their gradient's energy in the picture.

    Kernels are faded towards their edges for it: what a cell sees beyond the picture's edge, or
    through a gate over the whole picture, would move the centroid otherwise.

    Args:
        model: in eval mode, on CPU; it is not changed.
        cells: row and column of each.

    Returns:
        Row and column in pixels; NaN where a cell has no gradient at all.
    """
    faded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in faded.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.mul_(_fading(module.weight))
    random = torch.Generator().manual_seed(0)
    size = model.architecture.image_size
    images = torch.randn(_PROBES, 3, size, size, generator=random).requires_grad_()
    with torch.enable_grad():
        features = faded.features(images)
    directions = torch.randn(features.shape[:2], generator=random)
    centers = []
    for row, column in cells:
        looked_at = (features[:, :, row, column] * directions).sum()
        (gradient,) = torch.autograd.grad(looked_at, images, retain_graph=True)
        centers.append(_centroid(gradient.double().square().sum(dim=(0, 1))))
    return centers


def _fading(weight: Tensor) -> Tensor:
    """Factor of each place of a kernel, (kh, kw), 1 in its middle."""
    steps = [(torch.arange(k) - (k - 1) / 2).abs().floor() for k in weight.shape[2:]]
    return _FADING ** (steps[0][:, None] + steps[1][None, :])


def _centroid(energy: Tensor) -> tuple[float, float]:
    total = energy.sum()
    rows, columns = (torch.arange(n, dtype=energy.dtype) for n in energy.shape)
    return float(energy.sum(1) @ rows / total), float(energy.sum(0) @ columns / total)
