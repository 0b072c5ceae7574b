"""Does the archive stay flat, up to ten million scans? No files, a mock model, no decoding.

    python benchmarks/scale.py [--scans 30000 300000] [--output DIR]
    python benchmarks/scale.py --written --scans 1000000 10000000
    python benchmarks/scale.py --written --scans 10000000 --folder FOLDER --steps plan

For each size an archive is made: by the archive job, of which everything but decoding and the
network is real (catalog, plan, Ray Data with checkpoints, Parquet, manifest), or, with
`--written`, as Parquet of 20 runs, without Ray. Below `--folder` it stays, and is used again. Then
each step runs in a process of its own: the plan of a night with nothing new and of one with 1% new
scans, `verify`, `register`, `compact` (the last two change a linked copy).

Memory of a step is the highest resident one of its process; `base_mb` of it are loaded libraries.
That of the job is each process's own (RSS less what it shares with others, so not Ray's object
store), the peak of samples every 0.2 s. Scans/s is of the steady state, from the first commit to
the last. What two sizes say of 10 million scans, if memory and time grow along a line, is shown
where none was run.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.score import committed, steady_rate
from benchmarks.written_archive import catalog_part, catalog_parts, link_catalogs, write_archive
from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.predict.schema import KEYS, result_schema

TEN_MILLION = 10_000_000
BYTES_PER_SCAN = 1200  # on disk: 600 for catalog and results (500 were seen), twice to compact
STEPS = ("plan", "new", "verify", "register", "compact")
# What must hold at 10 million scans, seconds on a quiet machine.
BARS = {
    ("score", "driver_mb"): 1500,
    ("plan", "seconds"): 20,
    **{(step, "peak_mb"): 1500 for step in STEPS},
}
MADE = "made.json"  # the last file of an archive that stays


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


class Watch:
    """Peak memory of this process and of Ray's workers."""

    def __init__(self):
        self.driver = self.worker = self.workers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._sample()  # what is faster than the first sample was seen, too

    def _watch(self):
        while not self._stop.wait(0.2):
            self._sample()

    def _sample(self):
        me = psutil.Process()
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


# --- what runs in a process of its own -----------------------------------------------------------


def job(options):
    """One step; its figures."""
    work = Path(options.work)
    calls = {
        "score": lambda: score_mock(options, work),
        "write": lambda: write_runs(options, work / "results"),
        "plan": lambda: plan(work, "plan", 0),
        "new": lambda: plan(work, "new", options.count // 100),
        "verify": lambda: check(work, options.count),
        "register": lambda: add(work),
        "compact": lambda: join(work, options.count),
    }
    load()
    base, started, used = common.peak_mb(), time.perf_counter(), time.process_time()
    more = calls[options.step]()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - used,
        "base_mb": base,
        "peak_mb": common.peak_mb(),
        **(more or {}),
    }


def load():
    """What every command has loaded before it begins."""
    import braintumor_ray.archive.compact
    import braintumor_ray.archive.register
    import braintumor_ray.scoring.verify  # noqa: F401


def score_mock(options, work):
    """Score a catalog of `options.count` rows; the figures."""
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.scoring.job import ScoreOptions, Stages, score
    from braintumor_ray.scoring.options import PredictSettings
    from braintumor_ray.scoring.scans import open_scans

    common.untrained_bundle(work / "bundle", options.backbone)
    catalog, results = work / "catalog" / "catalog.parquet", work / "results"
    catalog.parent.mkdir()
    with pq.ParquetWriter(catalog, CATALOG_SCHEMA, compression="zstd") as writer:
        for part in catalog_parts(options.count):
            writer.write_table(part)
    settings = ScoreOptions(PredictSettings(str(work / "bundle")), block_size=options.block_size)
    stages = Stages(MockDecode, MockPredict)
    with ray_session(), Watch() as watch:
        score(open_scans(str(catalog)), str(results), settings, None, stages)
    sizes = [path.stat().st_size for path in results.glob("rows/*/*.parquet")]
    return {
        "steady_scans_per_s": steady_rate(committed(results / "rows")),
        "driver_mb": watch.driver / 1e6,
        "largest_worker_mb": watch.worker / 1e6,
        "all_workers_mb": watch.workers / 1e6,
        "files": len(sizes),
        "bytes_per_scan": sum(sizes) / options.count,
        "catalog_bytes_per_scan": catalog.stat().st_size / options.count,
    }


def write_runs(options, root):
    write_archive(root, options.count, options.generations, options.rows_per_file)


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

    with linked(work) as copy:
        done = register(str(copy), f"sqlite:///{copy}/catalog.db")
        assert done.generations == len(list(copy.glob("manifests/*.json")))


def join(work, count):
    from braintumor_ray.archive.compact import compact

    with linked(work) as copy:
        done = compact(str(copy), progress=lambda *files: print(*files, "files", file=sys.stderr))
        assert done.rows in (0, count)  # a single run has nothing to be joined with


@contextmanager
def linked(work):
    """A copy of the results that may be changed: files are replaced, never written into."""
    with tempfile.TemporaryDirectory(prefix="changed-", dir=work) as name:
        yield Path(shutil.copytree(work / "results", f"{name}/results", copy_function=os.link))


# --- the run -------------------------------------------------------------------------------------


def run(options):
    """Every step for every size."""
    found = []
    for count in options.scans:
        with archive(options, count) as work:
            make = "write" if options.written else "score"
            steps = options.steps if (work / MADE).exists() else [make, *options.steps]
            for step in steps:
                found.append({"scans": count, "step": step, **run_step(options, work, count, step)})
                print(found[-1], file=sys.stderr, flush=True)
                if step == make:
                    link(work, count)
    return {"steps": found, "machine": common.machine()}


@contextmanager
def archive(options, count):
    """Where the archive of a size is, or is to be made."""
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix="bench-scale-") as work:
            require_disk(work, count)
            yield Path(work)
        return
    work = Path(options.folder) / f"{'written' if options.written else 'scored'}-{count}"
    if not (work / MADE).exists():
        if work.exists():
            raise SystemExit(f"'{work}' was not made to its end; delete it")
        work.mkdir(parents=True)
        require_disk(work, count)
    yield work


def run_step(options, work, count, step):
    names = ("block_size", "backbone", "generations", "rows_per_file")
    values = {"work": work, "count": count, "step": step}
    values |= {name: getattr(options, name) for name in names}
    return common.child(__file__, "job", timeout_s=options.limit_s, **values)


def link(work, count):
    """The catalogs of a night with nothing new and of one with 1% new scans."""
    made = work / "catalog"  # of scored ones: afterwards nothing else is in it
    paths = sorted((made if made.exists() else work / "results" / "catalogs").rglob("*.parquet"))
    link_catalogs(work / "plan.parquet", paths)
    link_catalogs(work / "new.parquet", paths, catalog_part(np.arange(count, count + count // 100)))
    (work / MADE).write_text(json.dumps({"scans": count}))


def require_disk(work, count):
    """Stop before a run that would fill the disk."""
    need, free = count * BYTES_PER_SCAN, shutil.disk_usage(work).free
    if need > free:
        raise SystemExit(
            f"{count:,} scans need {need / 1e9:.0f} GB below '{work}', {free / 1e9:.0f} GB are "
            "free; give another --folder"
        )


def along_a_line(small, large, key, scans=TEN_MILLION):
    """What two sizes say of another one, if a figure grows along a line; never less than seen."""
    slope = (large[key] - small[key]) / (large["scans"] - small["scans"])
    return max(large[key] + slope * (scans - large["scans"]), small[key], large[key])


def bars_at_ten_million(steps):
    """Each limit, with what was seen, or with what two sizes say."""
    bars = []
    for (step, key), bar in BARS.items():
        of = sorted((one for one in steps if one["step"] == step), key=lambda one: one["scans"])
        if of and of[-1]["scans"] >= TEN_MILLION:
            bars.append((f"10 million scans, {step}: {key}", of[-1][key], "<=", bar))
        elif len(of) > 1:
            how = f"from {of[0]['scans']:,} and {of[-1]['scans']:,} along a line"
            seen = along_a_line(of[0], of[-1], key)
            bars.append((f"10 million scans, {how}, {step}: {key}", seen, "<=", bar))
    return bars


def checks(steps):
    """Flat: ten times the scans, within 10%; and the limits at 10 million scans."""
    jobs, list_ = [one for one in steps if one["step"] == "score"], []
    if len(jobs) > 1:
        small, large = jobs[0], jobs[-1]
        times = f"{large['scans'] / small['scans']:.0f}x the scans"
        for what, key in (("the driver", "driver_mb"), ("the largest worker", "largest_worker_mb")):
            list_.append((f"{times}: peak memory of {what}", large[key] / small[key], "<=", 1.1))
        if small["steady_scans_per_s"]:
            rate = large["steady_scans_per_s"] / small["steady_scans_per_s"]
            list_.append((f"{times}: scans/s", rate, ">=", 0.9))
    return list_ + bars_at_ten_million(steps)


def report(options):
    """Tables, JSON and picture."""
    found = run(options)
    found["checks"] = checks(found["steps"])
    known = common.write_json(options.output, "scale", found)
    draw(known.with_suffix(".png"), found["steps"])
    names = ("scans", "step", "seconds", "cpu_s", "base_mb", "peak_mb")
    print(common.table([{name: shown(one[name]) for name in names} for one in found["steps"]]))
    for one in found["steps"]:
        more = ", ".join(f"{k} {shown(v)}" for k, v in one.items() if k not in names)
        if more:
            print(f"{one['scans']:,} scans, {one['step']}: {more}")
    if found["checks"]:
        print(common.checks_table(found["checks"]))
    print(f"{found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


def shown(value):
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def draw(path, steps):
    """Memory and time of each step; of the job memory and speed for each size."""
    panels = {
        "peak resident memory, MB": "peak_mb",
        "CPU seconds": "cpu_s",
        "job: peak private memory of the driver, MB": "driver_mb",
        "job: of the largest worker, MB": "largest_worker_mb",
        "job: scans/s in steady state": "steady_scans_per_s",
    }
    groups = {
        title: {
            f"ours, {one['step']}, {one['scans']:,}": common.spread([one[key] or 0.0])
            for one in steps
            if key in one
        }
        for title, key in panels.items()
    }
    groups = {title: group for title, group in groups.items() if group}
    common.bars(path, f"An archive with a mock model: {common.cpu_name()}", groups, "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[30_000, 300_000])
    parser.add_argument("--written", action="store_true", help="archives without Ray, by Parquet")
    parser.add_argument("--steps", nargs="*", default=list(STEPS), choices=STEPS)
    parser.add_argument("--block-size", type=int, default=512, help="of the job")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="decides the maps' size")
    parser.add_argument("--generations", type=int, default=20, help="of --written")
    parser.add_argument("--rows-per-file", type=int, default=10_000, help="of --written")
    parser.add_argument("--folder", help="archives stay here: up to 6 GB for 10 million scans")
    parser.add_argument("--limit-s", type=float, default=4 * 3600, help="of one step, in seconds")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--role", default="whole", choices=["whole", "job"], help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    for name in ("--work", "--step"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.scans, options.block_size = [40, 400], 40
        options.generations, options.rows_per_file = 4, 10
        options.backbone = "small-cnn"
    if options.role == "job":
        print(json.dumps(job(options)))
    else:
        report(options)


if __name__ == "__main__":
    main()
