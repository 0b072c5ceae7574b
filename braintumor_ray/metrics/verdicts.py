"""The two rules by which a scan is judged, and the words for what they gave.

A prediction has a likeliest class (`predicted_class`) and a tumor decision (`decision`): whether
the positive classes' probabilities add up to the threshold. The two may differ, so every right,
wrong, hit and miss names the rule that it is of.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LIKELIEST, DECISION = "likeliest class", "tumor decision"
_CHANCE_Z = 1.645  # one-sided 95% of a normal distribution


def decision_rule(threshold: float) -> str:
    """The name of the tumor decision at a threshold."""
    return f"{DECISION} at {threshold:.3f}"


def disagreement(likeliest_is_positive: bool, decision: bool) -> str:
    """Why the likeliest class and the decision differ; empty where they do not."""
    if likeliest_is_positive == decision:
        return ""
    if decision:
        return "no tumor is the likeliest class, but the tumor classes together reach the threshold"
    return "a tumor is the likeliest class, but the tumor classes together are below the threshold"


def found_and_missed(binary: Mapping[str, Any]) -> str:
    """The four counts of a tumor decision as a sentence without its end.

    Args:
        binary: `tp`, `fp`, `tn`, `fn`, as `binary_metrics` gives them.
    """
    tumors, others = binary["tp"] + binary["fn"], binary["tn"] + binary["fp"]
    parts = []
    if tumors:
        parts.append(f"{binary['fn']} of {tumors} scans with a tumor missed")
    if others:
        parts.append(f"{binary['fp']} of {others} without one called tumor")
    return ", ".join(parts)


def chance_note(confusion: Sequence[Sequence[int]]) -> str | None:
    """A warning where the classes are distinguished no better than by guessing; else None.

    Guessing one of k classes reaches a balanced accuracy of 1/k, with a standard deviation that
    follows from the scans per class; results below its one-sided 95% bound count as chance.

    Args:
        confusion: (k, k) counts, rows true.
    """
    table = np.asarray(confusion, dtype=np.float64)
    totals = table.sum(axis=1)
    present = totals > 0
    k, shown = len(table), int(present.sum())
    if shown < 2:
        return None
    reached = float((np.diag(table)[present] / totals[present]).mean())
    variance = (1 / k) * (1 - 1 / k) * (1 / totals[present]).sum() / shown**2
    bound = 1 / k + _CHANCE_Z * float(np.sqrt(variance))
    if reached > bound:
        return None
    return (
        f"the network is at chance: its balanced accuracy is {reached:.3f}, and guessing reaches "
        f"{1 / k:.3f} (up to {bound:.3f} by luck on {int(totals.sum())} scans); it has learnt "
        "nothing of use"
    )
