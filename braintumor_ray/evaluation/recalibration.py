"""A new bundle with temperature and threshold from the validation split.

No function here takes anything of the evaluated split, so that test rows cannot leak in.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.metrics.conformal import COVERAGE
from braintumor_ray.metrics.tuning import tune_decision
from braintumor_ray.models.bundle import CARD, Bundle, SetFields, save_bundle
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
        validation: the bundle's outputs for the validation split, without averaging over views.
        output: the new bundle's directory; must not exist.

    Returns:
        `path`, `fingerprint`, `temperature`, `threshold`, `rule`, `n`, and those before.

    Raises:
        BundleError: `output` exists.
        MetricsError: the validation scans are all of one kind.
        UsageError: no validation scan can be measured.
    """
    validation.require_some("val")
    fields, labels = bundle.fields, validation.labels
    rule = fields.recipe.get("threshold_by", "f1")
    tuned = tune_decision(
        validation.logits,
        labels,
        fields.class_names,
        validation.positive,
        rule,
        coverage=fields.recipe.get("set_coverage", COVERAGE),
        groups=validation.groups[validation.measured],
    )
    changed = {"temperature": tuned.temperature, "threshold": tuned.threshold}
    changes = {
        "rule": rule,
        "n": len(labels),
        **changed,
        "old_temperature": fields.temperature,
        "old_threshold": fields.threshold,
    }
    metrics = {**fields.metrics, "validation": tuned.metrics, "recalibration": changes}
    sets = SetFields(**asdict(tuned.sets))
    updated = fields.model_copy(update={**changed, "prediction_sets": sets, "metrics": metrics})
    card = model_card(location).rstrip("\n") + "\n"
    warned = "".join(f"; {line}" for line in tuned.sets.warnings(fields.class_names))
    card += _NOTE.format(**changes, fingerprint=bundle.fingerprint, set_warnings=warned)
    saved = save_bundle(output, updated, bundle.build_model(), bundle.gate, card, bundle.archive)
    return {"path": str(output), "fingerprint": saved.fingerprint, **changes}


def refuse_with_views(tta: bool) -> None:
    """A bundle predicts from one view: its temperature must not come from several.

    Raises:
        UsageError: test-time augmentation was asked for as well.
    """
    if tta:
        raise UsageError(
            "--recalibrate with --tta: a bundle predicts without test-time augmentation, so its "
            "temperature must be chosen without; run the two one after the other"
        )


def model_card(location: str) -> str:
    """The text of a bundle's model card.

    Raises:
        OSError: it cannot be read.
    """
    return read_bytes(f"{location.rstrip('/')}/{CARD}").decode("utf-8", "replace")
