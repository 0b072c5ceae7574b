"""The last step of training: all that validation decides (temperature, threshold, ...)."""

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import softmax

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.metrics.conformal import set_rule
from braintumor_ray.metrics.tuning import tune_decision
from braintumor_ray.models.bundle import (
    Bundle,
    BundleFields,
    GeometryFields,
    SetFields,
    ViewFields,
)
from braintumor_ray.models.classifier import Architecture
from braintumor_ray.models.domain import ArchiveReference, DomainDetector, domain_limit
from braintumor_ray.models.geometry import find_geometry
from braintumor_ray.predict.predictor import Predictor, RawOutput
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.storage import open_filesystem
from braintumor_ray.training.shards import squares
from braintumor_ray.training.stages import State
from braintumor_ray.types import GrayImage

DOMAIN_SCANS = 2000


@dataclass(frozen=True)
class Outputs:
    """The network's outputs for a split: ids (n,), logits (n, k), pooled (n, C), labels (n,)."""

    scan_ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    pooled: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def only(self, scan_ids: npt.NDArray[np.int64]) -> "Outputs":
        """Those of some scans."""
        kept = np.isin(self.scan_ids, scan_ids)
        return Outputs(self.scan_ids[kept], self.logits[kept], self.pooled[kept], self.labels[kept])


def tune(
    bundle: Bundle,
    training: Outputs,
    validation: Outputs,
    recipe: Recipe,
    groups: npt.NDArray[np.int64] | None = None,
) -> Bundle:
    """Choose temperature, threshold, prediction sets and domain limit, by validation labels only.

    Args:
        bundle: with the final weights and provisional values.
        training: for the domain statistics; a sample is enough.
        validation: every validation scan.
        recipe: has the rule by which the threshold is chosen, and the coverage of the sets.
        groups: of the validation scans; those that are not independent share one.
    """
    names, positive = bundle.fields.class_names, bundle.positive_indices
    tuned = tune_decision(
        validation.logits, validation.labels, names, positive, recipe.threshold_by,
        without_choice=0.5, coverage=recipe.set_coverage, groups=groups,
    )  # fmt: skip
    detector = DomainDetector.fit(training.pooled)
    chosen = {
        "temperature": tuned.temperature,
        "threshold": tuned.threshold,
        "domain_limit": domain_limit(detector.distance(validation.pooled)),
        "prediction_sets": SetFields(**asdict(tuned.sets)),
        "metrics": {"validation": tuned.metrics},
    }
    # Training scans, too: validation alone has too few healthy ones to know where they lie.
    logits, pooled = (
        np.concatenate([getattr(part, name) for part in (training, validation)])
        for name in ("logits", "pooled")
    )
    scores = softmax(logits / tuned.temperature, axis=1)[:, positive].sum(axis=1)
    archive = ArchiveReference.fit(pooled, scores >= tuned.threshold)
    return Bundle(bundle.fields.model_copy(update=chosen), bundle.state, detector, archive)


def tune_views(
    bundle: Bundle,
    validation: Outputs,
    recipe: Recipe,
    groups: npt.NDArray[np.int64] | None = None,
) -> Bundle:
    """The bundle with what test-time augmentation decides by.

    Args:
        bundle: the tuned one.
        validation: every validation scan, logits averaged over the views.
        recipe: as for `tune`.
        groups: as for `tune`.
    """
    tuned = tune_decision(
        validation.logits, validation.labels, bundle.fields.class_names, bundle.positive_indices,
        recipe.threshold_by, without_choice=0.5, coverage=recipe.set_coverage, groups=groups,
    )  # fmt: skip
    sets = SetFields(**asdict(tuned.sets))
    views = ViewFields(
        threshold=tuned.threshold, temperature=tuned.temperature, prediction_sets=sets
    )
    return replace(bundle, fields=bundle.fields.model_copy(update={"views": views}))


def provisional_bundle(
    recipe: Recipe,
    architecture: Architecture,
    preprocessing: Preprocessing,
    classes: ClassMap,
    state: State,
    data_fingerprint: str,
    *,
    guided: bool = False,
) -> Bundle:
    """A bundle in memory with the final weights, before anything is tuned.

    A guided network has learned to answer in the cell that evenly divided pictures put a tumor in;
    for others it is found out where their cells lie.
    """
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
    bundle = Bundle(fields, state, None)
    geometry = None if guided else find_geometry(bundle.build_model())
    if geometry is None:
        return bundle
    offset, stride = zip(*geometry, strict=True)
    known = {"map_geometry": GeometryFields(offset=offset, stride=stride)}
    return Bundle(fields.model_copy(update=known), state, None)


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


def set_warnings(bundle: Bundle) -> list[str]:
    """A sentence for each class with too few validation scans for its prediction sets."""
    sets = bundle.fields.prediction_sets
    return [] if sets is None else set_rule(sets).warnings(bundle.fields.class_names)


def versions() -> dict[str, str]:
    """Versions of what computed the bundle."""
    found = {"python": platform.python_version()}
    for name in ("braintumor-ray", "ray", "torch", "timm", "numpy", "opencv-python-headless"):
        for installed in importlib.metadata.distributions(name=name):
            found.setdefault(name, installed.version)
    return found


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
