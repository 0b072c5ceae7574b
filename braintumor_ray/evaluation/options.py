"""How a bundle is evaluated."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from braintumor_ray.choices import CamClass
from braintumor_ray.errors import UsageError
from braintumor_ray.options import (
    FIRST,
    CamClassOption,
    Device,
    EngineOption,
    MadeOf,
    Option,
    PrecisionOption,
    TtaOption,
)

if TYPE_CHECKING:
    from braintumor_ray.decode.types import DecodeLimits
    from braintumor_ray.evaluation.evaluated import Evaluated
    from braintumor_ray.localization.truth import TruthIndex
    from braintumor_ray.predict.predictor import Predictor

Section: TypeAlias = "Mapping[str, Any] | Callable[[Predictor, Evaluated], Mapping[str, Any]]"
REPORT, MEASURE, CALIBRATION = "Report", "Measurement", "Calibration"


@dataclass(frozen=True)
class SectionChoice:
    """Further summaries, by file or by name."""

    PANEL: ClassVar = REPORT

    section: Annotated[
        tuple[str, ...],
        Option(
            "A further summary for metrics.json and the report; may be repeated.", "NAME=FILE.json"
        ),
    ] = ()
    faithfulness: Annotated[
        int, Option("Scans on which faithfulness of the maps is measured.", panel=MEASURE, least=0)
    ] = 0

    def load(self) -> dict[str, Section]:
        """The sections by name.

        Raises:
            UsageError: a file is not JSON, or cannot be read.
        """
        sections: dict[str, Section] = dict(_read_section(text) for text in self.section)
        if self.faithfulness:
            from braintumor_ray.evaluation.heatmaps import faithfulness_section

            sections["faithfulness"] = faithfulness_section(self.faithfulness)
        return sections


def _read_section(text: str) -> tuple[str, Any]:
    name, _, path = text.partition("=")
    try:
        return name, json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--section '{text}' is not NAME=FILE.json: {error}") from error


def _load_truth(location: str) -> "TruthIndex":
    from braintumor_ray.localization.truth import load_truth

    return load_truth(location)


@dataclass(frozen=True)
class QuantizeOptions:
    """How a bundle is quantized.

    Attributes:
        scans: for calibration, at most.
        seed: of their choice.
        classes: mapping of labels to classes; None: the bundle's own.
        precision: numbers of the layers that stay in float, as for `Predictor`.
        allow_drop: keep a result that differs too much.
    """

    scans: Annotated[int, Option("Calibration scans, at most.", least=1, panel=CALIBRATION)] = 300
    seed: Annotated[int, Option("Of their choice.", least=0, panel=CALIBRATION)] = 0
    classes: Annotated[
        str | None,
        Option("Labels to the bundle's classes, for --calibrate.", "MAPPING", panel=CALIBRATION),
    ] = None
    precision: PrecisionOption = "auto"
    allow_drop: Annotated[
        bool,
        Option("Keep it though accuracy drops by over 0.5 points, or maps correlate under 0.98."),
    ] = False


@dataclass(frozen=True)
class EvaluateOptions:
    """How a bundle is evaluated.

    Attributes:
        split: a value of the split column, or 'all'.
        split_column: the catalog's column of splits.
        classes: mapping of labels to classes; None: the bundle's own.
        device, precision, engine, batch_size: as for `Predictor`.
        tta: average the logits over mirrored and slightly turned views; threshold and temperature
            are the bundle's for views, else chosen on the validation scans.
        recalibrate: directory of a new bundle with temperature and threshold from validation.
        compare: a second bundle, run over the same scans.
        allow_leakage: measure scans that were trained on, and report it.
        n_boot: resamples for the intervals.
        seed: of resamples and of the choice of samples.
        subgroups: catalog columns for figures per value.
        heatmaps: summarize where the heatmaps' heat is.
        cam_class: whose map, as for `Predictor`.
        truth: where tumors are (`localization.truth.load_truth`): heatmaps are scored against
            them, and galleries show them.
        per_gallery: scans per gallery; 0: no galleries.
        audit: the content of audit.json, or its path, for the report.
        sections: further summaries by name for metrics.json and the report, or functions that
            make one from the predictor and what was evaluated.
        notes: sentences for the top of the report.
        report: write report.html.
        limits: what a file may cost.
    """

    PANEL: ClassVar = MEASURE

    split: Annotated[str, Option("Scans that are measured.", "test|val|train|all", panel=FIRST)] = (
        "test"
    )
    split_column: str = "split"
    classes: Annotated[
        str | None,
        Option(
            "Labels to the bundle's classes: glioma_tumor=glioma,no_tumor=none+healthy.",
            "MAPPING",
        ),
    ] = None
    device: Device = "auto"
    precision: PrecisionOption = "auto"
    engine: EngineOption = "torch"
    batch_size: int | None = None
    tta: TtaOption = False
    recalibrate: Annotated[
        Path | None,
        Option(
            "Write a new bundle, temperature and threshold from validation.",
            "BUNDLE",
            panel="Model",
        ),
    ] = None
    compare: Annotated[
        str | None,
        Option("A second bundle, on the same scans (McNemar, paired bootstrap).", "BUNDLE"),
    ] = None
    allow_leakage: Annotated[bool, Option("Measure scans that were trained on, and say so.")] = (
        False
    )
    n_boot: Annotated[int, Option("Resamples for the intervals.", least=1)] = 1000
    seed: int = 0
    subgroups: Annotated[
        tuple[str, ...],
        Option(
            "Catalog column for figures per value; may be repeated.",
            "COLUMN",
            flags=("--subgroup",),
        ),
    ] = ()
    heatmaps: bool = True
    cam_class: CamClass = "predicted"
    truth: Annotated[
        "TruthIndex | None",
        Option(
            "Tumor masks (folder), boxes (CSV, YOLO folder) or outlines (VIA).",
            "MASKS|BOXES|OUTLINES",
            parse=_load_truth,
        ),
    ] = None
    per_gallery: int = 6
    audit: Annotated[
        "Mapping[str, Any] | Path | None",
        Option("audit.json for the report.", "FILE", panel=REPORT, parse=Path),
    ] = None
    sections: Annotated[Mapping[str, Section], MadeOf(SectionChoice, SectionChoice.load)] = field(
        default_factory=dict
    )
    notes: tuple[str, ...] = ()
    report: bool = True
    limits: "DecodeLimits | None" = None

    @property
    def resampling(self) -> dict[str, int]:
        """Seed and number of resamples, as the functions that make intervals take them."""
        return {"seed": self.seed, "n_boot": self.n_boot}


@dataclass(frozen=True)
class ValidateOptions:
    """How a bundle is validated on data sets of other origins.

    Attributes:
        classes: mappings of labels, as text: one for every data set, or `NAME=` and one.
        truth: `NAME=` and where the tumors of that data set are drawn.
        device, precision, engine, batch_size: as for `Predictor`.
        cam_class: whose map is scored where there is truth.
        n_boot: resamples for the intervals.
        seed: of the resamples.
        limits: what a file may cost.
    """

    PANEL: ClassVar = MEASURE

    classes: Annotated[
        tuple[str, ...],
        Option(
            "Labels to classes, such as tumor=yes,no_tumor=no (tumor: any positive class); for all "
            "data sets, or for one as NAME=MAPPING. May be repeated.",
            "MAPPING",
        ),
    ] = ()
    truth: Annotated[
        tuple[str, ...],
        Option(
            "Tumor masks, boxes or outlines of a data set: its maps are scored. May be repeated.",
            "NAME=FILE",
        ),
    ] = ()
    device: Device = "auto"
    precision: PrecisionOption = "auto"
    engine: EngineOption = "torch"
    batch_size: int | None = None
    cam_class: CamClassOption = "predicted"
    n_boot: Annotated[int, Option("Resamples for the intervals.", least=1)] = 1000
    seed: Annotated[int, Option("Of the resamples.", "N", least=0)] = 0
    limits: "DecodeLimits | None" = None

    def mapping_of(self, data_set: str, names: Collection[str]) -> str | None:
        """The label mapping of one data set: its own, else that of all, else None.

        Args:
            data_set: its name.
            names: of all data sets.

        Raises:
            UsageError: two mappings for the same.
        """
        own, general = [], []
        for text in self.classes:
            name, separator, mapping = text.partition("=")
            if separator and name.strip() in names:
                own += [mapping] if name.strip() == data_set else []
            else:
                general.append(text)
        for found in (own, general):
            if len(found) > 1:
                raise UsageError(
                    f"--classes: data set '{data_set}' has two mappings, '{found[0]}' and "
                    f"'{found[1]}'; give one, or NAME=MAPPING for each data set"
                )
        return next(iter(own or general), None)

    def load_truth_of(self, names: Collection[str]) -> "dict[str, TruthIndex]":
        """Where the tumors are, by data set.

        Args:
            names: of all data sets.

        Raises:
            UsageError: not NAME=FILE, or no such data set.
            TruthError: it cannot be read.
        """
        files = named_values("--truth", self.truth, "FILE")
        for name in files:
            if name not in names:
                raise UsageError(
                    f"--truth '{name}={files[name]}': there is no --on {name}; the data sets are "
                    f"{', '.join(names)}"
                )
        return {name: _load_truth(file) for name, file in files.items()}


def named_values(option: str, texts: Sequence[str], kind: str) -> dict[str, str]:
    """`NAME=VALUE` texts of a repeated option as a mapping.

    Raises:
        UsageError: not such a text, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value or not re.fullmatch(r"[\w.-]+", name):
            raise UsageError(
                f"{option} '{text}' is not NAME={kind}; name it, such as other={value or name}"
            )
        if name in found:
            raise UsageError(
                f"{option}: '{name}' is given twice, as '{found[name]}' and '{value}'; "
                "give each its own name"
            )
        found[name] = value
    return found
