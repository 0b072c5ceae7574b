"""What people see of an external validation: one table, on the terminal and on a page."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from braintumor_ray.evaluation import plots
from braintumor_ray.pages.pages import interval, number, percent, write_page
from braintumor_ray.pages.pictures import svg_uri

DASH = number(None)
Figures = Mapping[str, Any]


def figure_table(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The table: a title and a text per data set in each row; rows without any figure are left out.

    Args:
        found: the content of validation.json.
    """
    sets = list(found["sets"].values())
    rows = [(title, [cell(one) for one in sets]) for title, cell in _cells(found)]
    return [(title, cells) for title, cells in rows if any(cell != DASH for cell in cells)]


def terminal_lines(found: Mapping[str, Any]) -> str:
    """The table as text, and below it what a reader must know."""
    table = [("", list(found["sets"])), *figure_table(found)]
    first = max(len(title) for title, _ in table)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in table), strict=True)]
    lines = [
        title.ljust(first)
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for title, cells in table
    ]
    note = found["trained_on"]["note"]
    notes = [f"note: {note}"] if note else []
    notes += [f"{name}: {text}" for name, one in found["sets"].items() for text in one["notes"]]
    return "\n".join([*lines, *notes])


def write_validation_page(path: Path, found: Mapping[str, Any]) -> None:
    """Write validation.html, self-contained.

    Args:
        path: of the page; replaced if it is there.
        found: the content of validation.json.
    """
    context = {
        "title": "External validation",
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "v": found,
        "table": figure_table(found),
        "method_name": method_name,
        "figures": {name: _figures(one) for name, one in found["sets"].items()},
    }
    write_page(path, "validation.html.j2", context)


def _cells(found: Mapping[str, Any]) -> Iterable[tuple[str, Callable[[Figures], str]]]:
    threshold = number(float(found["bundle"]["threshold"]))
    yield "scans measured", lambda one: number(one["counts"]["measured"])
    yield "with tumor, without", _kinds
    yield "copies of training scans left out", _copies
    yield "other scans left out", _left_out
    yield "AUROC, tumor", lambda one: _with_interval(one["decision"], "auroc")
    yield f"sensitivity at {threshold}", lambda one: _with_interval(one["decision"], "sensitivity")
    yield f"specificity at {threshold}", lambda one: _with_interval(one["decision"], "specificity")
    yield "accuracy, tumor or none", lambda one: _with_interval(one["decision"], "accuracy")
    yield "accuracy, classes", lambda one: _by_class(one, "accuracy")
    yield "balanced accuracy, classes", lambda one: _by_class(one, "balanced_accuracy")
    yield "prediction sets that hold the class", _coverage
    yield "  of the class with the fewest", _least_covered
    yield "best threshold here (a bound, not used)", _best
    yield "  sensitivity, specificity there", _best_point
    yield "  balanced accuracy lost", lambda one: number(_lost(one))
    yield "ECE, tumor", lambda one: number(one["calibration"]["ece"])
    yield "Brier score, tumor", lambda one: number(one["calibration"]["brier"])
    yield "called out of domain", lambda one: percent(one["out_of_domain"]["share"])
    yield "the set as a whole", _shift
    for measure, title in (("pointing", "pointing game"), ("mass", "heat in the tumor")):
        for method in _methods(found):
            yield f"{title}, {method_name(method)}", _map_score(method, measure)
    for level in ("studies", "patients"):
        yield level, lambda one, level=level: number((one[level] or {}).get("rows"))  # type: ignore[misc]
        for how in ("max", "mean"):
            for name in ("auroc", "sensitivity", "specificity"):
                yield f"  {name}, {how} of the slices", _rolled(level, how, name)


def _shift(one: Figures) -> str:
    shift = one["shift"]
    if shift is None:
        return "not known"
    word = "differs from training" if shift["differs"] else "as in training"
    return f"{word}: {number(shift['distance'])}, limit {number(shift['limit'])}"


def method_name(method: str) -> str:
    """A map or baseline as people name it."""
    known = {
        "gradcam": "Grad-CAM",
        "gradcam_pp": "Grad-CAM++",
        "centre": "picture's center",
        "random": "random map",
        "whole_head": "whole head",
    }
    return known.get(method, method)


def _methods(found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(m for one in found["sets"].values() for m in map_scores(one)))


def map_scores(one: Figures) -> Mapping[str, Any]:
    """Scores of all scans of a data set by method and baseline; empty where there are none."""
    scores: Mapping[str, Any] = (one["localization"] or {}).get("classes", {}).get("all", {})
    return scores


def _map_score(method: str, measure: str) -> Callable[[Figures], str]:
    def cell(one: Figures) -> str:
        score = map_scores(one).get(method)
        return DASH if score is None else _joined(score[measure]["estimate"], score[measure])

    return cell


def _rolled(level: str, how: str, name: str) -> Callable[[Figures], str]:
    def cell(one: Figures) -> str:
        figures = (one[level] or {}).get(how)
        return DASH if figures is None else _with_interval(figures, name)

    return cell


def _with_interval(figures: Figures, name: str) -> str:
    return _joined(figures[name], figures["intervals"][name])


def _joined(value: float | None, ends: Mapping[str, Any]) -> str:
    around = interval(ends).replace("\u00a0", " ")
    return f"{number(value)} ({around})" if around else number(value)


def _kinds(one: Figures) -> str:
    found = one["decision"]
    return f"{number(found['tp'] + found['fn'])}, {number(found['tn'] + found['fp'])}"


def _copies(one: Figures) -> str:
    counts = one["counts"]
    if counts["near_copies"] is None:
        return f"{number(counts['pixel_copies'])} (by pixels only)"
    near = number(counts["near_copies"])
    return f"{number(counts['pixel_copies'] + counts['near_copies'])} ({near} re-encoded)"


def _left_out(one: Figures) -> str:
    counts = one["counts"]
    kinds = {
        "unreadable": counts["quarantined"],
        "skipped": counts["skipped"],
        "unlabeled": counts["unlabeled"],
        "not mapped": counts["unmapped"],
    }
    return ", ".join(f"{number(n)} {kind}" for kind, n in kinds.items() if n) or "0"


def _by_class(one: Figures, name: str) -> str:
    return DASH if one["by_class"] is None else _with_interval(one["by_class"], name)


def _sets(one: Figures) -> Figures | None:
    return (one["by_class"] or {}).get("prediction_sets")


def _coverage(one: Figures) -> str:
    if (sets := _sets(one)) is None:
        return DASH
    return f"{_joined(sets['coverage']['estimate'], sets['coverage'])}, stated {sets['level']:g}"


def _least_covered(one: Figures) -> str:
    found = {
        name: row["coverage"]["estimate"]
        for name, row in (_sets(one) or {"per_class": {}})["per_class"].items()
        if row["scans"]
    }
    if not found:
        return DASH
    name = min(found, key=found.__getitem__)
    return f"{number(found[name])}, {name}"


def _best(one: Figures) -> str:
    return number(one["threshold_transfer"]["best"]["threshold"])


def _best_point(one: Figures) -> str:
    best = one["threshold_transfer"]["best"]
    if best["threshold"] is None:
        return DASH
    return f"{number(best['sensitivity'])}, {number(best['specificity'])}"


def _lost(one: Figures) -> float | None:
    lost: float | None = one["threshold_transfer"]["balanced_accuracy_lost"]
    return lost


def _figures(one: Figures) -> dict[str, str]:
    decision, calibration = one["decision"], one["calibration"]
    point = decision["sensitivity"], decision["specificity"]
    drawn = {
        "reliability": plots.reliability_figure(
            calibration["reliability"], calibration["ece"], "share with a tumor"
        )
    }
    if one["roc"]["fpr"]:
        drawn["roc"] = plots.roc_figure(one["roc"], decision["auroc"], point)
    if one["by_class"] is not None:
        matrix = one["by_class"]["confusion_matrix"]
        drawn["confusion"] = plots.confusion_figure(matrix, one["by_class"]["class_names"])
    return {name: svg_uri(svg) for name, svg in drawn.items()}
