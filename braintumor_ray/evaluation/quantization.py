"""A bundle with int8 layers, made of one in float, and proof that it is still the same network.

Calibration scans are training scans. Validation scans decide whether the result is kept, and its
temperature, threshold, prediction sets and domain limit. Test scans are not looked at.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jinja2 import Template
from numpy.typing import NDArray
from torch import Tensor

from braintumor_ray.decode.prepare import PreparedScan
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.engines.engine import Engine, make_engine
from braintumor_ray.engines.quantize import quantize_backbone
from braintumor_ray.errors import BundleError, GateError, UsageError
from braintumor_ray.evaluation.leakage import RUN_CATALOG, run_catalog
from braintumor_ray.evaluation.options import QuantizeOptions
from braintumor_ray.evaluation.recalibration import model_card
from braintumor_ray.evaluation.selection import clusters, select_split, true_classes
from braintumor_ray.explain.cam import SCORED_METHODS, cams, class_gradient
from braintumor_ray.extras import require
from braintumor_ray.metrics.conformal import COVERAGE
from braintumor_ray.metrics.tuning import Tuned, tune_decision
from braintumor_ray.models.bundle import (
    Bundle,
    BundleFields,
    QuantizationFields,
    QuantizedGraph,
    SetFields,
    load_bundle,
    save_bundle,
)
from braintumor_ray.models.domain import domain_limit
from braintumor_ray.progress import TotalProgress
from braintumor_ray.splits.duplicates import image_groups
from braintumor_ray.types import GrayImage, Ints, Progress

LARGEST_DROP = 0.5  # points of validation accuracy
LEAST_CORRELATION = 0.98  # of each method's maps, mean over validation scans
BATCH = 16
SPLIT, TRAIN, VALIDATION = "split", "train", "val"
Numbers = Literal["fp32", "bf16"]

_CARD = Template("""
## Quantized to int8

Made of the bundle with fingerprint {{ made_of }} by NNCF's post-training quantization, on
{{ calibration_scans }} calibration scans. It runs by OpenVINO (`--engine openvino`). Head and heatmaps are
computed in float32. Figures above are those of the network in float.

On {{ n }} validation scans, in float and in int8 (the other layers in {{ precision }}):

| | float | int8 |
|---|---|---|
| accuracy by the likeliest class | {{ "%.4f" | format(accuracy_before) }} | {{ "%.4f" | format(accuracy) }} |
| temperature | {{ "%.4f" | format(old_temperature) }} | {{ "%.4f" | format(temperature) }} |
| threshold | {{ "%.4f" | format(old_threshold) }} | {{ "%.4f" | format(threshold) }} |

Scans with the same class: {{ "%.4f" | format(same_class) }}. Correlation of the heatmaps, mean over
these scans and the 5% quantile:
{% for name, found in map_correlation.items() -%}
{{ name }} {{ "%.4f" | format(found.mean) }} and {{ "%.4f" | format(found.low) }}
{{- "; " if not loop.last else "." }}
{%- endfor %}

{% if allowed %}
**It differs by more than is let through without `--allow-drop`.**
{% endif %}
""")  # noqa: E501 - rows of a table


@dataclass(frozen=True)
class PairedOutputs:
    """Both networks on validation scans that can be read, n of them.

    Attributes:
        labels: int64 (n,), -1 where the class is not known.
        groups: int64 (n,), scans that are not independent share one.
        before: logits in float, float32 (n, k).
        after: logits of the quantized network.
        pooled: of the quantized network, float32 (n, C).
        correlation: of the maps of the class predicted in float, (n,) by method.
    """

    labels: Ints
    groups: Ints
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    pooled: NDArray[np.float32]
    correlation: dict[str, NDArray[np.float64]]

    @property
    def labeled(self) -> Ints:
        """Rows with a known class."""
        return np.flatnonzero(self.labels >= 0)

    def accuracy(self, logits: NDArray[np.float32]) -> float:
        """By the likeliest class, of labeled scans."""
        rows = self.labeled
        return float((logits[rows].argmax(axis=1) == self.labels[rows]).mean())

    def figures(self) -> dict[str, Any]:
        """What the bundle and its card record."""
        before, after = self.accuracy(self.before), self.accuracy(self.after)
        same = (self.before.argmax(axis=1) == self.after.argmax(axis=1)).mean()
        return {
            "n": len(self.labeled),
            "accuracy_before": before,
            "accuracy": after,
            "drop_points": 100 * (before - after),
            "same_class": float(same),
            "map_correlation": {
                name: {"mean": float(values.mean()), "low": float(np.quantile(values, 0.05))}
                for name, values in self.correlation.items()
            },
        }


def quantize_bundle(
    location: str,
    output: Path,
    options: QuantizeOptions | None = None,
    calibration: pa.Table | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a bundle whose backbone has int8 layers.

    Args:
        location: the bundle in float; RUN/catalog.parquet next to it has the scans.
        output: the new bundle's directory; must not exist.
        options: see `QuantizeOptions`.
        calibration: catalog of scans for calibration (its training split, where it has splits), and
            for validation where the run's catalog is gone; None: the run's catalog.
        progress: called with (scans done, scans).

    Returns:
        `path`, `fingerprint`, and the figures of the model card.

    Raises:
        BundleError: the bundle cannot be loaded, or `output` exists already.
        GateError: the quantized network is too far from the one in float.
        UsageError: no scans for calibration or validation, a bundle that is quantized already, or
            a package that is missing.
    """
    options = options or QuantizeOptions()
    require("nncf")
    if output.exists():
        raise BundleError(f"bundle '{output}' exists already; choose another directory")
    bundle = load_bundle(location)
    bundle.require_float("quantize")
    own = run_catalog(location)
    training = _calibration_rows(calibration, own, location, options)
    validation = _validation_rows(calibration if own is None else own)
    steps = TotalProgress(progress, training.num_rows + validation.num_rows)
    images = _squares(bundle, training, steps)
    graph = quantize_backbone(bundle.build_model(), bundle.preprocessing, images)
    compared, precision = _compare(bundle, graph, validation, options, steps)
    problem = _too_far(compared.figures())
    if problem and not options.allow_drop:
        raise GateError(
            f"the quantized network is too far from the one in float: {problem}; nothing was "
            "written; give more --scans for calibration, or --allow-drop to keep it"
        )
    quantization = QuantizationFields(
        graph_sha256=graph.sha256,
        made_of=bundle.fingerprint,
        calibration_scans=len(images),
        precision=precision,
    )
    return _write(bundle, location, output, graph, quantization, compared, bool(problem))


def _calibration_rows(
    given: pa.Table | None, own: pa.Table | None, location: str, options: QuantizeOptions
) -> pa.Table:
    """A seeded sample of the training scans."""
    table = own if given is None else given
    if table is None:
        raise UsageError(
            f"'{location}': there is no {RUN_CATALOG} of its run next to the bundle, and "
            "quantization needs scans for calibration; give --calibrate SOURCE"
        )
    rows = select_split(table, TRAIN) if SPLIT in table.column_names else table
    order = np.random.default_rng(options.seed).permutation(rows.num_rows)[: options.scans]
    return rows.take(np.sort(order))


def _validation_rows(table: pa.Table | None) -> pa.Table:
    assert table is not None  # else there were no calibration scans
    try:
        return select_split(table, VALIDATION)
    except UsageError as error:
        raise UsageError(
            f"quantization is judged on validation scans: {error}; or give a catalog with splits "
            "to --calibrate"
        ) from error


def _squares(bundle: Bundle, rows: pa.Table, progress: Progress) -> GrayImage:
    """Network inputs uint8 (n, S, S) of the scans that can be read."""
    found = []
    for done, scan in enumerate(decode_scans(rows, bundle.preprocessing), start=1):
        progress(done, rows.num_rows)
        if scan.image is not None:
            found.append(scan.image)
    if not found:
        raise UsageError(
            f"none of {rows.num_rows} calibration scans can be read; give others by "
            "--calibrate SOURCE"
        )
    return np.stack(found)


def _compare(
    bundle: Bundle,
    graph: QuantizedGraph,
    rows: pa.Table,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[PairedOutputs, Numbers]:
    """Both networks in OpenVINO on the same scans, and the numbers of what is in float."""
    before, after = _engines(bundle, graph, options)
    scans: list[PreparedScan] = []
    parts = []
    for batch in _batches(bundle, rows):
        scans += [_without_image(scan) for scan in batch]
        progress(len(scans), rows.num_rows)
        images = [scan.image for scan in batch if scan.image is not None]
        if images:
            parts.append(_both(before, after, np.stack(images)))
    if not parts:
        raise UsageError(f"none of {rows.num_rows} validation scans can be read; restore them")
    compared = PairedOutputs(*_labels_and_groups(bundle, rows, scans, options), **_joined(parts))
    if not len(compared.labeled):
        raise UsageError(
            f"none of {rows.num_rows} validation scans has a label that the bundle knows; map the "
            f"labels to {', '.join(bundle.fields.class_names)} by --classes CLASS=LABEL+LABEL,..."
        )
    return compared, "bf16" if after.bf16 else "fp32"


def _engines(
    bundle: Bundle, graph: QuantizedGraph, options: QuantizeOptions
) -> tuple[Engine, Engine]:
    """The network in float, and quantized, both in OpenVINO."""
    model, cpu = bundle.build_model(), torch.device("cpu")
    make = partial(make_engine, "openvino", model, bundle.preprocessing, cpu, options.precision)
    return make(), make(quantized=graph)


def _labels_and_groups(
    bundle: Bundle, rows: pa.Table, scans: list[PreparedScan], options: QuantizeOptions
) -> tuple[Ints, Ints]:
    """Of the scans that can be read; see `PairedOutputs`."""
    truth = true_classes(rows, bundle.fields, options.classes)
    alike = image_groups([s.pixel_sha256 for s in scans], [s.hashes for s in scans])
    groups, _ = clusters(rows, alike)
    ok = np.array([scan.status == "ok" for scan in scans])
    return truth.indices[ok], groups[ok]


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The batches' parts of `PairedOutputs` as one."""
    found: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("before", "after", "pooled")
    }
    found["correlation"] = {
        name: np.concatenate([part["correlation"][name] for part in parts])
        for name in SCORED_METHODS
    }
    return found


def _batches(bundle: Bundle, rows: pa.Table) -> Iterator[list[PreparedScan]]:
    source = decode_scans(rows, bundle.preprocessing, hashed=True)
    while batch := list(islice(source, BATCH)):
        yield batch


def _without_image(scan: PreparedScan) -> PreparedScan:
    return PreparedScan(scan.status, pixel_sha256=scan.pixel_sha256, hashes=scan.hashes)


def _both(before: Engine, after: Engine, images: GrayImage) -> dict[str, Any]:
    """A batch's part of `PairedOutputs`; both maps are of the class that is predicted in float."""
    features, changed = before.features(images), after.features(images)
    first = class_gradient(before.model, features, lambda logits: logits.argmax(dim=1))
    second = class_gradient(after.model, changed, lambda _: first.classes)
    maps, others = cams(features, first), cams(changed, second)
    return {
        "before": first.logits.numpy(),
        "after": second.logits.numpy(),
        "pooled": second.mean.numpy(),
        "correlation": {name: correlations(maps[name], others[name]) for name in SCORED_METHODS},
    }


def correlations(maps: Tensor, others: Tensor) -> NDArray[np.float64]:
    """Pearson's correlation of pairs of maps (n, h, w), (n,).

    A map without contrast agrees with another one like that (1), and with no other map (0).
    """
    a, b = (_centered(each) for each in (maps, others))
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = lengths[0] * lengths[1]
    both_flat = (lengths[0] == 0) & (lengths[1] == 0)
    ratio = (a * b).sum(axis=1) / np.where(product > 0, product, 1)
    return np.where(product > 0, ratio, both_flat.astype(np.float64))


def _centered(maps: Tensor) -> NDArray[np.float64]:
    flat = maps.flatten(1).double().numpy()
    return np.asarray(flat - flat.mean(axis=1, keepdims=True))


def _too_far(figures: dict[str, Any]) -> str:
    """What of the figures is out of bounds, in words; empty: nothing."""
    found = []
    if figures["drop_points"] > LARGEST_DROP:
        found.append(
            f"validation accuracy {figures['accuracy_before']:.4f} to {figures['accuracy']:.4f} on "
            f"{figures['n']} scans ({figures['drop_points']:.2f} points, at most {LARGEST_DROP})"
        )
    found += [
        f"correlation of {name} maps {values['mean']:.4f} (at least {LEAST_CORRELATION})"
        for name, values in figures["map_correlation"].items()
        if values["mean"] < LEAST_CORRELATION
    ]
    return ", ".join(found)


def _write(
    bundle: Bundle,
    location: str,
    output: Path,
    graph: QuantizedGraph,
    quantization: QuantizationFields,
    compared: PairedOutputs,
    allowed: bool,
) -> dict[str, Any]:
    fields, tuned = bundle.fields, _tuned(bundle, compared)
    figures = compared.figures() | {
        "temperature": tuned.temperature,
        "threshold": tuned.threshold,
        "old_temperature": fields.temperature,
        "old_threshold": fields.threshold,
        "calibration_scans": quantization.calibration_scans,
        "precision": quantization.precision,
        "made_of": quantization.made_of,
    }
    metrics = {**fields.metrics, "validation": tuned.metrics, "quantization": figures}
    changed = _changed(bundle, quantization, compared, tuned, metrics)
    card = model_card(location).rstrip("\n") + "\n" + _CARD.render(**figures, allowed=allowed)
    model, detector = bundle.build_model(), bundle.detector
    saved = save_bundle(output, changed, model, detector, card, bundle.archive, graph)
    return {"path": str(output), "fingerprint": saved.fingerprint, **figures}


def _changed(
    bundle: Bundle,
    quantization: QuantizationFields,
    compared: PairedOutputs,
    tuned: Tuned,
    metrics: dict[str, Any],
) -> BundleFields:
    """The content of bundle.json of the quantized bundle."""
    limit = bundle.fields.domain_limit
    if bundle.detector is not None and limit is not None:
        limit = domain_limit(bundle.detector.distance(compared.pooled))
    changes = {
        "schema_version": 2,
        "quantization": quantization,
        "temperature": tuned.temperature,
        "threshold": tuned.threshold,
        "prediction_sets": SetFields(**asdict(tuned.sets)),
        "domain_limit": limit,
        "views": None,  # chosen by the network in float
        "metrics": metrics,
    }
    return bundle.fields.model_copy(update=changes)


def _tuned(bundle: Bundle, compared: PairedOutputs) -> Tuned:
    fields, rows = bundle.fields, compared.labeled
    return tune_decision(
        compared.after[rows],
        compared.labels[rows],
        fields.class_names,
        bundle.positive_indices,
        fields.recipe.get("threshold_by", "f1"),
        without_choice=fields.threshold,
        coverage=fields.recipe.get("set_coverage", COVERAGE),
        groups=compared.groups[rows],
    )
