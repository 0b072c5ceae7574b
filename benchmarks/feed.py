"""CPU a scan of everything but the network, by part, against the floor.

    python benchmarks/feed.py [--scans 1000 3000] [--rounds N] [--output DIR]

The archive job on real files with a mock predictor: user and system CPU of all its processes. Each
size runs in a fresh process; what the larger job takes more, divided by its scans more, is the
marginal CPU a scan, so start-up is left out. The floor is one thread of one process that reads the
same files, decodes gray by OpenCV, resizes, hashes the pixels and finds the head; it runs before
and after each job. The catalog is made before and counted for itself.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.scale import MockPredict
from benchmarks.score import files_below, linked_scans

CAM_SHAPE = (7, 7)
SIZE = 224
FLOOR_FILES = 500


# --- the floor -----------------------------------------------------------------------------------


def floor_steps() -> dict[str, Callable]:
    """What must be done with a scan, one library call or two each, in order."""
    import cv2
    import numpy as np

    from braintumor_ray.decode.hashes import pixel_sha256
    from braintumor_ray.explain.regions import head_weights

    cv2.setNumThreads(1)

    def resize(gray):
        enlarged = min(gray.shape) < SIZE
        method = cv2.INTER_LINEAR if enlarged else cv2.INTER_AREA
        return cv2.resize(gray, (SIZE, SIZE), interpolation=method)

    return {
        "read": lambda path: Path(path).read_bytes(),
        "decode": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
        "resize": resize,
        "hash": pixel_sha256,
        "head": lambda square: head_weights([square], CAM_SHAPE),
    }


def floor(options: argparse.Namespace) -> dict:
    """Microseconds of CPU a scan, by step."""
    steps, spent = floor_steps(), {}
    paths = [str(path) for path in files_below(options.scans)[:FLOOR_FILES]]
    for timed in (False, True):  # the first turn warms caches
        for path in paths if timed else paths[:50]:
            found = {"": path}
            for name, source in (
                ("read", ""), ("decode", "read"), ("resize", "decode"), ("hash", "decode"),
                ("head", "resize"),
            ):  # fmt: skip
                start = time.thread_time()
                found[name] = steps[name](found[source])
                if timed:
                    spent[name] = spent.get(name, 0.0) + time.thread_time() - start
    return {name: 1e6 * seconds / len(paths) for name, seconds in spent.items()}


# --- the job -------------------------------------------------------------------------------------


def job(options: argparse.Namespace) -> dict:
    """CPU seconds of one job, by part."""
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.scoring.decode_stage import ArchiveDecodeStage
    from braintumor_ray.scoring.job import ScoreOptions, Stages, score
    from braintumor_ray.scoring.options import PredictSettings
    from braintumor_ray.scoring.scans import open_scans

    results = str(Path(options.work) / f"results-{os.getpid()}")
    settings = ScoreOptions(PredictSettings(options.bundle), block_size=options.block_size)
    catalog = open_scans(options.catalog)
    with cpu_by_part() as cpu, ray_session():
        started = time.time()
        score(catalog, results, settings, None, Stages(ArchiveDecodeStage, MockPredict))
    return {"scans": catalog.num_rows, "cpu_s": cpu, "seconds": time.time() - started}


def catalog(options: argparse.Namespace) -> dict:
    """Write the catalog of the scans; CPU seconds, its decoding process included."""
    from braintumor_ray.catalog.build import load_catalog
    from braintumor_ray.catalog.schema import CATALOG_SCHEMA  # noqa: F401 - imported before timing

    with cpu_by_part() as cpu:
        table = load_catalog(options.scans)
    import pyarrow.parquet as pq

    pq.write_table(table, options.catalog)
    return {"scans": table.num_rows, "cpu_s": {"catalog": sum(cpu.values())}}


@contextmanager
def cpu_by_part(period_s: float = 0.1) -> Iterator[dict[str, float]]:
    """CPU seconds of this process and its descendants, as last seen, by what they do."""
    found: dict[str, float] = {}
    stop, seen = threading.Event(), {}
    thread = threading.Thread(target=_look, args=(stop, seen, period_s), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        for part, seconds in seen.values():
            found[part] = found.get(part, 0.0) + seconds


def _look(stop: threading.Event, seen: dict, period_s: float) -> None:
    import psutil

    own = psutil.Process()
    before = own.cpu_times()
    while True:
        for process in [own, *own.children(recursive=True)]:
            try:
                times, title = process.cpu_times(), " ".join(process.cmdline())
            except psutil.Error:
                continue
            seconds = times.user + times.system
            if process.pid == own.pid:
                title = "driver"
                seconds -= before.user + before.system + time.thread_time()  # without these looks
            part = part_of(title)
            if part == "other Ray workers" and process.pid in seen:
                part = seen[process.pid][0]  # an idle one has done what it was last seen at
            seen[process.pid] = (part, seconds)
        if stop.wait(period_s):
            return


def part_of(title: str) -> str:
    known = (("sandbox_child", "decoder child"), ("Decode", "decode actor"), ("driver", "driver"))
    known += (("MockPredict", "mock predictor"), ("raylet/raylet", "raylet"))
    known += (("gcs_server", "gcs"), ("Write", "write tasks"), ("Read", "read tasks"))
    known += (("ray::", "other Ray workers"),)
    return next((part for mark, part in known if mark in title), "rest of Ray")


# --- together ------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> list[dict]:
    """Marginal microseconds a scan by part and the floor's, for each round."""
    rounds = []
    with tempfile.TemporaryDirectory(prefix="bench-feed-") as name:
        work = Path(name)
        bundle = common.untrained_bundle(work / "bundle", options.backbone, SIZE)
        folders = []
        for count in options.scans:
            folders.append(work / f"scans-{count}")
            linked_scans(count, folders[-1], work)
        for _ in range(options.rounds):
            rounds.append(one_round(options, work, bundle, folders))
            print(rounds[-1], file=sys.stderr, flush=True)
    return rounds


def one_round(options: argparse.Namespace, work: Path, bundle: str, folders: list[Path]) -> dict:
    shared = {"work": work, "bundle": bundle, "block-size": options.block_size}
    floors, parts, sizes = [], [], []
    for folder in folders:
        place = shared | {"scans": folder, "catalog": folder.with_suffix(".parquet")}
        listed = common.child(__file__, "catalog", **place)
        floors.append(common.child(__file__, "floor", **place))
        done = common.child(__file__, "job", **place)
        floors.append(common.child(__file__, "floor", **place))
        parts.append(listed["cpu_s"] | done["cpu_s"])
        sizes.append(done["scans"])
    more = sizes[-1] - sizes[0]
    names = sorted(set(parts[0]) | set(parts[-1]))
    ours = {n: 1e6 * (parts[-1].get(n, 0.0) - parts[0].get(n, 0.0)) / more for n in names}
    return {
        "catalog": ours.pop("catalog"),
        "ours": ours,
        "floor": {n: statistics.mean(f[n] for f in floors) for n in floors[0]},
    }


def summary(rounds: list[dict]) -> dict:
    """Medians over the rounds, microseconds, and the ratio of each round."""
    middle = {
        side: {n: statistics.median(r[side].get(n, 0.0) for r in rounds) for n in rounds[0][side]}
        for side in ("ours", "floor")
    }
    ratios = [sum(r["ours"].values()) / sum(r["floor"].values()) for r in rounds]
    catalogs = statistics.median(r["catalog"] for r in rounds)
    return {**middle, "catalog": catalogs, "ratio": common.spread(ratios)}


def report(options: argparse.Namespace) -> None:
    """Table, JSON and picture."""
    found = summary(rounds := run(options))
    found |= {"rounds": rounds, "scans": options.scans, "machine": common.machine()}
    found["checks"] = [
        ("CPU a scan without the network / the floor", found["ratio"]["median"], "<=", 1.5)
    ]
    known = common.write_json(options.output, "feed", found)
    groups = {
        f"{side}, {sum(found[side].values()):,.0f} us a scan": {
            n: common.spread([us]) for n, us in found[side].items()
        }
        for side in ("ours", "floor")
    }
    title = f"CPU a scan without the network: {common.cpu_name()}"
    common.bars(known.with_suffix(".png"), title, groups, "microseconds of CPU a scan")
    rows = [
        {"": side, "part": n, "us a scan": f"{us:,.0f}"}
        for side in ("ours", "floor")
        for n, us in [*found[side].items(), ("together", sum(found[side].values()))]
    ]
    print(common.table(rows))
    print(f"the catalog, made before: {found['catalog']:,.0f} us a scan")
    print(common.checks_table(found["checks"]))
    print(f"{found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    roles = {"catalog": catalog, "floor": floor, "job": job}
    parser.add_argument(
        "--role", default="whole", choices=["whole", *roles], help=argparse.SUPPRESS
    )
    parser.add_argument("--scans", nargs="+", default=["1000", "3000"], help="two sizes of the job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--backbone", default="mobilenetv2_100", help="decides the maps' size")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    for hidden in ("work", "bundle", "catalog"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role != "whole":
        options.scans = options.scans[0]
        print(json.dumps(roles[options.role](options)))
        return
    if options.tiny:
        options.scans, options.rounds, options.block_size = [8, 24], 1, 8
        options.backbone = "small-cnn"
    options.scans = [int(count) for count in options.scans]
    report(options)


if __name__ == "__main__":
    main()
