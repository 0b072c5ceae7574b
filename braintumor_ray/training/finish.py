"""The last step of training: temperature, threshold and domain limit, all from validation."""

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.metrics.calibration import calibration_metrics, fit_temperature, softmax
from braintumor_ray.metrics.classification import classification_metrics
from braintumor_ray.metrics.inputs import binary_view
from braintumor_ray.metrics.thresholds import choose_threshold
from braintumor_ray.models.bundle import Bundle, BundleFields
from braintumor_ray.models.classifier import Architecture
from braintumor_ray.models.domain import DomainDetector
from braintumor_ray.predict.predictor import Predictor, RawOutput
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.storage import open_filesystem
from braintumor_ray.training.shards import squares
from braintumor_ray.training.stages import State
from braintumor_ray.types import GrayImage

DOMAIN_SCANS = 2000
IN_DOMAIN = 0.99
# The tail of a few hundred scans is uncertain: at the bare quantile up to 3% of other scans are
# flagged, with this much slack under 1%; foreign pictures are farther still.
DOMAIN_SLACK = 1.1


@dataclass(frozen=True)
class Outputs:
    """What the network says of one split: ids (n,), logits (n, k), pooled (n, C), labels (n,)."""

    scan_ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    pooled: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def tune(bundle: Bundle, training: Outputs, validation: Outputs, recipe: Recipe) -> Bundle:
    """Choose temperature, threshold and domain limit; only validation labels are looked at.

    Args:
        bundle: with the final weights and provisional values.
        training: for the domain statistics; a sample is enough.
        validation: every validation scan.
        recipe: says by what the threshold is chosen.
    """
    fields, positive = bundle.fields, bundle.positive_indices
    temperature = _temperature(validation)
    probs = softmax(validation.logits, temperature)
    threshold = _threshold(validation.labels, probs, positive, recipe.threshold_by)
    gate = DomainDetector.fit(training.pooled)
    metrics = classification_metrics(
        validation.labels, probs, fields.class_names, positive, threshold
    )
    metrics["calibration"] = calibration_metrics(validation.labels, probs, positive)
    tuned = fields.model_copy(
        update={
            "temperature": temperature,
            "threshold": threshold,
            "domain_limit": _domain_limit(gate.distance(validation.pooled)),
            "metrics": {"validation": metrics},
        }
    )
    return Bundle(tuned, bundle.state, gate)


def provisional_bundle(
    recipe: Recipe,
    architecture: Architecture,
    preprocessing: Preprocessing,
    classes: ClassMap,
    state: State,
    data_fingerprint: str,
) -> Bundle:
    """A bundle in memory with the final weights, before anything is tuned."""
    recorded = recipe.model_dump(mode="json")
    recorded["data"]["classes"] = classes.to_spec()
    fields = BundleFields(
        architecture=architecture.to_dict(),  # type: ignore[arg-type]
        preprocessing=preprocessing.to_dict(),  # type: ignore[arg-type]
        class_names=classes.classes,
        positive_classes=classes.positive,
        cam_layer=f"last feature map of {architecture.backbone}",
        threshold=0.5,
        temperature=1.0,
        domain_limit=None,
        recipe=recorded,
        data_fingerprint=data_fingerprint,
        metrics={},
        versions=versions(),
    )
    return Bundle(fields, state, None)


def split_outputs(
    predictor: Predictor,
    shards: list[str],
    location: str,
    scan_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> Outputs:
    """Run the network over some scans of the decoded shards."""
    order = np.argsort(scan_ids)
    ids, classes = scan_ids[order], labels[order]
    size = predictor.bundle.preprocessing.image_size
    raws: list[RawOutput] = []
    read: list[npt.NDArray[np.int64]] = []
    for found, images in _read(shards, location, ids, size):
        raws.append(predictor.forward(images, explain=False))
        read.append(found)
    in_order = np.concatenate(read)
    return Outputs(
        in_order,
        np.concatenate([raw.logits for raw in raws]),
        np.concatenate([raw.pooled for raw in raws]),
        classes[np.searchsorted(ids, in_order)],
    )


def versions() -> dict[str, str]:
    """Versions of what computed the bundle."""
    names = ("braintumor-ray", "ray", "torch", "timm", "numpy", "opencv-python-headless")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names if _installed(name)
    }


def _installed(name: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=name))


def _read(
    shards: list[str], location: str, ids: npt.NDArray[np.int64], size: int
) -> Iterator[tuple[npt.NDArray[np.int64], GrayImage]]:
    import pyarrow.compute as pc

    filesystem, _ = open_filesystem(location)
    for path in shards:
        table = pq.read_table(path, columns=["scan_id", "image"], filesystem=filesystem)
        table = table.filter(pc.is_in(table["scan_id"], value_set=pa.array(ids)))
        if table.num_rows:
            yield table["scan_id"].to_numpy(), squares(table["image"], size)


def _domain_limit(distances: npt.NDArray[np.float32]) -> float:
    """A limit above which at most 1% of the validation scans lie."""
    return DOMAIN_SLACK * float(np.quantile(distances, IN_DOMAIN, method="higher"))


def _temperature(validation: Outputs) -> float:
    right = validation.logits.argmax(axis=1) == validation.labels
    if right.all():
        return 1.0  # nothing wrong: any sharper temperature would seem better, none is known
    return float(fit_temperature(validation.logits, validation.labels))


def _threshold(
    labels: npt.NDArray[np.int64],
    probs: npt.NDArray[np.floating[Any]],
    positive: list[int],
    by: str,
) -> float:
    truth, score = binary_view(labels, probs, positive)
    if truth.all() or not truth.any():
        return 0.5  # one kind only: there is nothing to choose by
    return float(choose_threshold(truth, score, by=by).threshold)  # type: ignore[arg-type]
