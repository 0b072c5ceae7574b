"""Rendering self-contained HTML pages from the package's templates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from braintumor_ray.pages.names import scan_name
from braintumor_ray.storage import write_atomically


def render(template: str, context: Mapping[str, Any]) -> str:
    """Render a template of `pages/templates`; values are escaped, none may be missing."""
    environment = Environment(
        loader=PackageLoader("braintumor_ray.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment.get_template(template).render(**context)


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Render and write a page, whole or not at all."""
    write_atomically(path, render(template, context).encode())


def number(value: float | int | None, digits: int = 3) -> str:
    """A metric as the pages show it: integers grouped, shares with `digits` decimals."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash, as tables show what is not defined
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}"


def interval(value: Mapping[str, Any]) -> str:
    """An interval's ends, such as '0.812 to 0.874', never broken; empty where there is none."""
    if value.get("low") is None or value.get("high") is None:
        return ""
    return f"{number(value['low'])}\u00a0to\u00a0{number(value['high'])}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "–" if value is None else f"{value:.1%}"  # noqa: RUF001


def plain(name: str) -> str:
    """A key as words: 'pixel_identical' becomes 'pixel identical'."""
    return str(name).replace("_", " ")


_HEADINGS = {
    "all": "all scans",
    "auroc": "AUROC",
    "average_drop": "average drop of the probability",
    "balanced_accuracy": "balanced accuracy",
    "box_iou": "box IoU",
    "cam_class": "class of the maps",
    "centre": "center of the picture (baseline)",
    "deletion_auc": "area under deletion",
    "dice": "Dice",
    "eigencam": "Eigen-CAM",
    "f1": "F1",
    "faithfulness": "Faithfulness of the maps",
    "flat": "flat maps",
    "gradcam": "Grad-CAM",
    "gradcam_pp": "Grad-CAM++",
    "heat_background": "heat in the background",
    "heat_by_region": "Where the heat of the maps is",
    "heat_inside": "heat inside the head",
    "heat_rim": "heat on the rim",
    "hirescam": "HiResCAM",
    "increase_in_confidence": "share with more confidence",
    "insertion_auc": "area under insertion",
    "iou": "IoU",
    "layercam": "LayerCAM",
    "localisation": "Maps against drawn tumors",
    "looks_at_border": "more heat than area on rim or background",
    "macro_f1": "macro F1",
    "mass": "heat inside the tumor",
    "mean_mask_area": "mean area of the tumor",
    "n": "scans",
    "n_boot": "resamples",
    "n_groups": "groups",
    "on_average": "so on average",
    "phases": "Phases of training, on the test split",
    "pointing": "peak inside the tumor",
    "random": "random map (baseline)",
    "rank": "pixels ranked inside",
    "regions": "regions",
    "whole_head": "whole head (baseline)",
    "xgradcam": "XGrad-CAM",
    "youden": "Youden's index",
}


def breakable(text: object) -> Markup:
    """A path or a name that may be broken after its slashes and underscores."""
    return Markup(str(escape(text)).replace("/", "/<wbr>").replace("_", "_<wbr>"))


def heading(name: str) -> str:
    """A key of metrics.json as people call it; others lose their underscores."""
    return _HEADINGS.get(name, plain(name))


_FILTERS: dict[str, Callable[..., str]] = {
    "scan_name": scan_name,
    "number": number,
    "interval": interval,
    "percent": percent,
    "plain": plain,
    "heading": heading,
    "breakable": breakable,
}
