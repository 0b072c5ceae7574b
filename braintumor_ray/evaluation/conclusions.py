"""What a reader should conclude from an evaluation: three plain sentences, made of its figures."""

from collections.abc import Mapping
from typing import Any

from braintumor_ray.explain.overlay import METHOD_LABELS
from braintumor_ray.metrics.verdicts import chance_note, found_and_missed

_GOOD = 0.95  # recall above which no class is called weak
_NAMED = 3  # classes in a sentence


def conclusions(metrics: Mapping[str, Any]) -> list[str]:
    """What the bundle can do, where it fails, and whether its maps may be used.

    Args:
        metrics: the content of metrics.json; sections that are not there are not spoken of.
    """
    return [what_it_can(metrics), where_it_fails(metrics), about_maps(metrics["sections"])]


def what_it_can(metrics: Mapping[str, Any]) -> str:
    """The tumor decision and the likeliest class, in counts; or that both are guesses."""
    at_chance = chance_note(metrics["confusion_matrix"])
    if at_chance:
        return f"{at_chance[0].upper()}{at_chance[1:]}."
    binary, counted = metrics["binary"], found_and_missed(metrics["binary"])
    hits = sum(row[index] for index, row in enumerate(metrics["confusion_matrix"]))
    return (
        f"Decision at the threshold {binary['threshold']:.3f}: {counted}. The likeliest "
        f"class is right for {hits} of {metrics['n']} scans ({metrics['accuracy']:.1%})."
    )


def where_it_fails(metrics: Mapping[str, Any]) -> str:
    """The class that is recognized least, and for what it is taken."""
    rows = {n: row for n, row in metrics["per_class"].items() if row["recall"] is not None}
    if not rows:
        return "Which class is recognized least is not defined on these scans."
    name = min(rows, key=lambda each: rows[each]["recall"])
    recall = rows[name]["recall"]
    if recall >= _GOOD:
        return (
            f"No class stays below a recall of {_GOOD:.0%}; the lowest is {name} with {recall:.1%}."
        )
    names, index = metrics["class_names"], metrics["class_names"].index(name)
    taken = list(metrics["confusion_matrix"][index])
    taken[index] = -1
    other = max(range(len(taken)), key=taken.__getitem__)
    return (
        f"It is weakest on {name}: the likeliest class is right for {recall:.1%} of its "
        f"{rows[name]['support']} scans, and {names[other]} for {taken[other]} of them."
    )


def about_maps(sections: Mapping[str, Any]) -> str:
    """Whether the maps may be taken for where tumors are."""
    located = _located(sections.get("localisation") or {})
    elsewhere = border_finding(sections.get("heat_by_region") or {})
    if located:
        return f"{located}{f' But {elsewhere}.' if elsewhere else ''}"
    unknown = "Whether the maps show tumors was not measured (--truth): do not read them so"
    return f"{unknown}; {elsewhere}." if elsewhere else f"{unknown}."


def border_finding(heat: Mapping[str, Any]) -> str:
    """In how many scans the skull's rim or the background holds more heat than area; or empty.

    Args:
        heat: the section `heat_by_region`, with its table by true class where it has one.
    """
    if not heat.get("looks_at_border"):
        return ""
    rows = {n: row for n, row in (heat.get("classes") or {}).items() if row["looks_at_border"]}
    order = sorted(rows, key=lambda name: -rows[name]["looks_at_border"] / rows[name]["scans"])
    named = [f"{rows[n]['looks_at_border']} of {rows[n]['scans']} {n} scans" for n in order]
    if len(named) > _NAMED:
        named[_NAMED:] = [f"and scans of {len(named) - _NAMED} more classes,"]
    whose = ", ".join(named) or f"{heat['looks_at_border']} of {heat['scans']} scans"
    return (
        f"in {whose} the skull's rim or the background holds more of the map's heat than of the "
        "picture's area"
    )


def _located(summary: Mapping[str, Any]) -> str:
    """How often a map's peak is in the tumor, against the best baseline; empty if not measured."""
    rows = (summary.get("classes") or {}).get("all")
    if not rows:
        return ""
    baselines = [name for name in rows if name in summary.get("baselines", ())]
    methods = [name for name in rows if name not in baselines]
    known = [n for n in rows if _peak(rows[n]) is not None]
    if not set(known) & set(methods):
        return ""
    best = max(set(known) & set(methods), key=lambda name: float(_peak(rows[name]) or 0))
    bar = max((float(_peak(rows[name]) or 0) for name in baselines if name in known), default=0.0)
    low = rows[best]["pointing"].get("low")
    named = METHOD_LABELS.get(best, best)
    share = (
        f"the peak of {named} is inside the tumor in {_peak(rows[best]):.1%} of {rows[best]['n']}"
    )
    if low is None or low <= bar:
        return (
            f"The maps must not be taken for where a tumor is: {share} scans, no better than a map "
            f"that ignores the scan ({bar:.1%})."
        )
    return (
        f"The maps may be used as a hint where to look, not as an outline: {share} scans, and that "
        f"of a map that ignores the scan in {bar:.1%}."
    )


def _peak(row: Mapping[str, Any]) -> float | None:
    found = row.get("pointing")
    return found["estimate"] if isinstance(found, Mapping) else None
