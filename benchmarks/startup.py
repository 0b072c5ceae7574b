"""Seconds from a cold process: import, `--help`, first explained prediction of one file.

    python benchmarks/startup.py [--rounds N] [--output DIR]

Each is a fresh process, in turns; the machine's file cache is warm (the first one is not counted).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

CLI = [sys.executable, "-m", "braintumor_ray.cli"]


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    options = parser.parse_args()
    if options.tiny:
        options.rounds = 1
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bundle = common.untrained_bundle(work / "bundle", tiny=options.tiny)
        (scan,), kind = common.scan_files(1, work)
        numbers = iter(range(1_000_000))

        def explain() -> None:
            place = ["--bundle", bundle, "--output", str(work / f"explained-{next(numbers)}")]
            run([*CLI, "explain", str(scan), *place])

        calls = {
            "python, nothing": lambda: run([sys.executable, "-c", "pass"]),
            "ours: import": lambda: run([sys.executable, "-c", "import braintumor_ray"]),
            "ours: --help": lambda: run([*CLI, "--help"]),
            "ours: explain one file": explain,
            "import torch": lambda: run([sys.executable, "-c", "import torch"]),
        }
        times = common.interleaved(calls, options.rounds, warm_up=not options.tiny)
    seconds = {name: common.spread(values) for name, values in times.items()}
    checks = [
        ("--help, s", seconds["ours: --help"]["median"], "<=", 0.5),
        ("first explained prediction, s", seconds["ours: explain one file"]["median"], "<=", 8.0),
    ]
    found = {"machine": common.machine(), "seconds": seconds, "checks": checks, "scan": kind}
    known = common.write_json(options.output, "startup", found)
    title = f"Seconds from a cold process: {common.cpu_name()}"
    common.bars(known.with_suffix(".png"), title, {"seconds": seconds}, "median and quartiles")
    rows = [
        {"what": n, "s": f"{s['median']:.2f}", "quartiles": f"{s['q1']:.2f} to {s['q3']:.2f}"}
        for n, s in seconds.items()
    ]
    print(common.table(rows))
    print(common.checks_table(checks))
    print(f"{found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


if __name__ == "__main__":
    main()
