"""Compactions are killed at random moments; every reader finds the same rows after each kill.

`python benchmarks/archive.py --kills 10` does it with 300 runs of 200 rows.
"""

import pyarrow as pa
import pytest

from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.content import content_of
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.query import query
from braintumor_ray.archive.register import register
from braintumor_ray.predict.results import current_files, read_results, results_folder
from braintumor_ray.scoring.verify import verify
from tests.archive.killing import KilledAtRandom
from tests.archive.nights import by_the_readme, make_nights

pyiceberg_catalog = pytest.importorskip("pyiceberg.catalog")
COUNTED = "SELECT status, predicted_class, count(*) AS n, sum(scan_id) FROM scans GROUP BY ALL"


class Readers:
    """What all readers find in a folder; `check` raises when one of them finds something else."""

    def __init__(self, root, uri):
        self.root, self.uri, self.checks = root, uri, 0
        register(str(root), uri)
        folder = results_folder(root)
        self._started = current_files(folder, folder.manifests(), None)
        self._begun = [next(self._started)]
        self._first = self.found()

    def found(self):
        """By our reader, the README's query, `query`, `verify` and the Iceberg table."""
        report = verify(str(self.root))
        rows = self.table().scan().to_arrow()
        return {
            "read_results": content_of(read_results(self.root)),
            "README": by_the_readme(self.root),
            "query": sorted(map(str, query(str(self.root), COUNTED).to_pylist())),
            "verify": (report.scans, report.rows, report.differences),
            "Iceberg": content_of(rows),
        }

    def table(self):
        catalog = pyiceberg_catalog.load_catalog("default", type="sql", uri=self.uri)
        return catalog.load_table("braintumor.scans")

    def check(self):
        assert self.found() == self._first
        self.checks += 1

    def finish_the_one_that_started_before(self):
        """It goes on with the files that it found at the start."""
        tables = [rows for _, rows in [*self._begun, *self._started]]
        assert content_of(pa.concat_tables(tables)) == self._first["read_results"]


def check_kills(root, uri, options, kills, seed):
    """Kill, check, finish, expire, check; how many manifests were there after each kill."""
    readers = Readers(root, uri)
    assert readers.found()["verify"][2] == []
    seen = KilledAtRandom(root, options, readers.check).strike(kills, seed)
    compact(str(root), options)
    readers.check()
    readers.finish_the_one_that_started_before()
    register(str(root), uri)
    compact(str(root), CompactOptions(target_mb=options.target_mb, expire=True, grace_hours=0))
    readers.check()
    return seen


@pytest.mark.slow
def test_all_readers_agree_after_kills_at_random_moments(tmp_path):
    root = make_nights(tmp_path / "results", nights=8, rows=20)
    options = CompactOptions(target_mb=0.02)
    assert len(check_kills(root, f"sqlite:///{tmp_path}/c.db", options, kills=5, seed=20)) == 5
