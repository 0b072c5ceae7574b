"""The one predictor: the archive job, evaluation and serving all use it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.engines.choice import Choice, fastest_engine, possible_engine
from braintumor_ray.engines.engine import make_engine
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.cam import METHODS, ClassGradient, cams, class_gradient
from braintumor_ray.explain.library import library_cams
from braintumor_ray.explain.placement import as_stored, picture_maps, square_maps
from braintumor_ray.explain.regions import head_weights, heat_shares_batch
from braintumor_ray.metrics.conformal import named_sets
from braintumor_ray.models.allocator import keep_freed_memory
from braintumor_ray.models.bundle import DOMAIN_COORDINATES, Bundle, load_bundle
from braintumor_ray.models.classifier import normalize
from braintumor_ray.models.device import choose_device
from braintumor_ray.models.geometry import layer_frame
from braintumor_ray.predict.options import (
    NetworkKeywords,
    PredictorKeywords,
    PredictorOptions,
    takes_options,
)
from braintumor_ray.predict.views import test_time_views
from braintumor_ray.types import PREDICTION_SET, GrayImage

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of `typing` from Python 3.11 on

Columns = dict[str, Any]
Maps = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class RawOutput:
    """What the network says of a batch, before anything is made of it.

    Attributes:
        logits: float32 (B, k), before temperature.
        pooled: float32 (B, C), global average of the target map.
        cam_classes: int64 (B,).
        maps: the network's own maps (B, h, w) float32 by method, see `explain.placement`; empty
            where none were asked for.
        class_maps: the same of other classes, by class and method.
    """

    logits: npt.NDArray[np.float32]
    pooled: npt.NDArray[np.float32]
    cam_classes: npt.NDArray[np.int64]
    maps: Maps
    class_maps: dict[str, Maps] = field(default_factory=dict)


class Predictor:
    """Scores gray scans and explains each prediction, from one forward pass.

    Safe to call from several threads: a call changes nothing on the object or the network. Two
    things are set for the whole process: on CPU its allocator (`models.allocator`); on CUDA in fp32
    convolutions lose TF32, torch's default, whose maps differ in the second digit.

    Args:
        bundle: a loaded bundle.
        chosen: how it is run; None: as by default.
        options: single fields of `PredictorOptions` as keywords, such as `device="cpu"` or
            `engine="openvino"`; they go before those of `chosen`.

    Attributes:
        choice: the engine that runs, and what was measured where it was 'auto'.
        bf16: whether the backbone computes in bfloat16.
    """

    @takes_options
    def __init__(
        self,
        bundle: Bundle,
        chosen: PredictorOptions | None = None,
        **options: "Unpack[PredictorKeywords]",
    ) -> None:
        own = replace(chosen or PredictorOptions(), **options)
        unknown = [name for name in own.methods if name not in METHODS]
        if unknown:
            raise UsageError(f"CAM method '{unknown[0]}' is unknown; use {', '.join(METHODS)}")
        if own.tta and not bundle.averaged:
            bundle = bundle.averaging()
        self.bundle = bundle
        engine = possible_engine(own.engine, bundle.fields)
        elsewhere = engine in ("openvino", "onnxruntime")
        self.device = choose_device("cpu" if elsewhere and own.device == "auto" else own.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if engine == "auto":
            self.choice = fastest_engine(bundle, self.device, own.precision, parallel=own.parallel)
        else:
            self.choice = Choice(engine)
        self._preprocessing = bundle.preprocessing
        self._engine = make_engine(
            self.choice.engine,
            bundle.build_model(),
            self._preprocessing,
            self.device,
            own.precision,
            own.parallel,
            bundle.quantized,
        )
        self.bf16 = self._engine.bf16
        if self.device.type == "cuda" and not self.bf16:
            torch.backends.cudnn.allow_tf32 = False
        self.cam_class: str = own.cam_class
        self.methods = tuple(own.methods)
        self.batch_size = own.batch_size or (256 if self.device.type == "cuda" else 16)
        self.cam_shape, self._frame = bundle.cam_shape, bundle.map_frame
        self._layer_frames: dict[str, Box] = {}
        self._positive = torch.tensor(bundle.positive_indices, device=self.device)

    @property
    def precision(self) -> str:
        """Numbers of the backbone, 'fp32' or 'bf16'."""
        return "bf16" if self.bf16 else "fp32"

    @property
    def runs_in(self) -> dict[str, Any]:
        """What ran the network, for records: engine, precision, and what 'auto' has measured."""
        return {
            "engine": self.choice.engine,
            "precision": self.precision,
            "engine_scans_per_s": dict(self.choice.scans_per_s),
        }

    @classmethod
    @takes_options
    def from_bundle(
        cls,
        path: str | Path,
        device: str = "auto",
        **options: "Unpack[NetworkKeywords]",
    ) -> "Predictor":
        """Load a bundle directory and make its predictor.

        Args:
            path: of the bundle; a folder or a URI.
            device: 'auto' (CUDA where there is one), 'cpu' or 'cuda[:n]'.
            options: the other fields of `PredictorOptions`, as keywords.

        Raises:
            BundleError: the directory is not a whole, valid bundle, or has none for `tta`.
            UsageError: an option that cannot be met on this machine.
        """
        return cls(load_bundle(path), device=device, **options)

    def __call__(self, images: Sequence[GrayImage], *, explain: bool = True) -> Columns:
        """Predict scans.

        Args:
            images: uint8 gray (H, W), any sizes.
            explain: whether to compute maps; without, the map columns are left out.

        Returns:
            Columns of equal length n by name: `predicted_class` and `cam_class` list[str],
            `probabilities` float32 (n, k) in bundle order after temperature, `decision` bool (n,),
            `entropy` float32 (n,) divided by ln k, `out_of_domain` bool (n,), each method's raw
            maps float16 (n, h, w), `heat_inside`, `heat_rim`, `heat_background` float32 (n,), NaN
            where map or head mask is empty, and `domain_coordinates` float32 (n, r) where the
            bundle has a reference for archives, `prediction_set` list[list[str]] where it makes
            prediction sets.

        Raises:
            ValueError: an image that is not uint8 (H, W).
        """
        squares, boxes = self._squares(images)
        heads = head_weights(squares, self.cam_shape)
        return self.predict(squares, heads, boxes, explain=explain)

    def explain_classes(
        self, images: Sequence[GrayImage], classes: Sequence[str]
    ) -> tuple[Columns, dict[str, Columns]]:
        """Predict scans and make the maps of several classes, all from one forward pass.

        Args:
            images: as for a call.
            classes: of the bundle.

        Returns:
            The columns of a call without maps; and for each of the classes its maps by method,
            float16 (n, h, w), those of `explaining(name)`.

        Raises:
            UsageError: no class of the bundle.
            ValueError: an image that is not uint8 (H, W).
        """
        squares, boxes = self._squares(images)
        raw = self.forward(self._stacked(squares), explain=False, classes=classes)
        columns = self._columns(raw, head_weights(squares, self.cam_shape))
        return columns, {name: self._placed(maps, boxes) for name, maps in raw.class_maps.items()}

    def predict(
        self,
        squares: Sequence[GrayImage],
        heads: npt.NDArray[np.float32],
        boxes: Sequence[Box] | None = None,
        *,
        explain: bool = True,
        placed: bool = True,
    ) -> Columns:
        """As a call, of scans that were prepared elsewhere, as decoders do that feed a GPU.

        Args:
            squares: uint8 (S, S) each, from the bundle's `preprocessing.square`.
            heads: float32 (n, 3, h, w), from `explain.regions.head_weights` with `cam_shape`.
            boxes: what part of its picture each square shows; None: all of it.
            explain: as for a call.
            placed: whether maps become maps of the pictures; else they are the network's own, for a
                caller that places them by the bundle's `map_frame`.
        """
        raw = self.forward(self._stacked(squares), explain=explain)
        columns = self._columns(raw, heads)
        if explain:
            columns |= self._explanations(raw, heads, boxes, placed)
        return columns

    def forward(
        self, images: GrayImage, *, explain: bool = True, classes: Sequence[str] = ()
    ) -> RawOutput:
        """Run the network on uint8 (n, S, S), in batches of `batch_size`.

        Args:
            images: squares.
            explain: whether to compute the maps of `cam_class`.
            classes: whose maps are computed, too.
        """
        targets = {name: self._index(name) for name in classes}
        size = self._preprocessing.image_size
        if images.ndim != 3 or images.shape[1:] != (size, size) or images.dtype != np.uint8:
            raise ValueError(
                f"expected uint8 (n, {size}, {size}), got {images.dtype} {images.shape}"
            )
        steps = range(0, max(len(images), 1), self.batch_size)
        parts = [
            self._forward_batch(images[i : i + self.batch_size], explain, targets) for i in steps
        ]
        return RawOutput(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.pooled for part in parts]),
            np.concatenate([part.cam_classes for part in parts]),
            _joined([part.maps for part in parts]),
            {name: _joined([part.class_maps[name] for part in parts]) for name in targets},
        )

    def library_map(
        self, image: GrayImage, class_name: str, method: str, layer: str | None = None
    ) -> npt.NDArray[np.float32]:
        """One map through the grad-cam library, float32 (S, S) in [0, 1]; slow, for few scans.

        Raises:
            UsageError: method or layer unknown, or the bundle is quantized.
        """
        self.bundle.require_float(f"CAM method '{method}' of the grad-cam library")
        view, box = self._preprocessing.square(image)
        square = torch.from_numpy(view[None]).to(self.device)
        model = self.bundle.build_model().to(self.device)  # hooks touch a copy, never ours
        target = self.bundle.fields.class_names.index(class_name)
        images = normalize(square, self._preprocessing)
        maps = library_cams(model, images, [target], method, layer)
        frame = self._frame if layer is None else self._layer_frame(layer)
        return picture_maps(maps, [box], frame)[0]

    def _layer_frame(self, layer: str) -> Box:
        """As the bundle's `map_frame`, for another layer of the backbone; traced once."""
        if layer not in self._layer_frames:
            model = self.bundle.build_model()
            self._layer_frames[layer] = layer_frame(model, layer, self._frame)
        return self._layer_frames[layer]

    def _squares(self, images: Sequence[GrayImage]) -> tuple[list[GrayImage], list[Box]]:
        """What the network sees of pictures, and where that is in each."""
        views = [self._preprocessing.square(image) for image in images]
        return [square for square, _ in views], [box for _, box in views]

    def _stacked(self, squares: Sequence[GrayImage]) -> GrayImage:
        size = self._preprocessing.image_size
        return np.stack(squares) if len(squares) else np.empty((0, size, size), np.uint8)

    def _forward_batch(
        self, images: GrayImage, explain: bool, targets: Mapping[str, int]
    ) -> RawOutput:
        if not len(images):
            return self._empty(explain, targets)
        with torch.no_grad():
            average = self._averages(images)  # before the features, which the next call overwrites
            features = self._engine.features(images)
            gradient = class_gradient(
                self._engine.model, features, lambda logits: self._choose(average(logits))
            )
            maps = self._maps(features, gradient) if explain else {}
            # Classes share the features; only the gradient of the head is each one's own.
            class_maps = {
                name: self._maps(features, self._gradient_of(features, index))
                for name, index in targets.items()
            }
        return RawOutput(
            average(gradient.logits).cpu().numpy(),
            gradient.mean.cpu().numpy(),
            gradient.classes.cpu().numpy(),
            maps,
            class_maps,
        )

    def _gradient_of(self, features: Tensor, index: int) -> ClassGradient:
        """Of one class, whatever is predicted."""
        return class_gradient(
            self._engine.model,
            features,
            lambda logits: torch.full_like(logits[:, 0], index, dtype=torch.int64),
        )

    def _maps(self, features: Tensor, gradient: ClassGradient) -> Maps:
        """Maps (B, h, w) by method, as large as they are stored."""
        maps = cams(features, gradient, self.methods)
        return {name: self._stored(maps[name]).cpu().numpy() for name in maps}

    def _averages(self, images: GrayImage) -> Callable[[Tensor], Tensor]:
        """What makes of the logits (B, k) of the scans as they are those that are returned."""
        if not self.bundle.averaged:
            return lambda logits: logits
        others = []
        for view in islice(test_time_views(images), 1, None):
            others.append(self._engine.model.logits(self._engine.features(view)))
        return lambda logits: torch.stack([logits, *others]).mean(dim=0)

    def _empty(self, explain: bool, targets: Mapping[str, int]) -> RawOutput:
        k, channels = len(self.bundle.fields.class_names), self._engine.model.map_shape[0]
        maps = {name: np.empty((0, *self.cam_shape), np.float32) for name in self.methods}
        return RawOutput(
            np.empty((0, k), np.float32),
            np.empty((0, channels), np.float32),
            np.empty(0, np.int64),
            maps if explain else {},
            dict.fromkeys(targets, maps),
        )

    def explaining(self, class_name: str) -> "Predictor":
        """A predictor of the same network whose maps are of one class, whatever is predicted.

        Raises:
            UsageError: no class of the bundle.
        """
        self._index(class_name)
        other = copy.copy(self)
        other.cam_class = class_name
        return other

    def _index(self, class_name: str) -> int:
        names = self.bundle.fields.class_names
        if class_name not in names:
            raise UsageError(f"class '{class_name}' is unknown; the bundle has {', '.join(names)}")
        return names.index(class_name)

    def _choose(self, logits: Tensor) -> Tensor:
        names = self.bundle.fields.class_names
        if self.cam_class in names:
            return torch.full_like(logits[:, 0], names.index(self.cam_class), dtype=torch.int64)
        if self.cam_class == "predicted":
            return logits.argmax(dim=1)
        return self._positive[logits[:, self._positive].argmax(dim=1)]

    def _stored(self, maps: Tensor) -> Tensor:
        if tuple(maps.shape[1:]) == self.cam_shape:
            return maps
        return functional.adaptive_avg_pool2d(maps.unsqueeze(1), self.cam_shape).squeeze(1)

    def _columns(self, raw: RawOutput, heads: npt.NDArray[np.float32]) -> Columns:
        """All columns but those of maps."""
        columns = self._decisions(raw)
        columns["out_of_domain"] = self.out_of_domain(raw, heads)
        if self.bundle.archive is not None:
            decided = columns["decision"]
            columns[DOMAIN_COORDINATES] = self.bundle.archive.coordinates(raw.pooled, decided)
        return columns

    def _decisions(self, raw: RawOutput) -> Columns:
        fields = self.bundle.fields
        names = fields.class_names
        probabilities = softmax(raw.logits / fields.temperature, axis=1)
        positive = probabilities[:, self.bundle.positive_indices].sum(axis=1)
        columns: Columns = {
            "predicted_class": [names[i] for i in probabilities.argmax(axis=1)],
            "probabilities": probabilities,
            "decision": positive >= np.float32(fields.threshold),
            "entropy": normalized_entropy(probabilities),
            "cam_class": [names[i] for i in raw.cam_classes],
        }
        if (sets := fields.prediction_sets) is not None:
            columns[PREDICTION_SET] = named_sets(probabilities, sets.thresholds, names)
        return columns

    def out_of_domain(
        self, raw: RawOutput, heads: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Which of the scans of an output look like none that was trained on, bool (n,).

        Args:
            raw: from `forward`.
            heads: as for `predict`.
        """
        foreign = np.asarray(~heads.any(axis=(1, 2, 3)))  # no head
        detector, limit = self.bundle.detector, self.bundle.fields.domain_limit
        if detector is not None and limit is not None:
            foreign |= detector.distance(raw.pooled) > limit
        return foreign

    def heat_shares(
        self, raw: RawOutput, heads: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        """Shares (n, 3) of the first method's heat inside, on the rim and in the background.

        Args:
            raw: from `forward`, with maps.
            heads: as for `predict`.
        """
        return heat_shares_batch(square_maps(raw.maps[self.methods[0]], self._frame), heads)

    def _explanations(
        self,
        raw: RawOutput,
        heads: npt.NDArray[np.float32],
        boxes: Sequence[Box] | None,
        placed: bool,
    ) -> Columns:
        shares = self.heat_shares(raw, heads).astype(np.float32)
        if placed:
            columns = self._placed(raw.maps, boxes or [WHOLE] * len(heads))
        else:
            columns = {name: as_stored(maps) for name, maps in raw.maps.items()}
        for index, region in enumerate(("inside", "rim", "background")):
            columns[f"heat_{region}"] = shares[:, index]
        return columns

    def _placed(self, maps: Maps, boxes: Sequence[Box]) -> Columns:
        """Maps of the pictures of which the network saw the boxes, as they are stored."""
        return {
            name: as_stored(picture_maps(own, boxes, self._frame)) for name, own in maps.items()
        }


def _joined(parts: Sequence[Maps]) -> Maps:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def normalized_entropy(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Entropy of rows (n, k) divided by ln k: 0 certain, 1 uniform."""
    p = np.clip(probabilities, 1e-12, 1.0)
    entropy = -(p * np.log(p)).sum(axis=1) / np.log(probabilities.shape[1])
    return np.asarray(np.clip(entropy, 0.0, 1.0), dtype=np.float32)
