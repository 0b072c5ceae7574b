"""Where the heat of an evaluation's maps is: regions of the head, and tumors where known."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from braintumor_ray.decode.files import SCAN_COLUMNS
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.explain.placement import square_maps
from braintumor_ray.explain.regions import Shares, looks_at_border
from braintumor_ray.faithfulness.randomization import randomization_check
from braintumor_ray.faithfulness.scores import FaithfulnessOptions, faithfulness, sample_rows
from braintumor_ray.localization.summary import score_heatmaps, summarize_localization
from braintumor_ray.localization.truth import TruthIndex
from braintumor_ray.models.classifier import normalize
from braintumor_ray.pages.pictures import load_squares
from braintumor_ray.predict.predictor import Predictor

REGIONS = Shares._fields


def heat_by_region(predictor: Predictor, evaluated: Evaluated) -> dict[str, Any]:
    """Shares of the first method's heat inside the head, on its rim and in the background.

    Args:
        predictor: the one that made the outputs.
        evaluated: with maps (`inference.predict_catalog` with `explain`).

    Returns:
        `scans` (with a map and a head outline), `unknown` (without), `looks_at_border` (scans
        whose rim or background holds more heat than area), `on_average` (whether that is so of the
        means), `regions` (mean `heat` and `area` of each) and `classes` (by true class).
    """
    rows = evaluated.measured
    heat, area = evaluated.outputs.heat[rows], evaluated.outputs.area[rows]
    known = np.isfinite(np.concatenate([heat, area], axis=1)).all(axis=1)
    flagged = np.array(
        [looks_at_border(Shares(*h), Shares(*a)) for h, a in zip(heat, area, strict=True)], bool
    )
    summary: dict[str, Any] = {
        "method": predictor.methods[0],
        "cam_class": predictor.cam_class,
        "scans": int(known.sum()),
        "unknown": int((~known).sum()),
    }
    if not known.any():
        return summary
    means = heat[known].mean(axis=0), area[known].mean(axis=0)
    return {
        **summary,
        "looks_at_border": int((flagged & known).sum()),
        "on_average": looks_at_border(*(Shares(*mean.tolist()) for mean in means)),
        "regions": {
            name: {"heat": float(h), "area": float(a)}
            for name, h, a in zip(REGIONS, *means, strict=True)
        },
        "classes": _by_class(evaluated, heat, known, flagged),
    }


def localization(
    predictor: Predictor,
    evaluated: Evaluated,
    truth: TruthIndex,
    *,
    seed: int,
    n_boot: int,
) -> dict[str, Any]:
    """Score the maps of the measured scans whose tumor is known; see `summarize_localization`.

    Scans are read once more for the whole-head baseline; one at a time is held.

    Raises:
        TruthError: no measured scan has truth, or a mask cannot be read.
    """
    measured = evaluated.measured
    paths = evaluated.rows["path"].take(pa.array(measured)).to_pylist()
    matched = truth.match(paths)
    rows = measured[[path in matched for path in paths]] if matched else measured
    scans = _scan_table(evaluated, rows)
    # All of the picture, as the masks are.
    whole = replace(predictor.bundle.preprocessing, crop="none", intensity="none")
    scored = score_heatmaps(
        scans,
        {name: maps[rows] for name, maps in evaluated.outputs.maps.items()},
        truth,
        image_size=predictor.bundle.preprocessing.image_size,
        # Of a file that was deleted since it was measured: black, so that no head is found.
        images=load_squares(scans, whole, evaluated.limits),
        seed=seed,
    )
    names = [evaluated.truth.names[row] for row in rows]
    summary = summarize_localization(
        scored, evaluated.groups[rows], names, seed=seed, n_boot=n_boot
    )
    return {"cam_class": predictor.cam_class, **summary}


def _by_class(
    evaluated: Evaluated,
    heat: NDArray[np.float64],
    known: Any,  # noqa: ANN401 - bool (m,)
    flagged: NDArray[np.bool_],
) -> dict[str, dict[str, Any]]:
    table = {}
    for index, name in enumerate(evaluated.fields.class_names):
        inside = known & (evaluated.labels == index)
        if inside.any():
            shares = zip(REGIONS, heat[inside].mean(axis=0), strict=True)
            table[name] = {
                "scans": int(inside.sum()),
                "looks_at_border": int((flagged & inside).sum()),
                **{f"heat_{region}": float(share) for region, share in shares},
            }
    return table


def _scan_table(evaluated: Evaluated, rows: NDArray[np.int64]) -> pa.Table:
    table = evaluated.rows.select(["path", *SCAN_COLUMNS]).take(pa.array(rows))
    heights, widths = zip(
        *(evaluated.outputs.shapes[row] or (None, None) for row in rows), strict=True
    )
    table = table.append_column("height", pa.array(heights, pa.int32()))
    return table.append_column("width", pa.array(widths, pa.int32()))


def faithfulness_section(
    size: int, seed: int = 0
) -> Callable[[Predictor, Evaluated], Mapping[str, Any]]:
    """A section for `EvaluateOptions.sections`, on at most `size` of the measured scans.

    It holds deletion and insertion areas, average drop and increase in confidence, and the
    parameter randomization check.
    """

    def section(predictor: Predictor, evaluated: Evaluated) -> Mapping[str, Any]:
        images = _sample(predictor, evaluated, size, seed)
        raw = predictor.forward(images)
        options = FaithfulnessOptions(seed, predictor.bundle.fields.temperature)
        found = faithfulness(
            lambda pictures: predictor.forward(pictures, explain=False),
            images,
            {m: square_maps(maps, predictor.bundle.map_frame) for m, maps in raw.maps.items()},
            raw.cam_classes,
            options,
        )
        if predictor.bundle.quantized is not None:
            return found  # randomized layers would be those of the network in float
        found["randomization"] = randomization_check(
            predictor.bundle.build_model(),
            lambda pictures: normalize(torch.from_numpy(pictures), predictor.bundle.preprocessing),
            images,
            raw.cam_classes,
            seed=seed,
        )
        return found

    return section


def _sample(predictor: Predictor, evaluated: Evaluated, size: int, seed: int) -> Any:  # noqa: ANN401
    """Network inputs uint8 (n, S, S) of a seeded sample of the measured scans."""
    chosen = evaluated.measured[sample_rows(len(evaluated.measured), size, seed)]
    rows = evaluated.rows.take(chosen)
    scans = decode_scans(rows, predictor.bundle.preprocessing, limits=evaluated.limits)
    return np.stack([scan.image for scan in scans if scan.image is not None])
