"""Choice of the decision threshold; a scan is positive where ``score >= threshold``."""

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import MetricsError
from braintumor_ray.metrics.inputs import check_binary
from braintumor_ray.types import Bools, Floats

ThresholdRule = Literal["f1", "youden", "sensitivity_at_specificity", "specificity_at_sensitivity"]

_FLOOR = re.compile(r"sensitivity\s*>=\s*(\d*\.?\d+)")
_NUMBER = re.compile(r"0?\.\d+")

# Sums such as sensitivity + specificity - 1 differ in the last bits where they are equal.
TIE = 1e-12


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it achieves on the data it was chosen on; shares in [0, 1]."""

    threshold: float
    sensitivity: float
    specificity: float
    precision: float
    f1: float
    youden: float


def parse_rule(text: str) -> tuple[ThresholdRule, float]:
    """A rule as recipes write it, and its floor: 'f1', 'youden', or 'sensitivity >= 0.95'.

    The last one is `specificity_at_sensitivity`: the most specificity that leaves that much
    sensitivity.

    Raises:
        MetricsError: another text, or a floor that is not a share.
    """
    match = _FLOOR.fullmatch(text.strip())
    if match and 0 <= float(match[1]) <= 1:
        return "specificity_at_sensitivity", float(match[1])
    if text in ("f1", "youden"):
        return text, 0.0  # type: ignore[return-value]
    raise MetricsError(
        f"threshold_by '{text}' is unknown; use 'f1', 'youden', 'sensitivity >= 0.95' or '0.5'"
    )


def stated_threshold(text: str) -> float | None:
    """The threshold where a recipe states it ('0.5') and nothing is chosen; else None."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def threshold_by(text: str, truth: NDArray[Any], score: NDArray[Any]) -> float:
    """The threshold by a recipe's `threshold_by`: as stated, or chosen on these scans.

    Args:
        text: a number, or as `parse_rule` reads it.
        truth: bool or 0/1, (n,), both kinds present.
        score: finite, float (n,).

    Raises:
        MetricsError: as `parse_rule` and `choose_threshold`.
    """
    stated = stated_threshold(text)
    if stated is not None:
        return stated
    rule, floor = parse_rule(text)
    return choose_threshold(truth, score, rule, floor).threshold


def threshold_sweep(truth: NDArray[Any], score: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Count the outcomes of every threshold that calls at least one scan positive.

    Each distinct score gives one candidate, from the highest down. Its threshold is midway to
    the next lower score, so that rounding cannot move a scan across it; for the lowest score,
    where everything is positive, midway to 0.

    Args:
        truth: bool or 0/1, (n,), both kinds present.
        score: finite, float (n,).

    Returns:
        Arrays of m = number of distinct scores, thresholds descending: ``threshold``, ``score``
        (lowest score called positive), ``tp``, ``fp``, ``tn``, ``fn`` (int64), ``sensitivity``,
        ``specificity``, ``precision``, ``f1``, ``youden`` (float64). O(n log n).

    Raises:
        MetricsError: the inputs do not fit, or the truth is of one kind only.
    """
    flags, values = _both_kinds(*check_binary(truth, score))
    order = np.argsort(-values, kind="stable")
    ranked, hits = values[order], flags[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    tp = np.cumsum(hits)[last].astype(np.int64)
    fp = last + 1 - tp
    n_positive = int(hits.sum())
    n_negative = len(hits) - n_positive
    lowest = ranked[last]
    below = np.append(lowest[1:], min(0.0, float(lowest[-1])))
    return {
        "threshold": _midway(below, lowest),
        "score": lowest,
        "tp": tp,
        "fp": fp,
        "tn": n_negative - fp,
        "fn": n_positive - tp,
        "sensitivity": tp / n_positive,
        "specificity": (n_negative - fp) / n_negative,
        "precision": tp / (tp + fp),
        "f1": 2 * tp / (tp + fp + n_positive),
        "youden": tp / n_positive - fp / n_negative,
    }


def choose_threshold(
    truth: NDArray[Any],
    score: NDArray[Any],
    by: ThresholdRule = "f1",
    floor: float = 0.9,
) -> OperatingPoint:
    """Choose the threshold that is best by one rule.

    Where neighboring candidates tie, the one at the middle of the interval they span is taken;
    where ties are apart, in the widest such interval (a value between two peaks would be worse
    than either).

    Args:
        truth: bool or 0/1, (n,), both kinds present.
        score: finite, float (n,).
        by: ``f1``; ``youden`` (sensitivity + specificity - 1, Youden 1950);
            ``sensitivity_at_specificity`` (the most sensitivity with specificity >= ``floor``, then
            the most specificity); ``specificity_at_sensitivity`` (the reverse).
        floor: share in [0, 1], for the last two rules only.

    Raises:
        MetricsError: the inputs do not fit, the truth is of one kind, the rule is unknown, or no
            threshold that calls anything positive reaches the floor.
    """
    if by not in get_args(ThresholdRule):
        raise MetricsError(
            f"threshold rule {by!r} is unknown; choose one of {', '.join(get_args(ThresholdRule))}"
        )
    sweep = threshold_sweep(truth, score)
    if by in ("f1", "youden"):
        tied = _best(sweep[by], np.ones(len(sweep[by]), dtype=np.bool_))
    else:
        wanted, _, guarded = by.partition("_at_")
        allowed = _at_least(sweep[guarded], guarded, floor)
        tied = _best(sweep[guarded], _best(sweep[wanted], allowed))
    at = _middle_of_ties(sweep, tied)
    return OperatingPoint(**{f.name: float(sweep[f.name][at]) for f in fields(OperatingPoint)})


def _both_kinds(flags: Bools, values: Floats) -> tuple[Bools, Floats]:
    if flags.all() or not flags.any():
        kind = "positive" if flags.all() else "negative"
        raise MetricsError(
            f"all {len(flags)} scans are {kind}; a threshold needs scans of both kinds: "
            "choose it on a validation split that has them"
        )
    return flags, values


def _midway(low: Floats, high: Floats) -> Floats:
    middle = low + (high - low) / 2
    # Between neighboring floats there is no middle, and low itself would admit the wrong scan.
    return np.where(middle > low, middle, high)


def _best(criterion: Floats, among: Bools) -> Bools:
    return among & (criterion >= criterion[among].max() - TIE)


def _at_least(values: Floats, name: str, floor: float) -> Bools:
    if not 0 <= floor <= 1:
        raise MetricsError(f"floor {floor} for {name} is not a share; pass a number in [0, 1]")
    allowed: Bools = values >= floor - TIE
    if not allowed.any():
        raise MetricsError(
            f"no threshold reaches {name} {floor:g} and calls anything positive "
            f"(best: {values.max():.4g}); lower the floor or choose by another rule"
        )
    return allowed


def _middle_of_ties(sweep: dict[str, NDArray[Any]], tied: Bools) -> int:
    """Index of the candidate in the middle of the widest run of neighboring tied candidates."""
    high = sweep["score"]
    low = np.append(high[1:], min(0.0, float(high[-1])))
    steps = np.diff(np.concatenate(([0], tied.astype(np.int8), [0])))
    first, last = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1) - 1
    widest = int(np.argmax(high[first] - low[last]))
    top, bottom = int(first[widest]), int(last[widest])
    middle = low[bottom] + (high[top] - low[bottom]) / 2
    # Scores descend: the candidate that holds the middle is the last one not below it.
    return int(np.clip(np.searchsorted(-high, -middle, side="right") - 1, top, bottom))
