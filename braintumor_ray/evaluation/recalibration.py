"""A new bundle with temperature and threshold from the validation split.

No function here takes anything of the evaluated split, so that test rows cannot leak in.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.metrics.conformal import COVERAGE
from braintumor_ray.metrics.tuning import Tuned, tune_decision
from braintumor_ray.models.bundle import (
    CARD,
    Bundle,
    SetFields,
    ViewFields,
    read_bundle_fields,
    save_bundle,
)
from braintumor_ray.storage import read_bytes

_NOTE = """
## Recalibrated

Temperature {temperature:.4f} (before: {old_temperature:.4f}) and threshold {threshold:.4f}
(before: {old_threshold:.4f}) were chosen on {n} validation scans, by {rule}, from the bundle with
fingerprint {fingerprint}. The weights are the same. Prediction sets were calibrated on the same
scans{set_warnings}.
"""


def recalibrate(
    bundle: Bundle, location: str, validation: Evaluated, output: Path
) -> dict[str, Any]:
    """Write a copy of a bundle with another temperature, threshold and prediction sets.

    As at the end of training: the temperature minimizes the validation NLL (1 where every scan is
    right, as then none is better than another), and the threshold is best by the recipe's rule.

    Args:
        bundle: as loaded; it is not changed.
        location: where it was loaded from, for its card.
        validation: the bundle's outputs for the validation split; averaged over views, where the
            bundle does that: then only what test-time augmentation decides by is replaced.
        output: the new bundle's directory; must not exist.

    Returns:
        `path`, `fingerprint`, `temperature`, `threshold`, `rule`, `n`, and those before.

    Raises:
        BundleError: `output` exists.
        MetricsError: the validation scans are all of one kind.
        UsageError: no validation scan can be measured.
    """
    tuned, fields = _tuned(validation), bundle.fields
    changed = {"temperature": tuned.temperature, "threshold": tuned.threshold}
    changes = {
        "rule": fields.recipe.get("threshold_by", "f1"),
        "n": len(validation.labels),
        **changed,
        "old_temperature": fields.temperature,
        "old_threshold": fields.threshold,
    }
    metrics = {**fields.metrics, "validation": tuned.metrics, "recalibration": changes}
    sets = SetFields(**asdict(tuned.sets))
    chosen = {**changed, "prediction_sets": sets}
    updated = fields.model_copy(update={**chosen, "metrics": metrics})
    if bundle.averaged:  # what single views decide by stays as it was
        single = read_bundle_fields(location)
        views = ViewFields(**changed, prediction_sets=sets)
        updated = single.model_copy(update={"metrics": metrics, "views": views})
    card = model_card(location).rstrip("\n") + "\n"
    warned = "".join(f"; {line}" for line in tuned.sets.warnings(fields.class_names))
    card += _NOTE.format(**changes, fingerprint=bundle.fingerprint, set_warnings=warned)
    saved = save_bundle(
        output,
        updated,
        bundle.build_model(),
        bundle.detector,
        card,
        bundle.archive,
        bundle.quantized,
    )
    return {"path": str(output), "fingerprint": saved.fingerprint, **changes}


def views_of(validation: Evaluated) -> ViewFields:
    """Temperature and threshold of averaged views, from validation scans predicted so.

    Raises:
        MetricsError: the validation scans are all of one kind.
        UsageError: no validation scan can be measured.
    """
    tuned = _tuned(validation)
    sets = SetFields(**asdict(tuned.sets))
    return ViewFields(
        threshold=tuned.threshold, temperature=tuned.temperature, prediction_sets=sets
    )


def _tuned(validation: Evaluated) -> Tuned:
    validation.require_some("val")
    fields = validation.fields
    return tune_decision(
        validation.logits,
        validation.labels,
        fields.class_names,
        validation.positive,
        fields.recipe.get("threshold_by", "f1"),
        coverage=fields.recipe.get("set_coverage", COVERAGE),
        groups=validation.groups[validation.measured],
    )


def model_card(location: str) -> str:
    """The text of a bundle's model card.

    Raises:
        OSError: it cannot be read.
    """
    return read_bytes(f"{location.rstrip('/')}/{CARD}").decode("utf-8", "replace")
