"""A small results folder, written with pyarrow as the archive job leaves it; no model, no Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.hashes import pixel_sha256
from braintumor_ray.decode.types import VolumeOptions
from braintumor_ray.predict.schema import result_schema
from braintumor_ray.storage import read_bytes

CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
METHODS = ("gradcam", "gradcam_pp")


def make_results(
    folder: Path,
    catalog: pa.Table,
    probabilities: np.ndarray | None = None,
    *,
    cam_shape=(7, 7),
    seed=0,
    unreadable=(),
    generations=1,
    sets=None,
) -> Path:
    """Write RESULTS for every row of a catalog.

    Args:
        probabilities: (n, 4) in the order of CLASSES; None: random.
        unreadable: rows that get status quarantined.
        generations: into how many runs the rows are spread.
        sets: prediction sets, lists of names; None: rows of before there were any.
    """
    rng = np.random.default_rng(seed)
    if probabilities is None:
        probabilities = rng.dirichlet((0.6,) * len(CLASSES), catalog.num_rows)
    maps = {name: rng.random((catalog.num_rows, *cam_shape), np.float32) for name in METHODS}
    rows = [
        _row(scan, probabilities[i], {m: maps[m][i] for m in METHODS}, i in set(unreadable))
        for i, scan in enumerate(catalog.to_pylist())
    ]
    for row, named in zip(rows, sets or [], strict=sets is not None):
        row["prediction_set"] = named
    folder.mkdir(parents=True)
    optional = () if sets is None else ("prediction_set",)
    meta = results_meta(cam_shape) | ({"optional_columns": list(optional)} if optional else {})
    _write_json(folder / "results.json", meta)
    for number, part in enumerate(np.array_split(np.arange(catalog.num_rows), generations), 1):
        _write_generation(
            folder, number, catalog.take(pa.array(part)), [rows[i] for i in part], cam_shape,
            optional,
        )  # fmt: skip
    return folder


def add_generation(folder, number, catalog, *, seed=1, cam_shape=(7, 7)):
    """A further run, of new rows, in a results folder of `make_results`."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet((0.6,) * len(CLASSES), catalog.num_rows)
    maps = rng.random((catalog.num_rows, *cam_shape), np.float32)
    rows = [
        _row(scan, chances[i], dict.fromkeys(METHODS, maps[i]), False)
        for i, scan in enumerate(catalog.to_pylist())
    ]
    _write_generation(folder, number, catalog, rows, cam_shape, ())


def results_meta(cam_shape):
    """Content of results.json."""
    return {
        "schema_version": 1,
        "bundle_fingerprint": "f" * 32,
        "class_names": list(CLASSES),
        "positive_classes": [name for name in CLASSES if name != "no_tumor"],
        "threshold": 0.5,
        "image_size": 224,
        "cam_class": "predicted",
        "cam_methods": list(METHODS),
        "cam_shape": list(cam_shape),
    }


def _row(scan, p, maps, unreadable):
    row = {name: scan[name] for name in ("scan_id", "uri", "frame", "patient_key", "series_key")}
    if unreadable:
        return row | {"status": "quarantined", "reason": "JPEG is damaged"}
    volumes = VolumeOptions(scan["volume_plane"] or "axial", scan["volume_index"] or 0)
    content = read_bytes(scan["uri"].removesuffix(volumes.mark))
    decoded = decode(content, frame=scan["frame"], volumes=volumes).gray
    name = CLASSES[int(np.argmax(p))]
    return row | {
        "status": "ok",
        "height": decoded.shape[0],
        "width": decoded.shape[1],
        "pixel_sha256": pixel_sha256(decoded),
        "predicted_class": name,
        "probabilities": p.tolist(),
        "decision": bool(p.sum() - p[CLASSES.index("no_tumor")] >= 0.5),
        "entropy": float(-(p * np.log(np.clip(p, 1e-12, 1))).sum() / np.log(len(p))),
        "out_of_domain": False,
        "cam_class": name,
        **{method: cam.astype(np.float16).ravel() for method, cam in maps.items()},
    }


def _write_generation(folder, number, catalog, rows, cam_shape, optional):
    name = f"{number:06d}"
    for kind in ("catalogs", "rows"):
        (folder / kind / name).mkdir(parents=True)
    pq.write_table(catalog, folder / "catalogs" / name / "a-00000.parquet")
    schema = result_schema(cam_shape, METHODS, optional)
    table = pa.Table.from_pylist([{k: r.get(k) for k in schema.names} for r in rows], schema)
    pq.write_table(table, folder / "rows" / name / "part.parquet")
    manifest = {
        "generation": number,
        "catalogs": [f"catalogs/{name}/a-00000.parquet"],
        "files": [{"path": f"rows/{name}/part.parquet", "rows": len(rows)}],
        "supersedes": {},
    }
    _write_json(folder / "manifests" / f"{name}.json", manifest)


def _write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
