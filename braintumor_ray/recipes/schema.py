"""The fields of a recipe. Unknown keys are refused; every field says what it means."""

import re
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from braintumor_ray.choices import Precision

Head = Literal["linear", "mlp", "attention", "flatten"]
Neck = Literal["none", "topdown"]
Pooling = Literal["mean", "lse"]
Output = Literal["auto", "softmax", "sigmoid"]
_THRESHOLD_RULE = re.compile(r"f1|youden|sensitivity\s*>=\s*(0?\.\d+|[01](\.0+)?)|0?\.\d+")
Layers = Literal["all", "head"] | Annotated[int, Field(ge=1)] | tuple[str, ...]


class Section(BaseModel):
    """A table of the TOML file; frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - of any field
        """TOML has no null: of a field that may have no value, 'none' is that."""
        optional = NoneType in get_args(cls.model_fields[str(info.field_name)].annotation)
        return None if optional and value == "none" else value


class DataSection(Section):
    """What is read, and how it is split."""

    image_size: int = Field(224, ge=32, le=2048, description="side of the square input, pixels")
    interpolation: Literal["area", "linear", "cubic"] = Field(
        "area", description="resampling to image_size; 'area' averages when shrinking"
    )
    crop: Literal["none", "head"] = Field(
        "none", description="head: a square around the head, so that margins cannot matter"
    )
    intensity: Literal["none", "head"] = Field(
        "none", description="head: grays stretched to the range of the head"
    )
    batch_size: int = Field(32, ge=1, description="scans per step over all workers together")
    fractions: dict[Literal["train", "val", "test"], float] = Field(
        {"train": 0.7, "val": 0.1, "test": 0.2}, description="shares of the grouped split"
    )
    classes: str | None = Field(
        None, description="merge, rename or leave out labels, as the option --classes"
    )
    negative_classes: tuple[str, ...] = Field(
        ("no_tumor", "notumor", "no tumor", "no", "none", "healthy", "normal", "negative"),
        description="class names that mean 'no tumor'; all others count as positive",
    )

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, fractions: dict[str, float]) -> dict[str, float]:
        if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
            raise ValueError("shares must be positive and sum to 1")
        if not {"train", "val"} <= set(fractions):
            raise ValueError("'train' and 'val' are needed: validation chooses the threshold")
        return fractions


class AugmentSection(Section):
    """Random changes per scan and epoch, as Keras' ImageDataGenerator names them."""

    rotation: float = Field(0.0, ge=0, le=180, description="degrees, uniform in [-r, r]")
    shift: float = Field(0.0, ge=0, le=1, description="share of the side, both directions")
    zoom: float = Field(0.0, ge=0, lt=1, description="factor uniform in [1-z, 1+z] per axis")
    shear: float = Field(0.0, ge=0, le=90, description="degrees, uniform in [-s, s]")
    horizontal_flip: bool = Field(False, description="mirrored left-right with probability 1/2")
    vertical_flip: bool = Field(False, description="mirrored up-down with probability 1/2")
    fill: Literal["nearest", "constant", "reflect"] = Field(
        "nearest", description="what fills the place that the picture was moved away from"
    )
    contrast: float = Field(0.0, ge=0, lt=1, description="factor uniform in [1-c, 1+c]")
    brightness: float = Field(0.0, ge=0, lt=1, description="offset uniform in [-b, b] of 255")
    erase: float = Field(
        0.0, ge=0, le=1, description="probability that a rectangle of 2-15% is filled with one gray"
    )
    resolution: float = Field(
        0.0, ge=0, le=1, description="probability of sampling down to 35-90% and up again"
    )
    blur: float = Field(0.0, ge=0, le=1, description="probability of blurring or sharpening")
    bias_field: float = Field(
        0.0, ge=0, le=1, description="probability of a smooth multiplicative field, as of coils"
    )
    gamma: float = Field(
        0.0, ge=0, le=1, description="probability of a power law, exponent exp(-0.5) to exp(0.5)"
    )
    noise: float = Field(
        0.0, ge=0, le=1, description="probability of Gaussian noise, sigma 0.5-6% of the range"
    )
    background: float = Field(
        0.0, ge=0, le=1, description="probability of a gray instead of a black background"
    )
    invert: float = Field(0.0, ge=0, le=1, description="probability of inverted grays")
    sequence: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of a random curve of grays that keeps air dark, as of another "
        "sequence",
    )
    jpeg: float = Field(
        0.0, ge=0, le=1, description="probability of JPEG compression, quality 25-95"
    )


class LesionSection(Section):
    """Tumors drawn into scans without one, and taken out of scans with one, in training only.

    Both kinds of scans then come from the same sources, which else decide. Where no class is one
    without a tumor (data.negative_classes), nothing is changed. Transplanting and healing need
    scans whose tumor is known (--truth).
    """

    draw: float = Field(
        0.0, ge=0, le=1, description="probability that a scan without a tumor gets a drawn one"
    )
    transplant: float = Field(
        0.0, ge=0, le=1, description="else, that it gets the tumor of another training scan"
    )
    heal: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a known tumor off the midline is covered by the other half",
    )
    repeat: int = Field(
        1,
        ge=1,
        description="how often a scan without a tumor is shown per epoch, each time changed",
    )

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return bool(self.draw or self.transplant or self.heal or self.repeat > 1)


class ModelSection(Section):
    """Backbone and head."""

    backbone: str = Field("mobilenetv2_100", description="a timm name, 'cnn-3conv' or 'small-cnn'")
    head: Head = Field("linear", description="what follows the last feature map")
    hidden: int = Field(128, ge=1, description="units of the dense layer of mlp and flatten")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the last layer")
    output: Output = Field("auto", description="sigmoid has one unit for two classes")
    neck: Neck = Field(
        "none", description="topdown: the last map refined by earlier stages, for finer heatmaps"
    )
    neck_stride: int = Field(8, ge=2, description="input pixels per cell of the refined map")
    neck_channels: int = Field(128, ge=8, description="channels of the refined map")
    gate: bool = Field(
        False,
        description="a gate on each cell of the neck's map, which --truth teaches to open on "
        "tumors: elsewhere the map, and with it every heatmap, is near zero",
    )
    pooling: Pooling = Field(
        "mean",
        description="from cells to the picture, linear heads only; lse (log-sum-exp): a few cells "
        "with strong evidence decide, as a small tumor should",
    )
    normalization: Literal["weights", "unit"] = Field(
        "weights", description="mean and std of the pretrained weights, or only 1/255"
    )


class StageSection(Section):
    """Some epochs with one set of trainable layers."""

    name: str
    epochs: int = Field(ge=1)
    lr_scale: float = Field(1.0, gt=0, description="factor on optimizer.lr")
    train: Layers = Field(
        "all",
        description="what learns besides the head: 'all', 'head' (nothing), the last N layers of "
        "the backbone, or names of its modules (blocks.6) and patterns (blocks.[56].*, *.bn3)",
    )
    image_size: int | None = Field(
        None, ge=32, le=2048, description="side in this stage; none: data.image_size, as later on"
    )


class GuidanceSection(Section):
    """Where the evidence should lie: losses on the cells of scans whose tumor is known (--truth).

    What learns where tumors are is the gate of the neck, or without one the evidence of each cell,
    e_c = W_c . A, whose ReLU is Grad-CAM's map. Scans of negative classes count as known: no tumor
    anywhere. Positive scans without truth take no part; where fewer than a tenth of the tumors are
    known, `somewhere` is asked of them.
    """

    weight: float = Field(1.0, ge=0, description="factor on all of guidance; 0: none")
    outside: float = Field(
        4.0, ge=0, description="binary cross-entropy of the cells outside, against those inside"
    )
    overlap: float = Field(0.5, ge=0, description="soft Dice loss of what is shown and the tumor")
    mass: float = Field(
        0.0, ge=0, description="minus log of the share of the class's evidence inside the tumor"
    )
    somewhere: float = Field(
        0.0,
        ge=0,
        description="without --truth, of positive scans: some cells show a tumor, most do not",
    )


class OptimizerSection(Section):
    """The optimizer of all stages."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    backbone_lr_scale: float = Field(
        1.0, gt=0, description="factor on the backbone's rate against the head's"
    )
    clip_norm: float | None = Field(None, gt=0, description="gradient norm; none: not clipped")
    average: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is kept"
    )
    accumulate: int = Field(1, ge=1, description="steps whose gradients are added up")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class ScheduleSection(Section):
    """Learning rate over the epochs of one stage, and when to stop."""

    kind: Literal["plateau", "cosine", "constant"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0, description="linear, cosine only")
    patience: int = Field(2, ge=0, description="epochs without a lower validation loss")
    factor: float = Field(0.5, gt=0, lt=1)
    min_lr: float = Field(1e-7, ge=0)
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without improvement before the stage ends"
    )


class PublishedSection(Section):
    """Figures of the source that the recipe reproduces; they change nothing."""

    phase: str = Field(description="which of its figures: after frozen, validation, ...")
    accuracy: float | None = Field(None, ge=0, le=1)
    precision: float | None = Field(None, ge=0, le=1)
    recall: float | None = Field(None, ge=0, le=1)
    f1: float | None = Field(None, ge=0, le=1)
    classes: tuple[str, ...] = Field(
        (), description="of the source; the figures are shown next to runs on these classes only"
    )
    note: str = ""


class Recipe(Section):
    """One reference system: data, model and schedule."""

    name: str
    description: str
    seed: int = Field(0, ge=0)
    class_weights: Literal["balanced", "none"] = "none"
    precision: Precision = Field(
        "auto", description="auto: bf16 autocast where the hardware gains, else fp32"
    )
    monitor: Literal["val_loss", "val_balanced_accuracy", "epoch"] = Field(
        "val_loss", description="what chooses the weights that are kept; epoch: the last ones"
    )
    threshold_by: str = Field(
        "f1",
        coerce_numbers_to_str=True,  # --set threshold_by=0.5
        description="of the tumor decision, on validation: 'f1', 'youden', or 'sensitivity >= "
        "0.95', the most specificity that leaves so much; or the threshold itself, as '0.5'",
    )
    set_coverage: float = Field(
        0.9, gt=0.5, lt=1, description="coverage of the prediction sets, in each class"
    )
    sync_batchnorm: bool = Field(False, description="statistics over all workers; GPUs only")
    keep_checkpoints: int = Field(
        2, ge=1, description="best checkpoints by 'monitor' that are kept, and the latest"
    )
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    lesions: LesionSection = LesionSection()
    model: ModelSection = ModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    guidance: GuidanceSection = GuidanceSection()
    schedule: ScheduleSection = ScheduleSection()
    stages: tuple[StageSection, ...]
    published: tuple[PublishedSection, ...] = ()

    @field_validator("threshold_by")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        if not _THRESHOLD_RULE.fullmatch(rule):
            raise ValueError("use 'f1', 'youden', 'sensitivity >= 0.95' or a threshold as '0.5'")
        return rule

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        if not self.stages:
            raise ValueError("at least one [[stages]] table is needed")
        names = [stage.name for stage in self.stages]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two [[stages]] have the name '{twice[0]}': give each its own")
        if self.monitor == "epoch" and self.schedule.early_stopping is not None:
            raise ValueError("monitor 'epoch' keeps the last weights: leave early_stopping out")
        return self
