"""What a night costs with ten million scored scans: plan, verify, compaction, registration.

    python benchmarks/large_archive.py [--rows 1000000 10000000] [--folder FOLDER] [--output DIR]

Nothing is scored and Ray is not started: the generations are written as Parquet, as the archive
job leaves them, with the same maps again and again (about 500 bytes a scan on disk). Then each
step runs in a process of its own: the plan of a night with nothing new; of one with 1% new scans;
`verify`; `register`; `compact`. Memory is resident, the highest of the process; `base_mb` of it
are loaded libraries.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.scale import BARS, catalog_part, require_disk
from braintumor_ray.predict.schema import KEYS, result_schema
from tests.archive.nights import write_json
from tests.evaluation.make_results import CLASSES, METHODS, results_meta

SHAPE = (7, 7)
PART = 20_000  # catalog rows of a file
STEPS = ("plan", "new", "verify", "register", "compact")


class Maker:
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


def make(root, count, generations, rows_per_file):
    """A results folder, and the catalogs of a night with nothing new and of one with 1% new."""
    maker = Maker(root, rows_per_file)
    edges = np.linspace(0, count, generations + 1).astype(int)
    for number, (first, stop) in enumerate(pairwise(edges), 1):
        maker.generation(number, int(first), int(stop - first))
    for name in ("plan", "new"):
        together = Path(root).parent / f"{name}.parquet"  # a folder of catalogs is one catalog
        together.mkdir()
        for path in sorted(Path(root).glob("catalogs/*/*.parquet")):
            os.link(path, together / f"{path.parent.name}-{path.name}")
    write(together / "new.parquet", catalog_part(np.arange(count, count + count // 100)))


def step(options):
    """One of the steps; its figures."""
    work = Path(options.work)
    call = {
        "plan": lambda: plan(work, "plan", 0),
        "new": lambda: plan(work, "new", options.count // 100),
        "verify": lambda: check(work, options.count),
        "register": lambda: add(work),
        "compact": lambda: join(work, options.count),
    }[options.step]
    load()
    base, started, used = common.peak_mb(), time.perf_counter(), time.process_time()
    call()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - used,
        "base_mb": base,
        "peak_mb": common.peak_mb(),
    }


def load():
    """What every command has loaded before it begins."""
    import braintumor_ray.archive.compact
    import braintumor_ray.archive.register
    import braintumor_ray.scoring.verify  # noqa: F401


def plan(work, name, new):
    from braintumor_ray.predict.results import results_folder
    from braintumor_ray.scoring.plan import make_plan
    from braintumor_ray.scoring.scans import open_scans

    folder = results_folder(work / "results")
    found = make_plan(folder, open_scans(str(work / f"{name}.parquet")), folder.manifests(), "fp")
    assert found.remaining == new


def check(work, count):
    from braintumor_ray.scoring.verify import verify

    report = verify(str(work / "results"))
    assert (report.scans, report.differences) == (count, [])


def add(work):
    from braintumor_ray.archive.register import register

    register(str(work / "results"), f"sqlite:///{work}/catalog.db")


def join(work, count):
    from braintumor_ray.archive.compact import compact

    done = compact(str(work / "results"))
    assert done.rows <= count


def run(options):
    """Every step for every size."""
    found = []
    for count in options.rows:
        with tempfile.TemporaryDirectory(prefix="bench-large-", dir=options.folder) as work:
            require_disk(work, 2 * count)  # compaction writes all of it again
            started = time.perf_counter()
            make(Path(work) / "results", count, options.generations, options.rows_per_file)
            print(f"{count:,} rows made: {time.perf_counter() - started:.0f} s", file=sys.stderr)
            for name in options.steps:
                values = {"count": count, "work": work, "step": name}
                one = common.child(__file__, "job", timeout_s=options.limit_s, **values)
                found.append({"rows": count, "step": name, **one})
                print(found[-1], file=sys.stderr, flush=True)
    return {"steps": found, "machine": common.machine()}


def checks(found):
    """The bars at ten million rows, of the largest size that was run."""
    largest = max(one["rows"] for one in found)
    of = {one["step"]: one for one in found if one["rows"] == largest}
    bars = [
        ("plan", "cpu_s", BARS["second_night_plan_s"]),
        ("plan", "peak_mb", BARS["plan_driver_mb"]),
        ("new", "peak_mb", BARS["driver_mb"]),
        ("verify", "peak_mb", BARS["verify_driver_mb"]),
    ]
    return [
        (f"{largest:,} rows, {name}: {key}", of[name][key], "<=", bar)
        for name, key, bar in bars
        if name in of
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--rows-per-file", type=int, default=10_000)
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--folder", help="for the archive: 12 GB for 10 million rows")
    parser.add_argument("--limit-s", type=float, default=4 * 3600, help="of one step, in seconds")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--role", default="whole", choices=["whole", "job"], help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    for name in ("--work", "--step"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.generations, options.rows_per_file = [400, 4000], 4, 100
    if options.role == "job":
        print(json.dumps(step(options)))
        return
    found = run(options)
    found["checks"] = checks(found["steps"])
    target = common.write_json(options.output, "large_archive", found)
    print(common.table([{k: shown(v) for k, v in one.items()} for one in found["steps"]]))
    print(common.checks_table(found["checks"]))
    print(f"{found['machine']}\nwritten: {target}")


def shown(value):
    return value if isinstance(value, str) else f"{value:,.1f}".removesuffix(".0")


if __name__ == "__main__":
    main()
