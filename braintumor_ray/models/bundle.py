"""The bundle: a directory that carries a trained network to everything that uses it.

`model.safetensors` (weights and domain statistics) + `bundle.json` + `model_card.md`. No pickle.
A quantized bundle has its backbone as `quantized.xml` + `quantized.bin`, too.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)
from torch import Tensor

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.decode.preprocess import Crop, Intensity, Preprocessing
from braintumor_ray.errors import BundleError, UsageError, describe_validation
from braintumor_ray.models.classifier import Architecture, Classifier
from braintumor_ray.models.domain import ArchiveReference, DomainDetector
from braintumor_ray.models.geometry import Axis, Geometry
from braintumor_ray.recipes.schema import Head, Neck, Pooling
from braintumor_ray.types import PREDICTION_SET

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "bundle.json", "model_card.md"
GRAPH, GRAPH_WEIGHTS = "quantized.xml", "quantized.bin"
DOMAIN_COORDINATES = "domain_coordinates"
LARGEST_MAP = 16  # larger maps are area-averaged: they would cost more than they show
LARGEST_REFINED_MAP = 32  # of a neck, which is there for finer maps
# Fields that came later count in a fingerprint only where they are used: bundles keep theirs.
_LATER = {
    "architecture": ("neck", "neck_stride", "neck_channels", "gate", "pooling"),
    "preprocessing": ("crop", "intensity"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArchitectureFields(_Strict):
    """As `models.classifier.Architecture`."""

    backbone: str
    head: Head
    classes: int = Field(ge=2)
    image_size: int = Field(ge=32)
    hidden: int
    dropout: float
    sigmoid: bool
    neck: Neck = "none"
    neck_stride: int = 8
    neck_channels: int = 128
    gate: bool = False
    pooling: Pooling = "mean"


class PreprocessingFields(_Strict):
    """As `decode.preprocess.Preprocessing`."""

    image_size: int
    interpolation: Literal["area", "linear", "cubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: Crop = "none"
    intensity: Intensity = "none"


class SetFields(_Strict):
    """How prediction sets are made; see `metrics.conformal.SetRule`."""

    coverage: float = Field(gt=0, lt=1)
    thresholds: tuple[float, ...]
    groups: tuple[int, ...]


class ViewFields(_Strict):
    """What test-time augmentation decides by: chosen on logits averaged over the views."""

    threshold: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    prediction_sets: SetFields | None = None


class GeometryFields(_Strict):
    """As `models.geometry.Geometry`: pairs of rows, columns, in pixels of the network's input."""

    offset: tuple[float, float] = Field(description="center of the first cell; first pixel: 0")
    stride: tuple[PositiveFloat, PositiveFloat] = Field(description="from cell to cell")


class QuantizationFields(_Strict):
    """How the backbone became integers; see `evaluation.quantization`."""

    bits: Literal[8] = 8
    graph_sha256: str = Field(description="of quantized.xml and quantized.bin")
    made_of: str = Field(description="fingerprint of the bundle with the network in float")
    calibration_scans: int = Field(ge=1)
    precision: Literal["fp32", "bf16"] = Field(description="of the other layers, when validated")


class BundleFields(_Strict):
    """The content of bundle.json."""

    schema_version: Literal[1, 2] = Field(1, description="2: quantized")
    architecture: ArchitectureFields
    preprocessing: PreprocessingFields
    class_names: tuple[str, ...]
    positive_classes: tuple[str, ...]
    cam_layer: str
    map_shape: tuple[int, int, int] | None = Field(
        None, description="channels, height, width of the map layer; none: an earlier bundle"
    )
    map_geometry: GeometryFields | None = Field(
        None, description="where cells lie; none: they divide the input evenly"
    )
    threshold: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    domain_limit: float | None = Field(
        None, gt=0, description="feature distance above which an input is out of domain"
    )
    prediction_sets: SetFields | None = Field(
        None, description="conformal prediction sets; none: an earlier bundle"
    )
    recipe: dict[str, Any]
    data_fingerprint: str
    metrics: dict[str, Any]
    versions: dict[str, str]
    weights_sha256: str = ""
    views: ViewFields | None = Field(
        None, description="for test-time augmentation; none: an earlier bundle, or none was chosen"
    )
    quantization: QuantizationFields | None = Field(
        None, description="none: the network is in float"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "BundleFields":
        names = self.class_names
        if len(names) != self.architecture.classes or len(set(names)) != len(names):
            raise ValueError(
                f"{len(names)} class names for {self.architecture.classes} outputs, or repeated"
            )
        if not self.positive_classes or not set(self.positive_classes) < set(names):
            raise ValueError("positive_classes must be some, not all, of class_names")
        if self.architecture.image_size != self.preprocessing.image_size:
            raise ValueError("architecture and preprocessing disagree on image_size")
        if (self.schema_version == 2) != (self.quantization is not None):
            raise ValueError("schema_version must be 2 where there is quantization, else 1")
        sets = self.prediction_sets
        if sets is not None and not len(sets.thresholds) == len(sets.groups) == len(names):
            raise ValueError(f"prediction_sets needs a threshold for each of {len(names)} classes")
        return self


@dataclass(frozen=True)
class QuantizedGraph:
    """A backbone with int8 layers as OpenVINO reads it: uint8 (n, S, S) to the target map.

    Attributes:
        xml: the graph.
        weights: its constants.
    """

    xml: bytes
    weights: bytes

    @cached_property
    def sha256(self) -> str:
        """Hex digest of both."""
        return hashlib.sha256(self.xml + self.weights).hexdigest()

    def write(self, folder: Path) -> None:
        """Write both into a local folder that exists."""
        (folder / GRAPH).write_bytes(self.xml)
        (folder / GRAPH_WEIGHTS).write_bytes(self.weights)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    fields: BundleFields
    state: Mapping[str, Tensor]
    detector: DomainDetector | None
    archive: ArchiveReference | None = None
    averaged: bool = False  # logits are averaged over views; see `averaging`
    quantized: QuantizedGraph | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest over all that changes a prediction: weights, preprocessing, thresholds."""
        relevant = self.fields.model_dump(
            mode="json",
            include={
                "schema_version",
                "architecture",
                "preprocessing",
                "class_names",
                "positive_classes",
                "cam_layer",
                "map_geometry",
                "threshold",
                "temperature",
                "domain_limit",
                "prediction_sets",
                "weights_sha256",
            },
        )
        if relevant["prediction_sets"] is None:
            del relevant["prediction_sets"]
        for section, names in _LATER.items():
            defaults = type(getattr(self.fields, section)).model_fields
            for name in names:
                if relevant[section][name] == defaults[name].default:
                    del relevant[section][name]
        if self.averaged:
            relevant["averaged"] = True
        if self.fields.quantization is not None:
            relevant["graph_sha256"] = self.fields.quantization.graph_sha256
        if relevant["map_geometry"] is None:  # it came later, too
            del relevant["map_geometry"]
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:32]

    def averaging(self, views: ViewFields | None = None) -> "Bundle":
        """The bundle as test-time augmentation uses it: another fingerprint, its own threshold.

        Args:
            views: what it decides by; None: as the bundle says.

        Raises:
            BundleError: nothing says so.
        """
        views = views or self.fields.views
        if views is None:
            raise BundleError(
                "--tta: the bundle has no threshold for averaged views, which lie elsewhere than "
                "single ones; 'braintumor-ray evaluate --tta --recalibrate BUNDLE' makes one"
            )
        names = ("threshold", "temperature", "prediction_sets")
        fields = self.fields.model_copy(update={name: getattr(views, name) for name in names})
        return replace(self, fields=fields, averaged=True)

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels reach the network."""
        return Preprocessing.from_dict(self.fields.preprocessing.model_dump())

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """Columns of results that bundles of earlier versions cannot fill."""
        sets = () if self.fields.prediction_sets is None else (PREDICTION_SET,)
        return sets if self.archive is None else (*sets, DOMAIN_COORDINATES)

    @property
    def positive_indices(self) -> list[int]:
        """Indices of the positive classes, ascending."""
        fields = self.fields
        return [i for i, name in enumerate(fields.class_names) if name in fields.positive_classes]

    @cached_property
    def map_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the map layer; without building the network if it can."""
        return self.fields.map_shape or self.build_model().map_shape

    @property
    def cam_shape(self) -> tuple[int, int]:
        """Height and width at which maps are stored."""
        refined = self.fields.architecture.neck != "none"
        largest = LARGEST_REFINED_MAP if refined else LARGEST_MAP
        _, height, width = self.map_shape
        return min(height, largest), min(width, largest)

    @property
    def map_frame(self) -> Box:
        """What the cells of a map cover of the network's square, in fractions of it."""
        geometry = self.fields.map_geometry
        if geometry is None:
            return WHOLE
        axes = (Axis(*pair) for pair in zip(geometry.offset, geometry.stride, strict=True))
        return Geometry(*axes).covered(self.fields.architecture.image_size, self.map_shape[1:])

    def build_model(self) -> Classifier:
        """The network in eval mode, with its weights, learning nothing.

        Of a quantized bundle it is the network in float that it was made of: the head is the same,
        the backbone is not.

        Raises:
            BundleError: the weights or the map's shape are not those of the architecture.
        """
        model = Classifier(Architecture(**self.fields.architecture.model_dump()))
        try:
            model.load_state_dict(dict(self.state))
        except RuntimeError as error:
            raise BundleError(
                f"{WEIGHTS} does not fit the architecture in {DESCRIPTION}: {error}"
            ) from error
        if self.fields.map_shape not in (None, model.map_shape):
            raise BundleError(
                f"{DESCRIPTION} says map_shape {self.fields.map_shape}, the network has "
                f"{model.map_shape}; restore the file as it was written"
            )
        return model.eval().requires_grad_(False)

    def require_float(self, what: str) -> None:
        """Refuse what needs the network in torch.

        Args:
            what: subject of the message.

        Raises:
            UsageError: the bundle is quantized.
        """
        if self.fields.quantization is not None:
            raise UsageError(
                f"{what} needs the network in float and the bundle is quantized (int8); give the "
                f"bundle that it was made of (fingerprint {self.fields.quantization.made_of})"
            )


def save_bundle(
    directory: str | Path,
    fields: BundleFields,
    model: Classifier,
    detector: DomainDetector | None,
    card: str,
    archive: ArchiveReference | None = None,
    quantized: QuantizedGraph | None = None,
) -> Bundle:
    """Write a bundle directory; it appears whole or not at all.

    `quantized` goes with `fields.quantization`.

    Raises:
        BundleError: the directory exists already.
    """
    target = Path(directory)
    if target.exists():
        raise BundleError(f"bundle '{target}' exists already; choose another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        weights = _pack(model, detector, archive)
        (work / WEIGHTS).write_bytes(weights)
        digest = hashlib.sha256(weights).hexdigest()
        known = {"weights_sha256": digest, "map_shape": model.map_shape}
        fields = fields.model_copy(update=known)
        text = json.dumps(fields.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (work / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        (work / CARD).write_text(card, encoding="utf-8")
        if quantized is not None:
            quantized.write(work)
        work.chmod(0o755)
        os.replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return load_bundle(target)


def load_bundle(directory: str | Path) -> Bundle:
    """Read and check a bundle directory (a local path or any URI that fsspec opens).

    Raises:
        BundleError: something is missing, changed or not valid; says which and what to do.
    """
    fields, blob, quantized = _read_checked(directory)
    return replace(_unpack(fields, blob), quantized=quantized)


def check_bundle(directory: str | Path) -> None:
    """Check that the files of a bundle belong together, without unpacking the weights.

    Raises:
        BundleError: as `load_bundle`.
    """
    _read_checked(directory)


def copy_bundle(directory: str | Path, folder: Path) -> BundleFields:
    """Copy the files of a bundle, from any location, into a local folder that exists.

    Returns:
        The content of bundle.json.

    Raises:
        BundleError: as `load_bundle`.
    """
    fields, blob, quantized = _read_checked(directory)
    (folder / WEIGHTS).write_bytes(blob)
    if quantized is not None:
        quantized.write(folder)
    for name in (DESCRIPTION, CARD):
        (folder / name).write_bytes(_read(directory, name))
    return fields


def bundle_files(fields: BundleFields) -> tuple[str, ...]:
    """Names of the files of a bundle but for its card; bundle.json is the last."""
    graph = () if fields.quantization is None else (GRAPH, GRAPH_WEIGHTS)
    return (WEIGHTS, *graph, DESCRIPTION)


def read_bundle_fields(directory: str | Path) -> BundleFields:
    """The content of bundle.json; reads no weights.

    Raises:
        BundleError: it cannot be read, or is not valid.
    """
    raw = _read(directory, DESCRIPTION)
    try:
        return BundleFields.model_validate_json(raw)
    except ValidationError as error:
        raise BundleError(
            f"bundle '{directory}': {DESCRIPTION} is not valid: {describe_validation(error)}"
        ) from error


def _read_checked(directory: str | Path) -> tuple[BundleFields, bytes, QuantizedGraph | None]:
    fields = read_bundle_fields(directory)
    blob = _read(directory, WEIGHTS)
    digest = hashlib.sha256(blob).hexdigest()
    if digest != fields.weights_sha256:
        raise BundleError(
            f"bundle '{directory}': {WEIGHTS} has sha256 {digest[:12]}..., {DESCRIPTION} says "
            f"{fields.weights_sha256[:12]}...; the files do not belong together, copy both again"
        )
    return fields, blob, _read_quantized(directory, fields.quantization)


def _read_quantized(
    directory: str | Path, quantization: QuantizationFields | None
) -> QuantizedGraph | None:
    if quantization is None:
        return None
    graph = QuantizedGraph(_read(directory, GRAPH), _read(directory, GRAPH_WEIGHTS))
    if graph.sha256 != quantization.graph_sha256:
        raise BundleError(
            f"bundle '{directory}': {GRAPH} and {GRAPH_WEIGHTS} have sha256 {graph.sha256[:12]}"
            f"..., {DESCRIPTION} says {quantization.graph_sha256[:12]}...; the files do not belong "
            "together, copy all again"
        )
    return graph


def _read(directory: str | Path, name: str) -> bytes:
    from braintumor_ray.storage import read_bytes

    try:
        return read_bytes(f"{str(directory).rstrip('/')}/{name}")
    except OSError as error:
        raise BundleError(
            f"'{directory}' is not a bundle: cannot read {name} ({error}); "
            "a bundle is the folder RUN/bundle that 'braintumor-ray train' writes"
        ) from error


def _pack(
    model: Classifier, detector: DomainDetector | None, archive: ArchiveReference | None
) -> bytes:
    from safetensors.torch import save

    tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if detector is not None:
        tensors |= {
            "domain.mean": torch.from_numpy(detector.mean),
            "domain.basis": _contiguous(detector.basis),
            "domain.scale": torch.from_numpy(detector.scale),
            "domain.residual": torch.tensor([detector.residual], dtype=torch.float64),
        }
    if archive is not None:
        tensors |= {f"archive.{k}": _contiguous(v) for k, v in vars(archive).items()}
    _refuse_nan(tensors)
    return save(tensors)


def _refuse_nan(tensors: Mapping[str, Tensor]) -> None:
    broken = [k for k, v in tensors.items() if v.is_floating_point() and v.isnan().any()]
    if broken:
        raise BundleError(
            f"the weights hold NaN in '{broken[0]}', and every prediction would be NaN; their "
            "training diverged, or a conversion damaged them: use others"
        )


def _contiguous(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _unpack(fields: BundleFields, blob: bytes) -> Bundle:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(blob)
    except SafetensorError as error:
        raise BundleError(f"{WEIGHTS} is not a safetensors file: {error}") from error
    _refuse_nan(tensors)
    state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    detector = None
    if "domain.mean" in tensors:
        detector = DomainDetector(
            tensors["domain.mean"].numpy(),
            tensors["domain.basis"].numpy(),
            tensors["domain.scale"].numpy(),
            float(tensors["domain.residual"][0]),
        )
    archive = None
    if "archive.centers" in tensors:
        names = [field.name for field in dataclass_fields(ArchiveReference)]
        archive = ArchiveReference(**{name: tensors[f"archive.{name}"].numpy() for name in names})
    return Bundle(fields, state, detector, archive)
