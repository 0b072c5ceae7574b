"""Cataloguing many small files: files a second and memory, with `find` as the limit.

    python benchmarks/catalog.py [--files 100000 1000000] [--folder FOLDER] [--output DIR]

The files are hard links of a few small PNGs, made below FOLDER (default: a temporary folder) and
removed afterwards. For each size, in processes of their own: `find` with sizes and times; a new
catalog, every file opened; a catalog since that one, nothing opened; a catalog from a listing; what
`score FOLDER` does on its driver before it scores. The smallest size is also catalogued in memory,
as for other commands.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

PER_FOLDER, PER_INODE = 100, 30_000  # ext4 allows 65,000 links


def make_files(folder, count):
    """`count` hard links in folders of 100."""
    from tests.builders import write_archive

    kinds = write_archive(folder / "originals", -(-count // PER_INODE))
    kinds = [os.fspath(path) for path in kinds]
    for number in range(count):
        if number % PER_FOLDER == 0:
            inner = folder / "scans" / f"site{number // 10_000 % 40:02d}" / f"p{number // 100:06d}"
            inner.mkdir(parents=True)
        os.link(kinds[number // PER_INODE], inner / f"{number:09d}.png")
    return folder / "scans"


def write_listing(root, target):
    """Path, size and time of every file as CSV, as `find` has them."""
    with target.open("w") as out:
        out.write("path,size,mtime\n")
        out.flush()
        command = ["find", ".", "-type", "f", "-printf", "%P,%s,%T@\n"]
        subprocess.run(command, cwd=root, stdout=out, check=True)


def job(options):
    """One way, measured; the figures."""
    started, used = time.perf_counter(), cpu_seconds()
    ways = {
        "find": _find,
        "memory": _in_memory,
        "new": _stream,
        "since": _since,
        "listing": _listed,
        "score": _plan,
    }
    ways[options.way](options.root, Path(options.work))
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": cpu_seconds() - used,
        "peak_mb": common.peak_mb(),  # not ru_maxrss, which begins with the parent's
    }


def cpu_seconds():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def _find(root, _):
    command = ["find", root, "-type", "f", "-printf", "%P %s %T@\n"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _in_memory(root, work):
    from braintumor_ray.catalog.build import load_catalog
    from braintumor_ray.catalog.schema import write_catalog

    write_catalog(load_catalog(root), work / "memory.parquet")


def _stream(root, work, target="new.parquet", **settings):
    from braintumor_ray.catalog.options import CatalogOptions, StreamOptions
    from braintumor_ray.catalog.stream import stream_catalog

    stream_catalog(root, work / target, CatalogOptions(), StreamOptions(**settings))


def _since(root, work):
    _stream(root, work, "since.parquet", since=str(work / "new.parquet"))


def _listed(root, work):
    given = {"since": str(work / "new.parquet"), "listing": str(work / "list.csv")}
    _stream(root, work, "listed.parquet", **given)


def _plan(root, work):
    """`score FOLDER` up to its plan: all is new."""
    from braintumor_ray.predict.results import results_folder
    from braintumor_ray.scoring.plan import make_plan
    from braintumor_ray.scoring.scans import open_scans

    plan = make_plan(results_folder(work / "results"), open_scans(root), [], "none")
    assert plan.remaining


def run(options):
    """Every way, for every size."""
    found = []
    for count in options.files:
        with tempfile.TemporaryDirectory(prefix="bench-catalog-", dir=options.folder) as name:
            work = Path(name)
            root = make_files(work, count)
            write_listing(root, work / "list.csv")
            ways = ["find", "new", "since", "listing", "score"]
            ways += ["memory"] if count == min(options.files) else []
            for way in ways:
                values = {"way": way, "root": root, "work": work}
                one = common.child(__file__, "job", timeout_s=options.limit_s, **values)
                found.append(
                    {"files": count, "way": way, **one, "files_per_s": count / one["seconds"]}
                )
                print(found[-1], file=sys.stderr, flush=True)
    return {"jobs": found, "machine": common.machine()}


def checks(jobs):
    """Memory is bounded; what is known costs little more than to list."""
    of = {(job["files"], job["way"]): job for job in jobs}
    small, large = min(job["files"] for job in jobs), max(job["files"] for job in jobs)
    times = f"{large / small:.0f}x the files"
    list_ = [
        (f"{times}: memory", of[large, "new"]["peak_mb"] / of[small, "new"]["peak_mb"], "<=", 1.5),
        ("score FOLDER: peak memory / catalog", score_over_catalog(of, large), "<=", 1.5),
        ("peak memory, MB", of[large, "new"]["peak_mb"], "<=", 500),
    ]
    for way, bar in (("new", 60), ("since", 20), ("listing", 20)):
        ratio = of[large, way]["cpu_s"] / of[large, "find"]["cpu_s"]
        list_.append((f"CPU of '{way}' / find", ratio, "<=", bar))
    return list_


def score_over_catalog(of, count):
    return of[count, "score"]["peak_mb"] / of[count, "new"]["peak_mb"]


def report(options):
    """Table, JSON and picture."""
    found = run(options)
    found["checks"] = checks(found["jobs"])
    known = common.write_json(options.output, "catalog", found)
    names = ("files", "way", "seconds", "cpu_s", "files_per_s", "peak_mb")
    print(common.table([{n: shown(job[n]) for n in names} for job in found["jobs"]]))
    print(common.checks_table(found["checks"]))
    groups = {}
    for title, key in (("files/s", "files_per_s"), ("peak memory, MB", "peak_mb")):
        groups[title] = {
            f"{job['way']}, {job['files']:,}": common.spread([job[key]]) for job in found["jobs"]
        }
    common.bars(known.with_suffix(".png"), "Cataloguing small files", groups, "")
    print(f"{found['machine']}\nwritten: {known}")


def shown(value):
    return value if isinstance(value, str) else f"{value:,.1f}".removesuffix(".0")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", help="where the files are made; the same file system for all")
    parser.add_argument("--limit-s", type=float, default=7200, help="of one way")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--role", default="whole", choices=["whole", "job"], help=argparse.SUPPRESS)
    for name in ("--way", "--root", "--work"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.files = [40, 400]
    if options.role == "job":
        print(json.dumps(job(options)))
    else:
        report(options)


if __name__ == "__main__":
    main()
