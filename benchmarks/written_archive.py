"""Archives of scans that do not exist, as the archive job leaves them, but written without Ray.

The maps are the same in every file; an archive takes about 220 bytes a scan.
"""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.predict.schema import KEYS, result_schema
from tests.archive.nights import write_json
from tests.evaluation.make_results import CLASSES, METHODS, results_meta

SHAPE = (7, 7)
PART = 20_000  # catalog rows of a file


def write_archive(root, count, generations=20, rows_per_file=10_000):
    """A results folder of so many scans, in so many runs."""
    writer = _Writer(root, rows_per_file)
    edges = np.linspace(0, count, generations + 1).astype(int)
    for number, (first, stop) in enumerate(pairwise(edges), 1):
        writer.generation(number, int(first), int(stop - first))


def link_catalogs(target, sources, more=None):
    """A folder of catalogs, which is one catalog; further rows may be added."""
    target.mkdir(parents=True)
    for path in sources:
        os.link(path, target / f"{path.parent.name}-{path.name}")
    if more is not None:
        write(target / "new.parquet", more)


def catalog_parts(count):
    """The catalog of so many scans, in tables."""
    for start in range(0, count, PART):
        yield catalog_part(np.arange(start, min(start + PART, count)))


def catalog_part(numbers):
    paths = [f"site{n % 40:02d}/{n // 4000:06d}/series-{n // 20:09d}/{n:010d}.dcm" for n in numbers]
    ids = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
    columns = {
        "scan_id": pa.array(ids),
        "path": pa.array(paths),
        "uri": pa.array([f"/archive/of/the/hospital/{path}" for path in paths]),
        "frame": pa.array(np.zeros(len(numbers), np.int32)),
        "size": pa.array(numbers + 100_000),
        "format": pa.array(["dicom"] * len(numbers)),
        "patient_key": pa.array([f"{n // 60:016x}" for n in numbers]),
        "series_key": pa.array([f"{n // 20:016x}" for n in numbers]),
    }
    for field in CATALOG_SCHEMA:
        columns.setdefault(field.name, pa.nulls(len(numbers), field.type))
    return pa.table([columns[f.name].cast(f.type) for f in CATALOG_SCHEMA], schema=CATALOG_SCHEMA)


class _Writer:
    """Writes generations of scans that do not exist."""

    def __init__(self, root, rows_per_file):
        self.root, self._size = Path(root), rows_per_file
        self._schema = result_schema(SHAPE, METHODS)
        self._same = self._predictions(rows_per_file)
        write_json(self.root / "results.json", results_meta(SHAPE))

    def generation(self, number, first, count):
        """Rows of the scans `first` to `first + count` as one run."""
        files, catalogs = [], []
        for start in range(first, first + count, PART):
            scans = catalog_part(np.arange(start, min(start + PART, first + count)))
            catalogs.append(f"catalogs/{number:06d}/t-{len(catalogs):05d}.parquet")
            write(self.root / catalogs[-1], scans)
            for at in range(0, scans.num_rows, self._size):
                rows = self._rows(scans.slice(at, self._size))
                path = f"rows/{number:06d}/{len(files):06d}_000000-0.parquet"
                size = write(self.root / path, rows)
                files.append({"path": path, "rows": rows.num_rows, "bytes": size})
        write_json(
            self.root / "manifests" / f"{number:06d}.json",
            {
                "generation": number,
                "run_id": f"{number:032x}",
                "fingerprint": "fp",
                "catalogs": catalogs,
                "files": files,
                "supersedes": {},
                "summary": {"generation": number, "scans": count, "status": {"ok": count}},
            },
        )

    def _rows(self, scans):
        columns = self._same.slice(0, scans.num_rows)
        for name in ("scan_id", "uri", "frame", *KEYS):
            place = self._schema.get_field_index(name)
            column = scans[name].cast(self._schema.field(name).type)
            columns = columns.set_column(place, self._schema.field(name), column)
        return columns

    def _predictions(self, count):
        random = np.random.default_rng(0)
        names = np.array(CLASSES)[random.integers(0, len(CLASSES), count)]
        given = {
            "status": ["ok"] * count,
            "pixel_sha256": ["0" * 64] * count,
            "predicted_class": names,
            "cam_class": names,
            "probabilities": list(random.dirichlet([0.5] * 4, count).astype(np.float32)),
            "decision": names != "no_tumor",
            "entropy": random.random(count, np.float32),
            "bundle_fingerprint": [results_meta(SHAPE)["bundle_fingerprint"]] * count,
            "scored_at": np.full(count, 1_700_000_000_000_000),
            **{m: list(random.random((count, 49)).astype(np.float16)) for m in METHODS},
        }
        made = {name: pa.array(values) for name, values in given.items()}
        return pa.table(
            [
                made[f.name].cast(f.type) if f.name in made else pa.nulls(count, f.type)
                for f in self._schema
            ],
            schema=self._schema,
        )


def write(path, table):
    """The file's size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    return path.stat().st_size
