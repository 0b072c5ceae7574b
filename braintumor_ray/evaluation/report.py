"""The report of an evaluation: one self-contained HTML page.

Every figure on the page is looked up in metrics.json by its path, which the HTML repeats
(`data-metric`), so that page and file cannot disagree.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from markdown_it import MarkdownIt
from markupsafe import Markup

from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.evaluation import plots
from braintumor_ray.evaluation.conclusions import conclusions
from braintumor_ray.evaluation.galleries import Gallery
from braintumor_ray.evaluation.leakage import describe_check
from braintumor_ray.metrics.verdicts import LIKELIEST, decision_rule
from braintumor_ray.pages.names import word_for_none
from braintumor_ray.pages.pages import heading, interval, number, write_page
from braintumor_ray.pages.pictures import jpeg_uri, load_pictures, svg_uri

SAMPLES = 6
_SAMPLE_SIZE = 160
_FEW_GROUPS = 30
_PHASE_COLUMNS = (
    "train_loss",
    "val_loss",
    "train_accuracy",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_precision",
    "val_recall",
)


@dataclass(frozen=True)
class ReportParts:
    """The content of a report.

    Attributes:
        metrics: the content of metrics.json.
        catalog: the whole catalog, with `split` where it has one.
        classes: class name per row of the catalog, None where it has none.
        card: the bundle's model card, Markdown.
        galleries: from `galleries.draw_galleries`.
        history: one mapping per epoch, as training writes it; may be empty.
        phases: rows of phases.json; may be empty.
        audit: the content of audit.json, or None.
        notes: sentences for the top of the page.
        seed: of the choice of samples.
        limits: what a file may cost.
    """

    metrics: Mapping[str, Any]
    catalog: pa.Table
    classes: Sequence[str | None]
    card: str
    galleries: Sequence[Gallery] = ()
    history: Sequence[Mapping[str, Any]] = ()
    phases: Sequence[Mapping[str, Any]] = ()
    audit: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    seed: int = 0
    limits: DecodeLimits | None = None


def write_report(path: Path, parts: ReportParts) -> None:
    """Write report.html; the scans shown as samples are read again.

    Args:
        path: of the page; replaced if it is there.
        parts: what goes into it.
    """
    context = {
        "title": "Evaluation report",
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "m": parts.metrics,
        "metric": _Lookup(parts.metrics),
        "conclusions": conclusions(parts.metrics),
        "warnings": [*parts.notes, *warnings(parts.metrics)],
        "splits": class_counts(parts.catalog, parts.classes),
        "samples": _samples(parts),
        "figures": _figures(parts),
        "curves": [svg_uri(svg) for svg in plots.history_figures(parts.history)],
        "phases": phases(parts.history),
        "phase_matrices": _phase_matrices(parts.phases),
        "audit": parts.audit,
        "sections": _sections(parts.metrics),
        "galleries": parts.galleries,
        "card_html": _as_html(parts.card),
    }
    write_page(path, "report.html.j2", context)


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What limits how far the figures can be trusted, in sentences."""
    counts, leaks = metrics["counts"], metrics["leakage"]
    binary_kinds = metrics["binary"]["sensitivity"], metrics["binary"]["specificity"]
    sentences = {
        f"{leaks['pixel_identical']} of {counts['rows']} scans were trained on, pixel for pixel: "
        "the figures are too good.": leaks["pixel_identical"],
        f"{leaks['near_identical']} scans are near copies of training scans: the figures are "
        "somewhat too good.": leaks["near_identical"],
        f"{leaks['same_patient']} scans are of patients who were trained on: the figures are too "
        "good.": leaks["same_patient"],
        "The scans that the bundle was trained on are not known here, so whether these were among "
        "them could not be checked.": not leaks["checked"],
        f"The scans were {describe_check(leaks)}.": describe_check(leaks),
        f"{counts['quarantined']} scans could not be read and are not in the figures.": counts[
            "quarantined"
        ],
        f"Only {metrics['n_groups']} independent groups of scans: the intervals are rough."
        "": metrics["n_groups"] < _FEW_GROUPS,
        "The scans are all of one kind (tumor or none), so some figures are not defined.": None
        in binary_kinds,
    }
    heat = metrics["sections"].get("heat_by_region", {})
    sentence = (
        "On average the skull's rim or the background holds more of the heatmaps' heat than of "
        "the picture's area: the network may judge by the head's outline."
    )
    sentences[sentence] = heat.get("on_average")
    return [sentence for sentence, applies in sentences.items() if applies]


def class_counts(catalog: pa.Table, classes: Sequence[str | None]) -> dict[str, dict[str, int]]:
    """Scans per split (rows) and class; scans in no split or class count as 'none'."""
    known = "split" in catalog.column_names
    given = catalog["split"].to_pylist() if known else [None] * catalog.num_rows
    no_split, no_class = word_for_none(given), word_for_none(classes)
    splits: list[str] = [split or no_split for split in given]
    order = {name: index for index, name in enumerate(("train", "val", "test"))}
    names = [*sorted({c for c in classes if c is not None}), *([None] if None in classes else [])]
    counts = Counter(zip(splits, classes, strict=True))
    return {
        split: {name or no_class: counts[split, name] for name in names}
        for split in sorted(set(splits), key=lambda split: (order.get(split, 9), split))
    }


def phases(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per training stage: epochs, learning rates, and its best validation epoch."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for entry in history:
        if "stage" in entry:
            stages.setdefault(str(entry["stage"]), []).append(entry)
    return [_phase(name, entries) for name, entries in stages.items()]


def _phase(name: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best = min(entries, key=lambda entry: entry.get("val_loss", np.inf))
    rates = [entry["lr"] for entry in entries if "lr" in entry]
    ends = dict.fromkeys(f"{rate:.1e}" for rate in rates[:1] + rates[-1:])
    return {
        "stage": name,
        "epochs": len(entries),
        "lr": " to ".join(ends),
        "best": {key: best.get(key) for key in _PHASE_COLUMNS},
    }


class _Lookup:
    """Figures of metrics.json as HTML, each marked with its path."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self._metrics = metrics

    def __call__(self, *path: str | int, digits: int = 3) -> Markup:
        value: Any = self._metrics
        for step in path:
            value = value[step]
        name = "/".join(str(step) for step in path)
        return Markup('<span data-metric="{}">{}</span>').format(name, self._text(value, digits))

    @staticmethod
    def _text(value: Any, digits: int) -> str:  # noqa: ANN401 - JSON
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping):
            ends = interval(value)
            return number(value["estimate"], digits) + (f" ({ends})" if ends else "")
        return number(value, digits)


def _as_html(markdown: str) -> Markup:
    """Markdown as HTML below a heading of level 2; tables scroll in a box of their own.

    Tags in it are escaped, and pictures from elsewhere are left out.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = reader.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 2)}"
    html = reader.renderer.render(tokens, reader.options, {})
    html = html.replace("<table>", '<div class="wide" tabindex="0"><table>')
    return Markup(html.replace("</table>", "</table></div>"))


def _sections(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "facts": section_facts(summary, ("sections", name)),
            "tables": section_tables(summary, ("sections", name)),
        }
        for name, summary in metrics["sections"].items()
        if not is_leaf(summary)
    ]


def _samples(parts: ReportParts) -> dict[str, list[str]]:
    """Six pictures per class, drawn with the seed from the whole catalog."""
    rng = np.random.default_rng(parts.seed)
    classes = np.array([name or "" for name in parts.classes], dtype=object)
    samples = {}
    for name in sorted({name for name in parts.classes if name is not None}):
        # Twice as many as are shown: some may be unreadable.
        rows = rng.permutation(np.flatnonzero(classes == name))[: 2 * SAMPLES]
        loaded = load_pictures(parts.catalog.take(pa.array(rows)), _SAMPLE_SIZE, parts.limits)
        pictures = [picture for picture in loaded if picture is not None]
        samples[name] = [jpeg_uri(picture) for picture in pictures[:SAMPLES]]
    return samples


def _figures(parts: ReportParts) -> dict[str, str]:
    m, binary, curves = parts.metrics, parts.metrics["binary"], parts.metrics["curves"]
    calibration, sensitivity = m["calibration"], binary["sensitivity"]
    roc_point, pr_point = (sensitivity, binary["specificity"]), (sensitivity, binary["precision"])
    share = (binary["tp"] + binary["fn"]) / m["n"]
    drawn = {
        "confusion": plots.confusion_figure(m["confusion_matrix"], m["class_names"]),
        "decision": plots.confusion_figure(
            [[binary["tn"], binary["fp"]], [binary["fn"], binary["tp"]]],
            ("no tumor", "tumor"),
            decision_rule(binary["threshold"]),
            "Decision at the threshold",
        ),
        "roc": plots.roc_figure(curves["roc"], binary["auroc"], roc_point),
        "pr": plots.pr_figure(curves["pr"], binary["average_precision"], pr_point, share),
        "reliability": plots.reliability_figure(
            calibration["reliability"], calibration["ece"], f"share whose {LIKELIEST} is right"
        ),
        "binary_reliability": plots.reliability_figure(
            calibration["binary_reliability"], calibration["binary_ece"], "share with a tumor"
        ),
    }
    if m["threshold_sweep"]["threshold"]:
        drawn["sweep"] = plots.sweep_figure(m["threshold_sweep"], m["operating_points"])
    sizes = _sizes(parts)
    if sizes:
        drawn["sizes"] = plots.size_figure(sizes)
    return {name: svg_uri(svg) for name, svg in drawn.items()}


def _phase_matrices(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A confusion matrix per phase of phases.json; runs of before name no rule."""
    return [
        {
            "phase": str(row["phase"]),
            "figure": svg_uri(
                plots.confusion_figure(
                    row["confusion_matrix"],
                    row["class_names"],
                    str(row.get("rule", LIKELIEST)),
                    str(row["phase"]).capitalize(),
                )
            ),
        }
        for row in rows
    ]


def _sizes(parts: ReportParts) -> dict[str, list[float]]:
    """Square root of the pixel count per class, of scans whose header was read."""
    sizes: dict[str, list[float]] = {}
    columns = (parts.catalog[name].to_pylist() for name in ("height", "width"))
    for name, height, width in zip(parts.classes, *columns, strict=True):
        if name is not None and height and width:
            sizes.setdefault(name, []).append(float(np.sqrt(height * width)))
    return dict(sorted(sizes.items()))


Keys = tuple[str, ...]


@dataclass
class Table:
    """A table of a summary: a row per key, a column per key below.

    Attributes:
        caption: its place in the summary, without the summary's name.
        columns: names of the columns.
        rows: per row its name and the path of each cell in the summary; None where there is none.
    """

    caption: str
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[Keys | None]]] = field(default_factory=list)


def section_tables(summary: Mapping[str, Any], path: Keys = ()) -> list[Table]:
    """Cut a nested summary into tables.

    A mapping whose values are mappings of leaves becomes a table; deeper ones are gone through.
    A leaf is a number, a text, None, or an interval (a mapping with `estimate`). Lists are left
    to the JSON file.
    """
    branches = {
        name: value
        for name, value in summary.items()
        if isinstance(value, Mapping) and not is_leaf(value) and value
    }
    rows = {name: row for name, row in branches.items() if any(map(is_leaf, row.values()))}
    tables = [_table(rows, path)] if rows else []
    for name, value in branches.items():
        tables += section_tables(value, (*path, name))
    return tables


def section_facts(summary: Mapping[str, Any], path: Keys = ()) -> list[tuple[str, Keys]]:
    """The leaves at the top of a summary, as names and paths: seed, number of scans, ..."""
    return [(name, (*path, name)) for name, value in summary.items() if is_leaf(value)]


def is_leaf(value: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether a JSON value is shown in one cell."""
    if isinstance(value, Mapping):
        return "estimate" in value
    return value is None or isinstance(value, str | int | float)


def _table(rows: Mapping[str, Mapping[str, Any]], path: Keys) -> Table:
    columns: dict[str, None] = {}  # a set that keeps its order
    for value in rows.values():
        columns |= dict.fromkeys(name for name, item in value.items() if is_leaf(item))
    below = path[2:]  # the page has a heading for ("sections", name)
    table = Table(": ".join(heading(name) for name in below), list(columns))
    for name, value in rows.items():
        known = {column for column in columns if column in value and is_leaf(value[column])}
        cells = [(*path, name, column) if column in known else None for column in columns]
        table.rows.append((name, cells))
    return table
