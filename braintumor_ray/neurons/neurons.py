"""What single neurons of the last feature map respond to, and their correlation with classes."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import softmax

from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.neurons.options import NeuronOptions
from braintumor_ray.neurons.pictures import write_sheets
from braintumor_ray.neurons.statistics import NeuronStats, neuron_stats
from braintumor_ray.predict.options import PredictorOptions
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.storage import Folder, write_atomically, write_table
from braintumor_ray.types import Progress

ACTIVATIONS, TABLE, SUMMARY = "activations.parquet", "neurons.csv", "neurons.json"
_NOTE = (
    "Scans count as independent: with slices of one patient or duplicates the q-values are too "
    "small. A neuron that goes with a class is no proof of what the network uses it for."
)


def run_neurons(
    catalog: pa.Table,
    bundle_path: str | Path,
    output: str | Path,
    options: NeuronOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Record the last feature map's neurons over a catalog and correlate them with its labels.

    Writes activations.parquet (`scan_id`, `path`, `frame`, `label`, `activation`: softmax over
    the C pooled neurons, in [0, 1], sums to 1), neurons.csv (every neuron and class),
    top_CLASS.png (a row per neuron: the scans that excite it most, each with that neuron's own
    activation map) and, last, neurons.json, which is also returned.

    Args:
        catalog: scans with `label` (`catalog.schema.CATALOG_SCHEMA`); unlabeled ones are left out.
        bundle_path: the bundle.
        output: a folder, made if it is not there.
        options: how.
        progress: called with scans done and to do.

    Raises:
        UsageError: fewer than two classes among the readable labeled scans.
        BundleError: the bundle cannot be loaded.
    """
    options = options or NeuronOptions()
    scans = _labeled(catalog, options)
    predictor = Predictor(load_bundle(bundle_path), PredictorOptions.of(options, methods=()))
    recorded = _record(predictor, scans, progress)
    stats = neuron_stats(recorded.activations, recorded.scans["label"].to_pylist())
    folder = Folder(str(output).rstrip("/"))
    write_table(folder.at(ACTIVATIONS), _as_table(recorded))
    write_atomically(folder.at(TABLE), _csv(stats))
    top = _top_neurons(stats, recorded, options)
    sheets = write_sheets(top, recorded.scans, predictor.bundle, predictor.device, folder.location)
    summary = {
        "scans": recorded.scans.num_rows,
        "neurons": recorded.activations.shape[1],
        "unlabelled": catalog.num_rows - scans.num_rows if options.limit is None else None,
        "unreadable": scans.num_rows - recorded.scans.num_rows,
        "bundle_fingerprint": predictor.bundle.fingerprint,
        "options": asdict(options),
        "note": _NOTE,
        "classes": top,
        "files": [*sheets, TABLE, ACTIVATIONS, SUMMARY],
    }
    folder.write_json(summary, SUMMARY)
    return summary


@dataclass(frozen=True)
class _Recorded:
    """The readable scans (n rows of the catalog), their activations (n, C) and pixel hashes."""

    scans: pa.Table
    activations: NDArray[np.float32]
    hashes: list[str]


def _labeled(catalog: pa.Table, options: NeuronOptions) -> pa.Table:
    scans = catalog.filter(catalog["label"].is_valid())
    classes = len(scans["label"].unique())
    if classes < 2:
        raise UsageError(
            f"the catalog has scans of {classes} class(es); neurons are compared between two or "
            "more: give a catalog with labels (--label-column, or a folder per class)"
        )
    if options.limit is not None and options.limit < scans.num_rows:
        drawn = np.random.default_rng(options.seed).permutation(scans.num_rows)[: options.limit]
        scans = scans.take(pa.array(np.sort(drawn)))
    return scans


def _record(predictor: Predictor, scans: pa.Table, progress: Progress | None) -> _Recorded:
    kept, pooled, hashes = list[int](), [], []
    read = enumerate(decode_scans(scans, predictor.bundle.preprocessing))
    while batch := list(islice(read, predictor.batch_size)):
        usable = [(row, scan) for row, scan in batch if scan.image is not None]
        if usable:
            squares = np.stack([np.asarray(scan.image) for _, scan in usable])
            pooled.append(predictor.forward(squares, explain=False).pooled)
        kept += [row for row, _ in usable]
        hashes += [str(scan.pixel_sha256) for _, scan in usable]
        if progress:
            progress(batch[-1][0] + 1, scans.num_rows)
    if not kept:
        raise UsageError(f"none of {scans.num_rows} labeled scans can be read")
    return _Recorded(scans.take(pa.array(kept)), softmax(np.concatenate(pooled), axis=1), hashes)


def _as_table(recorded: _Recorded) -> pa.Table:
    flat = pa.array(recorded.activations.reshape(-1))
    return recorded.scans.select(["scan_id", "path", "frame", "label"]).append_column(
        "activation", pa.FixedSizeListArray.from_arrays(flat, recorded.activations.shape[1])
    )


_STATISTICS = ("r", "r_q", "auroc", "auroc_q", "mean_in", "mean_out")


def _statistics(stats: NeuronStats, index: int, neuron: int) -> dict[str, float | None]:
    values = {name: float(getattr(stats, name)[index, neuron]) for name in _STATISTICS}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _csv(stats: NeuronStats) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["class", "neuron", *_STATISTICS], lineterminator="\n")
    writer.writeheader()
    for index, name in enumerate(stats.classes):
        for neuron in range(stats.r.shape[1]):
            row = _statistics(stats, index, neuron)
            writer.writerow({"class": name, "neuron": neuron, **row})
    return text.getvalue().encode()


def _top_neurons(
    stats: NeuronStats, recorded: _Recorded, options: NeuronOptions
) -> dict[str, list[dict[str, Any]]]:
    facts = recorded.scans.select(["path", "frame", "label"]).to_pylist()
    tops: dict[str, list[dict[str, Any]]] = {}
    for index, name in enumerate(stats.classes):
        tops[name] = []
        for neuron in stats.top(index, options.top).tolist():
            activation = recorded.activations[:, neuron]
            examples = [
                {"row": row, **facts[row], "activation": float(activation[row])}
                for row in _most_excited(activation, recorded.hashes, options.examples)
            ]
            found = {"neuron": neuron, **_statistics(stats, index, neuron), "examples": examples}
            tops[name].append(found)
    return tops


def _most_excited(activation: NDArray[np.float32], hashes: Sequence[str], count: int) -> list[int]:
    """Rows of the highest activations; of scans with the same pixels one."""
    order = np.argsort(-activation, kind="stable")
    first = np.unique(np.array(hashes)[order], return_index=True)[1]
    return order[np.sort(first)[:count]].tolist()
