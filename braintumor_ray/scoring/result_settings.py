"""What rows must have in common: the bundle, its maps, the engine and the precision.

Rows of two engines differ in their rounding, and rows in bf16 and fp32 differ more. A folder
therefore has one engine and one precision. They are chosen with its first run, by the driver, and
kept in results.json: no predictor decides by itself, whatever its node has.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from braintumor_ray.choices import EngineName, Precision
from braintumor_ray.engines.choice import Choice
from braintumor_ray.errors import ResultsError
from braintumor_ray.models.bundle import Bundle
from braintumor_ray.models.device import use_bf16
from braintumor_ray.predict.results import (
    FIRST_ENGINE,
    META,
    ResultsFolder,
    engine_of,
    results_folder,
)
from braintumor_ray.predict.schema import SCHEMA_VERSION
from braintumor_ray.scoring.options import ScoreOptions

EARLIER = {"engine": FIRST_ENGINE}  # of folders without these keys: there was no other
MeasureEngine = Callable[[], Choice]
GainsBf16 = Callable[[], bool]


def describe_settings(bundle: Bundle, options: ScoreOptions) -> dict[str, Any]:
    """What makes rows comparable; results with other settings are another folder's."""
    predict, redaction = options.predict, options.decode.redaction
    sets = bundle.fields.prediction_sets
    settings: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "bundle_fingerprint": bundle.fingerprint,
        "class_names": list(bundle.fields.class_names),
        "positive_classes": list(bundle.fields.positive_classes),
        "threshold": bundle.fields.threshold,
        "image_size": bundle.fields.preprocessing.image_size,
        "cam_class": predict.cam_class,
        "cam_methods": list(predict.methods),
        "cam_shape": list(bundle.cam_shape),
        "uri_redaction": redaction.check if redaction else None,
        "engine": predict.engine or FIRST_ENGINE,
        "precision": predict.precision,
    }
    later = {  # absent where there is nothing, as in folders of before
        "set_coverage": sets and sets.coverage,
        "tta": bundle.averaged,
        "optional_columns": list(bundle.optional_columns),
    }
    return settings | {name: value for name, value in later.items() if value}


def open_results(folder: ResultsFolder, bundle: Bundle, options: ScoreOptions) -> str:
    """Claim a new folder for a bundle, or check that it is this bundle's; returns a fingerprint.

    Raises:
        ResultsError: names the first setting that differs.
    """
    wanted, predict = describe_settings(bundle, options), options.predict
    if META not in folder.names():
        folder.write_json(wanted, META)
    meta = folder.meta
    if bool(meta.get("tta")) != bundle.averaged:  # the fingerprint differs, too, without a reason
        made, way = ("with", "give it") if meta.get("tta") else ("without", "leave it out")
        raise ResultsError(
            f"results '{folder.location}' were made {made} --tta; {way}, or score into another "
            "folder"
        )
    for key, value in wanted.items():
        had = meta.get(key, EARLIER.get(key))
        if had != value and not _undecided(key, had, value):
            raise ResultsError(
                f"results '{folder.location}' were made with {key} {had!r}, this run has "
                f"{value!r}; score into another folder"
            )
    digest = "-".join([bundle.fingerprint, predict.cam_class, *predict.methods])
    return f"{digest}-v{SCHEMA_VERSION}"


def resolve_options(
    options: ScoreOptions,
    meta: Mapping[str, Any] | None,
    measure: MeasureEngine,
    gains_bf16: GainsBf16,
) -> tuple[ScoreOptions, Choice]:
    """Options whose engine and precision are decided, and how: as the results, where there are any.

    Args:
        options: as the user chose; what is named there stays.
        meta: content of results.json; None: a new folder.
        measure: finds the fastest engine, for a new folder with 'auto'.
        gains_bf16: whether torch gains by bf16 where the predictors will run.
    """
    if meta is not None:
        stored = with_stored_engine(options, meta)
        return stored, Choice(stored.predict.engine or FIRST_ENGINE)  # type: ignore[arg-type]
    predict = options.predict
    choice = measure() if predict.engine == "auto" else Choice(predict.engine or FIRST_ENGINE)
    predict = replace(predict, engine=choice.engine)
    if predict.precision == "auto":
        predict = replace(predict, precision=_precision(choice.engine, gains_bf16))
    return replace(options, predict=predict), choice


def with_stored_engine(options: ScoreOptions, meta: Mapping[str, Any]) -> ScoreOptions:
    """Options with the engine and the precision of some results, where the user named none."""
    predict, (engine, precision) = options.predict, engine_of(meta)
    if predict.engine in (None, "auto"):
        predict = replace(predict, engine=engine)
    if predict.precision == "auto":
        predict = replace(predict, precision=precision or "auto")
    return replace(options, predict=predict)


def stored_options(results: str, options: ScoreOptions) -> ScoreOptions:
    """As `with_stored_engine`, of a folder that may not be there yet."""
    folder = results_folder(results)
    return with_stored_engine(options, folder.meta) if META in folder.names() else options


def _precision(engine: EngineName, gains_bf16: GainsBf16) -> Precision:
    if engine == "onnxruntime":
        return "fp32"
    gains = use_bf16(torch.device("cpu"), "auto") if engine == "openvino" else gains_bf16()
    return "bf16" if gains else "fp32"


def _undecided(key: str, *values: Any) -> bool:  # noqa: ANN401 - of any setting
    """A precision that is not known agrees with any."""
    return key == "precision" and (None in values or "auto" in values)
