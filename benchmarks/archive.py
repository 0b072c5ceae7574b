"""How much faster is a results folder opened and counted after `compact`?

    python benchmarks/archive.py [--nights 300] [--rows 200] [--output DIR]
    python benchmarks/archive.py --kills 10 [--seed 20]      # no times: do all readers agree?

Nights as the archive job leaves them, with superseded rows; then our reader, the README's query
and `query` on a copy before and on one after compaction and expiry, in turns. With `--kills`,
compactions are killed (SIGKILL) at random moments, after each kind of step as often; after each of
them `read_results`, the README's query, `query`, `verify` and the Iceberg table must give the rows
of before.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.query import query
from braintumor_ray.predict.results import read_results
from braintumor_ray.scoring.verify import verify
from tests.archive.nights import by_the_readme, current, make_nights

COUNT = "SELECT predicted_class, count(*) FROM scans GROUP BY ALL"


def run(options):
    """The same folder before and after."""
    with tempfile.TemporaryDirectory(prefix="bench-archive-") as work:
        before, after = Path(work) / "before", Path(work) / "after"
        make_nights(before, options.nights, options.rows, files=1)
        shutil.copytree(before, after)
        started = time.perf_counter()
        done = compact(str(after), CompactOptions(expire=True, grace_hours=0))
        seconds = time.perf_counter() - started
        assert current(before) == current(after)
        assert by_the_readme(before) == by_the_readme(after)
        assert verify(str(after)).differences == []
        times = common.interleaved(calls(before, after), options.rounds)
    ratios = {
        name: common.ratios(times[f"{name} before"], times[f"{name} after"])
        for name in ("open and count", "query", "all rows")
    }
    return {
        "nights": options.nights,
        "rows": options.rows,
        "compact_s": seconds,
        "files": [done.files_before, done.files_after],
        "seconds": {name: common.spread(found) for name, found in times.items()},
        "ratios": ratios,
        "machine": common.machine(),
    }


def calls(before, after):
    """What is timed."""
    found = {}
    for when, root in (("before", before), ("after", after)):
        found |= {
            f"open and count {when}": lambda root=root: read_results(root, ["status"]).num_rows,
            f"query {when}": lambda root=root: query(str(root), COUNT),
            f"all rows {when}": lambda root=root: read_results(root),
        }
    return found


def kill(options):
    """Kills at random moments; an assertion fails where a reader finds other rows."""
    from tests.archive.test_kills import check_random_kills

    with tempfile.TemporaryDirectory(prefix="bench-archive-") as work:
        root = make_nights(Path(work) / "results", options.nights, options.rows, files=1)
        uri = f"sqlite:///{work}/catalog.db"
        seen = check_random_kills(root, uri, CompactOptions(), options.kills, options.seed)
    print(f"all readers agree after {len(seen)} kills, after the steps: {', '.join(seen)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--nights", type=int, default=300)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=0, help="kill so many compactions instead")
    parser.add_argument("--seed", type=int, default=20, help="of the moments of the kills")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    options = parser.parse_args()
    if options.tiny:
        options.nights, options.rows, options.rounds = 4, 20, 3
    if options.kills:
        kill(options)
        return
    found = run(options)
    target = common.write_json(options.output, "archive", found)
    rows = [
        {
            "": name,
            "before, ms": ms(found, f"{name} before"),
            "after, ms": ms(found, f"{name} after"),
            "times": f"{ratio['median']:.1f}",
        }
        for name, ratio in found["ratios"].items()
    ]
    print(common.table(rows))
    ratio = found["ratios"]["open and count"]["median"]
    print(common.checks_table([("opening and counting: times faster", ratio, ">=", 20)]))
    print(f"{found['machine']}\nwritten: {target}")


def ms(found, name):
    return f"{1000 * found['seconds'][name]['median']:.1f}"


if __name__ == "__main__":
    main()
