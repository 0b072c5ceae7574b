"""Tonight against the last nights: class shares, entropy and quarantine share.

A figure drifts when it is further from the last runs' than three standard errors. The error has
two parts that add in quadrature: how much the last runs differed among themselves (a prediction
interval for one more run), and how much chance alone moves a night of this size (binomial for
shares). So a small night must differ more, and an archive that varies by nature may vary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from braintumor_ray.predict.results import ResultsFolder

RUNS = 7
LEAST_RUNS = 3  # fewer have no spread to speak of
ERRORS = 3.0  # standard errors: a false alarm in some 100 to 300 nights, for each figure


@dataclass(frozen=True)
class Figure:
    """One figure of a night beside its usual range.

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
    manifests = (folder.manifest(number) for number in range(first, before))
    return [m["summary"] for m in manifests if m.get("summary", {}).get("scans")]


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
    limit = max(_mean(past), expected) + ERRORS * math.hypot(_spread(past), chance)
    return Figure("class shares", distance, 0.0, limit, distance, distance > limit)


def _entropy(tonight: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Figure:
    past = [float(run["mean_entropy"]) for run in earlier]
    deviations = [float(run.get("entropy_deviation") or 0.0) for run in earlier]
    chance = _mean(deviations) / math.sqrt(sum(tonight["classes"].values()))
    usual, value = _mean(past), float(tonight["mean_entropy"])
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
    usual, value = _mean(past), _quarantine_share(tonight)
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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation that one more value has around the mean of these."""
    mean, count = _mean(values), len(values)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return math.sqrt(variance * (1 + 1 / count))
