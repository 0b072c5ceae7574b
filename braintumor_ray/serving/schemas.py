"""Parameters and answers of the service, as the OpenAPI document shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from braintumor_ray.choices import Plane
from braintumor_ray.decode.types import VolumeOptions
from braintumor_ray.serving.model import ModelCard
from braintumor_ray.serving.problems import Problem

Explain = Literal["none", "gradcam", "gradcam++", "both"]
Heatmap = Literal["none", "array", "png", "overlay"]
METHODS: dict[Explain, tuple[str, ...]] = {
    "none": (),
    "gradcam": ("gradcam",),
    "gradcam++": ("gradcam_pp",),
    "both": ("gradcam", "gradcam_pp"),
}


def _plus(value: object) -> object:
    """Also accept 'gradcam  ' (a plus in a query decodes to a space) and the column's name."""
    if isinstance(value, str) and value.replace(" ", "+") in ("gradcam++", "gradcam_pp"):
        return "gradcam++"
    return value


class PredictQuery(BaseModel):
    """Options of a prediction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    explain: Annotated[Explain, BeforeValidator(_plus)] = Field(
        "both", description="which class activation maps; in a URL write gradcam%2B%2B"
    )
    heatmap: Heatmap = Field(
        "none",
        description="array: the raw map; png: colored, at the scan's size; overlay: blended",
    )
    frame: int = Field(0, ge=0, le=1_000_000, description="of a multi-frame file or volume")
    plane: Plane = Field("axial", description="how a NIfTI volume is cut into frames")
    volume: int = Field(0, ge=0, le=1_000_000, description="of a 4-D NIfTI")
    cam_class: str | None = Field(
        None, max_length=200, description="maps of this class; without: the bundle's choice"
    )
    scan: Literal["none", "png"] = Field("none", description="png: send the decoded scan back")

    @property
    def methods(self) -> tuple[str, ...]:
        """The predictor's columns that hold the wanted maps."""
        return METHODS[self.explain]

    @property
    def volumes(self) -> VolumeOptions:
        """How a volume is cut."""
        return VolumeOptions(self.plane, self.volume)

    @property
    def wants_picture(self) -> bool:
        """Whether the scan's own pixels are drawn or sent back."""
        return self.scan == "png" or self.heatmap in ("png", "overlay")


class Scan(BaseModel):
    """The decoded frame."""

    format: str = Field(description="jpeg, png, tiff, bmp, dicom, nifti or matlab, by content")
    frame: int
    frames: int | None = Field(None, description="in the file, cut as asked; null: not known")
    height: int = Field(description="pixels, at full size")
    width: int
    pixel_sha256: str = Field(description="of the decoded gray image, as in the archive's rows")
    png: str | None = Field(None, description="base64, gray; longest side at most 1024 pixels")


class Decision(BaseModel):
    """Positive or not, at the bundle's threshold; may differ from the likeliest class."""

    positive: bool
    probability: float = Field(description="sum over the positive classes")
    threshold: float
    positive_classes: list[str]


class Heat(BaseModel):
    """Share of Grad-CAM's heat by region; null where map or head mask is empty."""

    inside: float | None
    rim: float | None
    background: float | None


class Map(BaseModel):
    """One class activation map of class `cam_class`."""

    array: list[list[float]] | None = Field(None, description="raw h x w, before any stretching")
    png: str | None = Field(None, description="base64; longest side at most 1024 pixels")
    overlay: str | None = Field(None, description="base64 PNG, 0.4 of the heat over the scan")
    flat: bool | None = Field(None, description="nothing to see: the picture shows no heat")


class Prediction(BaseModel):
    """The network's result for one scan. Research software, not a medical device."""

    predicted_class: str = Field(description="the likeliest class; `decision` has another rule")
    probabilities: dict[str, float] = Field(description="by class, after temperature")
    decision: Decision
    entropy: float = Field(description="divided by ln k: 0 certain, 1 uniform")
    out_of_domain: bool = Field(description="no plausible head, or unlike the training scans")
    prediction_set: list[str] | None = Field(
        None, description="classes that the scan may have; null where the bundle has no sets"
    )
    cam_class: str | None = Field(description="class of the maps; null with explain=none")
    heat: Heat | None = Field(description="null with explain=none")
    maps: dict[str, Map] = Field(description="by method, gradcam and gradcam_pp")
    scan: Scan
    bundle_fingerprint: str


class BatchItem(BaseModel):
    """One file of several: its result or its error."""

    index: int
    name: str
    result: Prediction | None = None
    error: Problem | None = None


class BatchAnswer(BaseModel):
    """One entry per file, in order; files of a zip in its place."""

    results: list[BatchItem]
    skipped: int = Field(0, description="folders, hidden files and DICOMDIR of zips, not read")


class State(BaseModel):
    """Health."""

    status: str


class ModelInfo(ModelCard):
    """The bundle that answers."""

    limits: dict[str, int]
    version: str
    notice: str


OBJECTS = {  # what else /v1/predict answers with, for OpenAPI
    kind: {"schema": {"type": "string", "format": "binary"}}
    for kind in ("application/dicom", "multipart/related")
}


def upload_body(batch: bool) -> dict[str, Any]:
    """The OpenAPI request body: raw bytes or a form; several files or a zip for a batch."""
    binary = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": binary, "minItems": 1}
    name, value = ("files", files) if batch else ("file", binary)
    form = {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {name: value}, "required": [name]}
        }
    }
    kinds = ("application/octet-stream", "image/*", "application/dicom")
    raw = {kind: {"schema": binary} for kind in (("application/zip",) if batch else kinds)}
    return {"requestBody": {"required": True, "content": form | raw if batch else raw | form}}


_CURL = "curl --fail-with-body"
_HERE = "http://127.0.0.1:8000"
SAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    # Of each path: a label, and one shell line that runs where these files are.
    "/v1/predict": (
        (
            "one scan",
            f"{_CURL} --header 'Content-Type: application/octet-stream' --data-binary @scan.png "
            f"'{_HERE}/v1/predict?explain=both'",
        ),
        (
            "a DICOM map",
            f"{_CURL} --header 'Accept: application/dicom' --data-binary @scan.dcm "
            f"--output map.dcm '{_HERE}/v1/predict?explain=gradcam'",
        ),
    ),
    "/v1/predict/batch": (
        (
            "several files",
            f"{_CURL} --form files=@scan.png --form files=@other.png "
            f"'{_HERE}/v1/predict/batch?explain=both'",
        ),
        (
            "a zip, such as a DICOM series",
            f"{_CURL} --header 'Content-Type: application/zip' --data-binary @series.zip "
            f"'{_HERE}/v1/predict/batch?explain=none'",
        ),
    ),
    **{path: (("", f"{_CURL} '{_HERE}{path}'"),) for path in ("/v1/model", "/healthz", "/readyz")},
}
