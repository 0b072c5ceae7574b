"""Does the archive job stay flat? A catalog of many rows, a mock model, no decoding.

    python benchmarks/scale.py [--scans 30000 300000] [--output DIR]
    python benchmarks/scale.py --ten-million [--folder FOLDER]    # 1 and 10 million rows, hours

Everything but decoding and the network is real: catalog, plan, Ray Data with checkpoints, Parquet,
manifest, verify. Each size runs in a fresh process. Memory is each process's own (RSS less what it
shares with others, so not Ray's object store), the peak of samples every 0.2 s. Scans/s is of the
steady state, from the first commit to the last. Limits of a size: 1.5 GB for the driver, 20 s to
plan a night with nothing new, 1.5 GB to verify, `--limit-s` seconds in all. What the two sizes say
of 10 million rows, if memory and time grow along a line, is shown where none was run.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.score import committed, steady_rate
from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.predict.schema import KEYS, result_schema

ROWS_PER_WRITE = 20_000
TEN_MILLION = 10_000_000
BYTES_PER_SCAN = 600  # on disk, catalog and results; 500 were seen
# What must hold at 10 million rows.
BARS = {
    "driver_mb": 1500,
    "second_night_plan_s": 20,
    "plan_driver_mb": 1500,
    "verify_driver_mb": 1500,
}


class MockDecode:
    """The decoder's columns without reading anything."""

    def __init__(self, preprocessing, settings, cam_shape):
        self._square = bytes(preprocessing.image_size**2)
        self._head = bytes(3 * 4 * cam_shape[0] * cam_shape[1])

    def __call__(self, rows):
        """A block of rows."""
        count = rows.num_rows
        kept = rows.select(["scan_id", "uri", "frame", *KEYS])
        for name, value, kind in (
            ("status", "ok", pa.string()),
            ("reason", None, pa.string()),
            ("height", 224, pa.int32()),
            ("width", 224, pa.int32()),
            ("pixel_sha256", "0" * 64, pa.string()),
            ("image", self._square, pa.large_binary()),
            ("head", self._head, pa.large_binary()),
        ):
            kept = kept.append_column(name, pa.array([value] * count, kind))
        return kept


class MockPredict:
    """The predictor's columns, at once: random maps, so that Parquet cannot fold them away."""

    def __init__(self, settings, fingerprint, report=None):
        from braintumor_ray.models.bundle import load_bundle

        bundle = load_bundle(settings.bundle)
        shape = bundle.cam_shape
        self._schema = result_schema(shape, settings.methods)
        self._classes = bundle.fields.class_names
        self._fingerprint, self._report = fingerprint, report
        self._size = shape[0] * shape[1]
        self._random = np.random.default_rng(0)

    def __call__(self, rows):
        """A block of rows."""
        started = time.perf_counter()
        columns = {name: rows[name] for name in rows.column_names if name != "image"}
        columns |= self._predictions(rows.num_rows)
        arrays = [columns[field.name].cast(field.type) for field in self._schema]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        if self._report:
            self._report(rows.num_rows, time.perf_counter() - started)
        return table

    def _predictions(self, count):
        chosen = self._random.integers(0, len(self._classes), count)
        maps = self._random.random((count, self._size)).astype(np.float16)
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * self._size)
        names = np.array(self._classes)[chosen]
        uniform = [[1 / len(self._classes)] * len(self._classes)] * count
        found = {
            "predicted_class": pa.array(names),
            "cam_class": pa.array(names),
            "probabilities": pa.array(uniform, pa.list_(pa.float32())),
            "decision": pa.array(chosen > 0),
            "entropy": pa.array(self._random.random(count, np.float32)),
            "out_of_domain": pa.array(np.zeros(count, bool)),
            "bundle_fingerprint": pa.array([self._fingerprint] * count),
            "scored_at": pa.array([datetime.now(timezone.utc)] * count),
        }
        for field in self._schema:
            if field.name.startswith("heat_"):
                found[field.name] = pa.array(self._random.random(count, np.float32))
            elif field.type == pa.list_(pa.float16()):
                found[field.name] = pa.ListArray.from_arrays(offsets, pa.array(maps.reshape(-1)))
        return found


def write_catalog(path, count):
    """A catalog of scans that do not exist."""
    with pq.ParquetWriter(path, CATALOG_SCHEMA, compression="zstd") as writer:
        for start in range(0, count, ROWS_PER_WRITE):
            numbers = np.arange(start, min(start + ROWS_PER_WRITE, count))
            writer.write_table(catalog_part(numbers))


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


class Watch:
    """Peak memory of this process and of Ray's workers."""

    def __init__(self):
        self.driver = self.worker = self.workers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _sample(self):
        me = psutil.Process()
        while not self._stop.wait(0.2):
            self.driver = max(self.driver, own_memory(me))
            sizes = [own_memory(p) for p in me.children(recursive=True) if is_worker(p)]
            self.worker = max([self.worker, *sizes])
            self.workers = max(self.workers, sum(sizes))


def is_worker(process):
    try:
        return "ray::" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def own_memory(process):
    """Bytes that are not shared with other processes."""
    try:
        found = process.memory_info()
    except psutil.Error:
        return 0
    return found.rss - found.shared


def score_mock(options):
    """Score a catalog of `options.count` rows; the figures."""
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.scoring.job import ScoreOptions, Stages, plan_only, score
    from braintumor_ray.scoring.options import PredictSettings
    from braintumor_ray.scoring.scans import open_scans
    from braintumor_ray.scoring.verify import verify

    count, work = options.count, Path(options.work)
    catalog, results = str(work / "catalog.parquet"), str(work / "results")
    write_catalog(catalog, count)
    job = ScoreOptions(PredictSettings(str(work / "bundle")), block_size=options.block_size)
    started = time.perf_counter()
    with ray_session(), Watch() as watch:
        score(open_scans(catalog), results, job, None, Stages(MockDecode, MockPredict))
        seconds = time.perf_counter() - started
    peak_driver, first = watch.driver, time.perf_counter()
    with Watch() as planning:
        again = plan_only(open_scans(catalog), results, replace(job, limit=None))
    second_night = time.perf_counter() - first
    first = time.perf_counter()
    with Watch() as checking:
        report = verify(results)
    verified = time.perf_counter() - first
    assert (again.remaining, report.scans, report.differences) == (0, count, [])
    sizes = [path.stat().st_size for path in Path(results).glob("rows/*/*.parquet")]
    return {
        "scans": count,
        "seconds": seconds,
        "steady_scans_per_s": steady_rate(committed(Path(results) / "rows")),
        "driver_mb": peak_driver / 1e6,
        "largest_worker_mb": watch.worker / 1e6,
        "all_workers_mb": watch.workers / 1e6,
        "second_night_plan_s": second_night,
        "plan_driver_mb": planning.driver / 1e6,
        "verify_s": verified,
        "verify_driver_mb": checking.driver / 1e6,
        "files": len(sizes),
        "bytes_per_scan": sum(sizes) / count,
        "catalog_bytes_per_scan": Path(catalog).stat().st_size / count,
    }


def run(options):
    """Each size in a process of its own."""
    jobs = []
    for count in options.scans:
        with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=options.folder) as work:
            require_disk(work, count)
            common.untrained_bundle(Path(work) / "bundle", tiny=options.tiny)
            values = {"count": count, "work": work, "block-size": options.block_size}
            jobs.append(common.child(__file__, "job", timeout_s=options.limit_s, **values))
            print(jobs[-1], file=sys.stderr, flush=True)
    return {"jobs": jobs, "machine": common.machine()}


def require_disk(work, count):
    """Stop before a run that would fill the disk."""
    need, free = count * BYTES_PER_SCAN, shutil.disk_usage(work).free
    if need > free:
        raise SystemExit(
            f"{count:,} rows need {need / 1e9:.0f} GB below '{work}', {free / 1e9:.0f} GB are "
            "free; give another --folder"
        )


def along_a_line(small, large, key, scans=TEN_MILLION):
    """What two sizes say of another one, if a figure grows along a line; never less than seen."""
    slope = (large[key] - small[key]) / (large["scans"] - small["scans"])
    return max(large[key] + slope * (scans - large["scans"]), small[key], large[key])


def bars_at_ten_million(small, large):
    """Each limit, with what was seen, or with what the two sizes say."""
    seen = large["scans"] >= TEN_MILLION
    how = "" if seen else f", from {small['scans']:,} and {large['scans']:,} rows along a line"
    return [
        (f"10 million rows{how}: {key}", along_a_line(small, large, key), "<=", bar)
        for key, bar in BARS.items()
    ]


def checks(small, large):
    """Flat: ten times the scans, within 10%; and the limits at 10 million rows."""
    times = f"{large['scans'] / small['scans']:.0f}x the scans"
    list_ = [
        (f"{times}: peak memory of the driver", large["driver_mb"] / small["driver_mb"], "<=", 1.1),
        (
            f"{times}: of the largest worker",
            large["largest_worker_mb"] / small["largest_worker_mb"],
            "<=",
            1.1,
        ),
    ]
    if small["steady_scans_per_s"]:
        rate = large["steady_scans_per_s"] / small["steady_scans_per_s"]
        list_.append((f"{times}: scans/s", rate, ">=", 0.9))
    return list_ + bars_at_ten_million(small, large)


def report(options):
    """Table, JSON and picture."""
    found = run(options)
    jobs = found["jobs"]
    found["checks"] = checks(jobs[0], jobs[-1])
    known = common.write_json(options.output, "scale", found)
    draw(known.with_suffix(".png"), jobs)
    print(
        common.table(
            [
                {"": key, **{f"{job['scans']:,} scans": shown(job[key]) for job in jobs}}
                for key in jobs[0]
            ]
        )
    )
    print(common.checks_table(found["checks"]))
    print(f"{found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


def shown(value):
    return "" if value is None else f"{value:,.1f}"


def draw(path, jobs):
    """Memory and speed for each size."""
    panels = {
        "peak private memory of the driver, MB": "driver_mb",
        "of the largest worker, MB": "largest_worker_mb",
        "scans/s in steady state": "steady_scans_per_s",
    }
    groups = {
        title: {f"ours, {job['scans']:,} scans": common.spread([job[key] or 0.0]) for job in jobs}
        for title, key in panels.items()
    }
    common.bars(path, f"The archive job with a mock model: {common.cpu_name()}", groups, "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[30_000, 300_000])
    parser.add_argument("--ten-million", action="store_true", help="1 and 10 million rows")
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--folder", help="for catalogs and results: 6 GB for 10 million rows")
    parser.add_argument("--limit-s", type=float, default=4 * 3600, help="of one size, in seconds")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--role", default="whole", choices=["whole", "job"], help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ten_million:
        options.scans = [TEN_MILLION // 10, TEN_MILLION]
    if options.tiny:
        options.scans, options.block_size = [40, 400], 40
    if options.role == "job":
        print(json.dumps(score_mock(options)))
    else:
        report(options)


if __name__ == "__main__":
    main()
