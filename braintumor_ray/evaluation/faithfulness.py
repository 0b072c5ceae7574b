"""The report's section on faithfulness: do the maps follow the network?"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from braintumor_ray.data.decode import DecodeLimits
from braintumor_ray.data.prepare import WORKER
from braintumor_ray.data.reading import group_frames, prepare_scans
from braintumor_ray.data.sandbox import DecodeSandbox
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.explain.faithfulness import FaithfulnessOptions, faithfulness, sample_rows
from braintumor_ray.explain.randomization import randomization_check
from braintumor_ray.predict.predictor import Predictor, normalise


def faithfulness_section(
    size: int, seed: int = 0
) -> Callable[[Predictor, Evaluated], Mapping[str, Any]]:
    """A section for `EvaluateOptions.sections`, on at most `size` of the measured scans.

    It holds deletion and insertion areas, average drop and increase in confidence, and the
    parameter randomisation check.
    """

    def section(predictor: Predictor, evaluated: Evaluated) -> Mapping[str, Any]:
        images = _sample(predictor, evaluated, size, seed)
        raw = predictor.forward(images)
        options = FaithfulnessOptions(seed, predictor.bundle.fields.temperature)
        found = faithfulness(
            lambda pictures: predictor.forward(pictures, explain=False),
            images,
            raw.maps,
            raw.cam_classes,
            options,
        )
        found["randomization"] = randomization_check(
            predictor.bundle.build_model(),
            lambda pictures: normalise(torch.from_numpy(pictures), predictor.bundle.preprocessing),
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
    files = group_frames(rows["uri"].to_pylist(), rows["frame"].to_pylist())
    with DecodeSandbox(WORKER) as sandbox:
        scans = prepare_scans(files, sandbox, predictor.bundle.preprocessing, DecodeLimits())
        return np.stack([scan.image for scan in scans if scan.image is not None])
