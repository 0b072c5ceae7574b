"""Results folders of many small nights, written as the archive job leaves them; no Ray.

Their rows have every column that there is, those of newer bundles too.
"""

import hashlib
import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.predict.results import read_results
from braintumor_ray.predict.schema import OPTIONAL_FIELDS, result_schema
from tests.evaluation.make_results import CLASSES, METHODS, results_meta

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
SHAPE = (7, 7)
SCHEMA = result_schema(SHAPE, METHODS, tuple(OPTIONAL_FIELDS))


def make_nights(root, nights=12, rows=20, seed=0, files=2):
    """Each night scores new scans, a new version of one old scan, and one scan again."""
    root = Path(root)
    root.mkdir(parents=True)
    meta = results_meta(SHAPE) | {"optional_columns": list(OPTIONAL_FIELDS)}
    write_json(root / "results.json", meta)
    for number in range(1, nights + 1):
        add_night(root, number, rows, seed, files)
    return root


def add_night(root, number, rows=20, seed=0, files=2):
    """One generation; from the second on it supersedes two rows of the one before."""
    random = np.random.default_rng([seed, number])
    scans = [(f"scan-{number:04d}-{i:04d}.png", number * 10_000 + i) for i in range(rows)]
    supersedes = {}
    if number > 1:
        before = (number - 1) * 10_000
        scans[0] = (f"scan-{number - 1:04d}-0002.png", scans[0][1])  # a new version of the file
        scans[1] = (f"scan-{number - 1:04d}-0003.png", before + 3)  # the same, scored again
        supersedes = {str(number - 1): [before + 2, before + 3]}
    made = [row(uri, scan, number, i, random) for i, (uri, scan) in enumerate(scans)]
    listed = []
    for part, chosen in enumerate(np.array_split(np.arange(rows), files)):
        path = f"rows/{number:06d}/{part:03d}_000000-0.parquet"
        table = pa.Table.from_pylist([made[i] for i in chosen], SCHEMA)
        write(root / path, table)
        size = (root / path).stat().st_size
        listed.append({"path": path, "rows": len(chosen), "bytes": size})
    catalog = f"catalogs/{number:06d}/20260101T000000000000Z-00000.parquet"
    scan_rows = [{"scan_id": s, "uri": u, "path": u, "frame": 0} for u, s in scans]
    columns = [{f.name: r.get(f.name) for f in CATALOG_SCHEMA} for r in scan_rows]
    write(root / catalog, pa.Table.from_pylist(columns, CATALOG_SCHEMA))
    summary = {"generation": number, "scans": rows, "status": {"ok": rows}, "classes": {}}
    write_json(
        root / "manifests" / f"{number:06d}.json",
        {
            "generation": number,
            "run_id": f"{seed:016x}{number:016x}",
            "fingerprint": "fp",
            "catalogs": [catalog],
            "files": listed,
            "supersedes": supersedes,
            "retired": [(number - 1) * 10_000 + 2] if number > 1 else [],
            "summary": summary,
        },
    )


def row(uri, scan, number, index, random):
    patient = hashlib.sha256(uri[:12].encode()).hexdigest() if index % 5 else None
    found = {
        "scan_id": scan,
        "uri": uri,
        "frame": 0,
        "patient_key": patient,
        "status": "ok",
        "pixel_sha256": "0" * 64,
        "bundle_fingerprint": "f" * 32,
        "scored_at": 1_700_000_000_000_000 + number * 86_400_000_000 + index,
        "height": 224,
        "width": 224,
    }
    if index == 7:
        return found | {"status": "quarantined", "reason": "JPEG is damaged"}
    p = random.dirichlet([0.5] * 4).astype(np.float32)
    maps = {m: random.random(49).astype(np.float16) for m in METHODS}
    name = CLASSES[int(p.argmax())]
    decided = {"predicted_class": name, "cam_class": name, "decision": bool(p[2] < 0.5)}
    decided["prediction_set"] = [c for c, chance in zip(CLASSES, p, strict=True) if chance > 0.2]
    decided["domain_coordinates"] = random.standard_normal(3).astype(np.float32)
    return found | decided | {"probabilities": p, "entropy": float(p.max()), **maps}


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def digest(table):
    """Of the sorted rows."""
    names = [name for name in SCHEMA.names if name in table.column_names]
    ordered = table.select(names).sort_by([("uri", "ascending"), ("scored_at", "ascending")])
    text = json.dumps(ordered.to_pylist(), default=str)
    return ordered.num_rows, hashlib.sha256(text.encode()).hexdigest()


def current(root):
    """Digest of the rows that our reader gives."""
    return digest(read_results(root))


def by_the_readme(root):
    """The counts that the README's query gives, and the digest of the rows that it counts."""
    connection, counted, inner = prepared_by_the_readme(root)
    found = connection.execute(counted).fetchall()
    counts = sorted(((name, n, round(mean or 0, 6)) for name, n, mean in found), key=str)
    columns = "scan_id, uri, status, predicted_class, entropy, gradcam, epoch_us(scored_at)"
    rows = connection.execute(f"SELECT {columns} FROM ({inner}) ORDER BY uri").fetchall()
    return counts, hashlib.sha256(repr(rows).encode()).hexdigest()


def ids_by_the_readme(root):
    """Of the scans that the README's query counts, sorted."""
    connection, _, inner = prepared_by_the_readme(root)
    return [
        scan
        for (scan,) in connection.execute(f"SELECT scan_id FROM ({inner}) ORDER BY 1").fetchall()
    ]


def prepared_by_the_readme(root):
    """A connection with what the README's query needs, the query, and its selection of rows."""
    (query,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    text = re.sub(r"--.*", "", query).replace("'results/", f"'{root}/")
    *prepared, counted = text.strip().rstrip(";").split(";")
    connection = duckdb.connect()
    for statement in prepared:
        connection.execute(statement)
    return connection, counted, re.search(r"FROM \((SELECT \* .*?= 1)\)", counted, re.DOTALL)[1]
