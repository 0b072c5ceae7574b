"""A night's verdict: is the folder whole, are too many scans unreadable, does anything drift?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from braintumor_ray.predict.results import results_folder
from braintumor_ray.scoring.history import Comparison, Figure, compare, last_summaries
from braintumor_ray.scoring.verify import verify


@dataclass(frozen=True)
class Night:
    """What to make of a run.

    Attributes:
        verified: scans that `verify` looked at.
        comparison: tonight beside the last runs; None where nothing was scored.
        gates: what was not met, one sentence each; none: all is well.
        report: lines for people.
    """

    verified: int
    comparison: Comparison | None
    gates: list[str] = field(default_factory=list)
    report: list[str] = field(default_factory=list)


def judge(
    results: str, summary: Mapping[str, Any], max_quarantine_fraction: float, newest: int | None
) -> Night:
    """Verify a results folder and compare its newest run with the last ones.

    Args:
        results: the folder.
        summary: of the run that has just ended, as `summary.Summary`.
        max_quarantine_fraction: more unreadable scans do not pass.
        newest: verify the rows of so many runs; None: of all.
    """
    found = verify(results, newest)
    gates = [f"verify: {difference}" for difference in found.differences]
    report = [f"verified: {found.scans} scans, each with one current row"] if not gates else []
    if summary["generation"] is None:
        return Night(found.scans, None, gates, report)
    share = summary["status"].get("quarantined", 0) / summary["scans"]
    if share > max_quarantine_fraction:
        gates.append(
            f"{share:.1%} of the scans are quarantined, over --max-quarantine-fraction "
            f"{max_quarantine_fraction}; look at their reasons"
        )
    folder = results_folder(results)
    comparison = compare(summary, last_summaries(folder, int(summary["generation"])))
    gates += [f"drift: {_drift(figure)}" for figure in comparison.drifts]
    return Night(found.scans, comparison, gates, [*report, *_lines(comparison)])


def _lines(comparison: Comparison) -> list[str]:
    if not comparison.figures:
        return [f"too few earlier runs to compare with ({len(comparison.runs)} of at least 3)"]
    lines = [f"beside the last {len(comparison.runs)} runs:"]
    for figure in comparison.figures:
        mark = "DRIFTS" if figure.drifts else "as usual"
        value = "none" if figure.value is None else f"{figure.value:.4f}"
        lines.append(
            f"  {figure.name}: {value} (usual {figure.usual:.4f}, off by {figure.distance:.4f}, "
            f"limit {figure.limit:.4f}): {mark}"
        )
    for name, (tonight, usual) in comparison.shares.items():
        lines.append(f"  {name}: {tonight:.1%} (usual {usual:.1%})")
    return lines


def _drift(figure: Figure) -> str:
    return (
        f"{figure.name} differ from the last runs by {figure.distance:.4f}, more than "
        f"{figure.limit:.4f}; look at what is new before trusting tonight's rows"
    )
