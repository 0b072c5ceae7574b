"""A night's verdict: is the folder whole, are too many scans unreadable, does anything drift?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from statistics import fmean, stdev
from typing import Any

from braintumor_ray.predict.results import JUDGED, MANIFESTS, ResultsFolder, results_folder
from braintumor_ray.predict.shift import Shift
from braintumor_ray.scoring.verify import verify

RUNS = 7
LEAST_RUNS = 3  # fewer have no spread to speak of
ERRORS = 3.0  # standard errors: a false alarm in some 100 to 300 nights, for each figure


@dataclass(frozen=True)
class Figure:
    """One figure of a night and its usual range.

    Attributes:
        name: what it is.
        value: tonight's; None where there was nothing to compute it from.
        usual: mean of the last runs.
        limit: largest distance from `usual` that is not drift.
        distance: from `usual`; for class shares the total variation distance, 0 to 1.
        drifts: whether it is further away than the limit.
    """

    name: str
    value: float | None
    usual: float
    limit: float
    distance: float
    drifts: bool


@dataclass(frozen=True)
class Comparison:
    """Tonight against the last runs.

    Attributes:
        runs: generations compared with; fewer than three: there are no figures.
        figures: class shares, entropy, quarantine share.
        shares: class -> (tonight, last runs).
    """

    runs: list[int]
    figures: list[Figure] = field(default_factory=list)
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def drifts(self) -> list[Figure]:
        """The figures that drift."""
        return [figure for figure in self.figures if figure.drifts]


def last_summaries(folder: ResultsFolder, before: int, runs: int = RUNS) -> list[dict[str, Any]]:
    """Summaries of the last runs before a generation, oldest first.

    Reads only as many manifests as there are runs.
    """
    first = max(1, before - runs)
    kept = (folder.run(number) for number in range(first, before))
    return [run["summary"] for run in kept if run.get("summary", {}).get("scans")]


def compare(tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare a run's summary with those of the last runs (`summary.Summary` as dictionaries)."""
    runs = [int(summary["generation"]) for summary in earlier]
    if len(earlier) < LEAST_RUNS:
        return Comparison(runs)
    figures = [_quarantine(tonight, earlier)]
    scored = [summary for summary in earlier if summary["classes"]]
    if not tonight["classes"] or len(scored) < LEAST_RUNS:
        return Comparison(runs, figures)
    usual = _pooled(scored)
    own = _shares(tonight["classes"])
    shares = {name: (own.get(name, 0.0), usual.get(name, 0.0)) for name in sorted({*own, *usual})}
    figures += [_classes(tonight, scored, usual), _entropy(tonight, scored)]
    return Comparison(runs, figures, shares)


def total_variation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Half the sum of absolute differences of two distributions, 0 to 1."""
    names = {*one, *other}
    return 0.5 * sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in names)


def _classes(
    tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], usual: Mapping[str, float]
) -> Figure:
    distance = total_variation(_shares(tonight["classes"]), usual)
    # Each run against the others, as tonight's is against all of them.
    past = [
        total_variation(_shares(run["classes"]), _pooled([r for r in earlier if r is not run]))
        for run in earlier
    ]
    count = sum(tonight["classes"].values())
    errors = sum(math.sqrt(p * (1 - p) / count) for p in usual.values())
    # Half a sum of absolute normal deviates: its mean, and at most this deviation.
    expected = 0.5 * math.sqrt(2 / math.pi) * errors
    chance = 0.5 * math.sqrt(1 - 2 / math.pi) * errors
    limit = max(fmean(past), expected) + ERRORS * math.hypot(_spread(past), chance)
    return Figure("class shares", distance, 0.0, limit, distance, distance > limit)


def _entropy(tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Figure:
    past = [float(run["mean_entropy"]) for run in earlier]
    deviations = [float(run.get("entropy_deviation") or 0.0) for run in earlier]
    chance = fmean(deviations) / math.sqrt(sum(tonight["classes"].values()))
    usual, value = fmean(past), float(tonight["mean_entropy"])
    limit = ERRORS * math.hypot(_spread(past), chance)
    distance = abs(value - usual)
    return Figure("mean entropy", value, usual, limit, distance, distance > limit)


def _quarantine(tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Figure:
    """Only more of it is drift."""
    past = [_quarantine_share(run) for run in earlier]
    scans = sum(int(run["scans"]) for run in earlier)
    bad = sum(int(run["status"].get("quarantined", 0)) for run in earlier)
    share = (bad + 1) / (scans + 2)  # Laplace: a clean past does not make one bad file an alarm
    chance = math.sqrt(share * (1 - share) / tonight["scans"])
    usual, value = fmean(past), _quarantine_share(tonight)
    one_file = 1 / tonight["scans"]
    limit = max(ERRORS * math.hypot(_spread(past), chance), one_file)
    distance = value - usual
    return Figure("quarantine share", value, usual, limit, abs(distance), distance > limit)


def _quarantine_share(summary: Mapping[str, Any]) -> float:
    return float(summary["status"].get("quarantined", 0)) / float(summary["scans"])


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def _pooled(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    counts: dict[str, int] = {}
    for summary in summaries:
        for name, count in summary["classes"].items():
            counts[name] = counts.get(name, 0) + count
    return _shares(counts)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation that one more value has around the mean of these."""
    return stdev(values) * math.sqrt(1 + 1 / len(values))


@dataclass(frozen=True)
class Night:
    """What to make of a run.

    Attributes:
        verified: scans that `verify` looked at.
        comparison: the newest judged run and those before it; None where none was judged.
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
    """Verify a results folder and compare what was scored with the runs before it.

    Tonight's run is judged, and each one before it that was committed and never judged because
    its process ended in between. The verdict on each is kept in `judged/`, so that it is given
    once. Without any verdict (a folder of an earlier version, or a first night that was killed)
    only the newest run before tonight's is caught up on.

    Args:
        results: the folder.
        summary: of the run that has just ended, as `summary.Summary`.
        max_quarantine_fraction: more unreadable scans do not pass.
        newest: verify the rows of at least so many runs; None: of all.
    """
    folder = results_folder(results)
    waiting = _unjudged(folder, summary)
    # Rows that were compacted have been compared then; a night without new ones reads none.
    runs = None if newest is None else max(newest, len(waiting))
    found = verify(results, runs, compacted=newest is None)
    night = Night(found.scans, None, [f"verify: {fault}" for fault in found.differences])
    if not night.gates:
        night.report.append(f"verified: {found.scans} scans, each with one current row")
    for run in waiting:
        late = run["generation"] != summary["generation"]
        comparison, gates = _verdict(folder, run, max_quarantine_fraction)
        night = replace(night, comparison=comparison)
        night.gates.extend(f"generation {run['generation']}: {g}" if late else g for g in gates)
        if late:
            night.report.append(f"generation {run['generation']} had not been judged:")
        night.report.extend(_lines(comparison))
        _keep(folder, run, gates)
    return night


def _unjudged(folder: ResultsFolder, tonight: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Summaries of runs that await their verdict, oldest first; tonight's is the last."""
    committed = _numbers(folder, MANIFESTS) or [0]  # a compacted one is of several runs
    earlier = [n for n in range(1, committed[-1] + 1) if n != tonight["generation"]]
    judged = _numbers(folder, JUDGED) or earlier[:-1] or [0]
    late = [number for number in earlier if number > judged[-1]]
    runs: list[Mapping[str, Any]] = [folder.run(n).get("summary", {}) for n in late]
    if tonight["generation"] is not None:
        runs.append(tonight)
    return [run for run in runs if run.get("scans")]


def _numbers(folder: ResultsFolder, parent: str) -> list[int]:
    names = (name.removesuffix(".json") for name in folder.names(parent))
    return [int(name) for name in names if name.isdigit()]


def _verdict(
    folder: ResultsFolder, run: Mapping[str, Any], max_quarantine_fraction: float
) -> tuple[Comparison, list[str]]:
    gates = []
    share = _quarantine_share(run)
    if share > max_quarantine_fraction:
        gates.append(
            f"{share:.1%} of the scans are quarantined, over --max-quarantine-fraction "
            f"{max_quarantine_fraction}; look at their reasons"
        )
    comparison = compare(run, last_summaries(folder, int(run["generation"])))
    gates += [f"drift: {_drift(figure)}" for figure in comparison.drifts]
    shift = Shift.of_run(run)
    if shift is not None and shift.differs:
        gates.append(f"shift: {shift.sentence()}")
    return comparison, gates


def _keep(folder: ResultsFolder, run: Mapping[str, Any], gates: list[str]) -> None:
    now = datetime.now(timezone.utc).isoformat()
    record = {"generation": run["generation"], "judged_at": now, "gates": gates}
    folder.write_json(record, JUDGED, f"{run['generation']:06d}.json")


def _lines(comparison: Comparison) -> list[str]:
    if not comparison.figures:
        return [f"too few earlier runs to compare with ({len(comparison.runs)} of at least 3)"]
    lines = [f"compared with the last {len(comparison.runs)} runs:"]
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
