"""The test split after each stage, and at the tuned threshold: as the references report it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from braintumor_ray.metrics.calibration import softmax
from braintumor_ray.metrics.classification import classification_metrics
from braintumor_ray.models.bundle import Bundle
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.training.finish import Outputs
from braintumor_ray.training.stages import State

UNTUNED = 0.5


def phase_table(
    bundle: Bundle,
    stages: dict[str, State],
    run: Callable[[Predictor], Outputs],
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Metrics of the test split, a row per phase.

    Args:
        bundle: the finished one, with its tuned threshold.
        stages: weights at the end of each stage but the last, in order; its are the bundle's.
        run: gives the network's outputs of the test split.
        device: as for `Predictor`.

    Returns:
        Rows with `phase`, `threshold` and the keys of `classification_metrics`.
    """
    rows = []
    last = str(bundle.fields.recipe["stages"][-1]["name"])
    for name, state in stages.items():
        if name == last:
            continue
        outputs = run(Predictor(replace(bundle, state=state), device=device))
        rows.append(_row(f"after {name}", outputs, bundle, UNTUNED))
    outputs = run(Predictor(bundle, device=device))
    rows.append(_row(f"after {last}", outputs, bundle, UNTUNED))
    rows.append(_row("at the tuned threshold", outputs, bundle, bundle.fields.threshold))
    return rows


def _row(phase: str, outputs: Outputs, bundle: Bundle, threshold: float) -> dict[str, Any]:
    probs = softmax(outputs.logits, bundle.fields.temperature)
    metrics = classification_metrics(
        outputs.labels, probs, bundle.fields.class_names, bundle.positive_indices, threshold
    )
    return {"phase": phase, "threshold": threshold, **metrics}
