"""Work on an archive is killed at every kind of step, and at random moments.

After each kill all readers find the rows of before, and the same work, begun again, ends.
`python benchmarks/archive.py --kills 10` does it with 300 runs of 200 rows.
"""

import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.content import content_of
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.query import query
from braintumor_ray.archive.register import register
from braintumor_ray.predict.results import current_files, read_results, results_folder
from braintumor_ray.scoring.verify import verify
from tests.archive.nights import by_the_readme, make_nights

pyiceberg_catalog = pytest.importorskip("pyiceberg.catalog")
from tests.archive.killing import (  # noqa: E402 - needs pyiceberg
    KilledAtRandom,
    compacted_registered_expired,
    kill_at,
    steps_of,
)

COUNTED = "SELECT status, predicted_class, count(*) AS n, sum(scan_id) FROM scans GROUP BY ALL"
# Every kind of step of a compaction, a registration and an expiry.
KINDS = {
    *("write compactions", "name compactions", "write rows", "name rows"),
    *("write catalogs", "name catalogs", "write history", "name history"),
    *("write manifests", "name manifests", "after name manifests", "delete manifests"),
    *("write registered", "name registered", "make a file of table"),
    *("commit table", "after commit table"),
    *("delete rows", "delete catalogs", "delete folder of rows", "delete folder of catalogs"),
    "delete compactions",
}


class Readers:
    """The current rows that all readers find in a folder; `check` raises when they are others."""

    def __init__(self, root, uri):
        self.root, self.uri = root, uri
        register(str(root), uri)
        folder = results_folder(root)
        self._started = current_files(folder, folder.manifests(), None)
        self._begun = [next(self._started)]
        self._first = self.found()
        assert self._first["verify"][1] == []

    def found(self):
        """By our reader, the README's query, `query`, `verify` and the Iceberg table."""
        report = verify(str(self.root))
        return {
            "read_results": content_of(read_results(self.root)),
            "README": by_the_readme(self.root),
            "query": sorted(map(str, query(str(self.root), COUNTED).to_pylist())),
            "verify": (report.scans, report.differences),
            "Iceberg": content_of(newest(self.table().scan().to_arrow())),
        }

    def table(self):
        catalog = pyiceberg_catalog.load_catalog("default", type="sql", uri=self.uri)
        return catalog.load_table("braintumor.scans")

    def check(self):
        assert self.found() == self._first

    def finish_the_one_that_started_before(self):
        """It goes on with the files that it found at the start."""
        tables = [rows for _, rows in [*self._begun, *self._started]]
        assert content_of(pa.concat_tables(tables)) == self._first["read_results"]


def newest(rows):
    """The row of each URI and frame that was scored last."""
    rows = rows.sort_by([("scored_at", "descending")])
    scans = pc.binary_join_element_wise(rows["uri"], rows["frame"].cast(pa.string()), " ")
    _, first = np.unique(scans.to_numpy(), return_index=True)
    return rows.take(pa.array(first))


def check_random_kills(root, uri, options, kills, seed):
    """Kill compactions, check, finish, expire, check; the steps that the kills followed."""
    readers = Readers(root, uri)
    seen = KilledAtRandom(root, readers.check, compact, options).strike(kills, seed)
    compact(str(root), options)
    readers.check()
    readers.finish_the_one_that_started_before()
    compacted_registered_expired(str(root), uri, options)
    readers.check()
    return seen


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/catalog.db"


@pytest.mark.chaos
@pytest.mark.slow
def test_all_readers_agree_after_kills_at_random_moments(tmp_path, uri):
    root = make_nights(tmp_path / "results", nights=8, rows=20)
    assert len(check_random_kills(root, uri, CompactOptions(target_mb=0.02), 5, seed=20)) == 5


@pytest.mark.chaos
@pytest.mark.parametrize("drop", [False, True], ids=["all rows kept", "superseded rows dropped"])
def test_all_readers_agree_after_a_kill_at_every_kind_of_step(tmp_path, uri, drop):
    options = CompactOptions(target_mb=0.02, memory_mb=1, drop_superseded=drop)
    root, kept = make_nights(tmp_path / "results", nights=4, rows=20), tmp_path / "kept"
    readers = Readers(root, uri)
    for folder in (root, tmp_path / "catalog.db"):
        copied(folder, kept / folder.name)
    steps, _ = steps_of(root, compacted_registered_expired, uri, options)
    assert {*steps} == KINDS
    for number, (name, count) in enumerate(sorted(Counter(steps).items())):
        for folder in (root, tmp_path / "catalog.db"):
            copied(kept / folder.name, folder)
        nth = number % 3 * (count - 1) // 2  # the first, one in the middle, the last
        assert kill_at(root, name, nth, compacted_registered_expired, uri, options), name
        readers.check()
        compacted_registered_expired(str(root), uri, options)
        readers.check()
        (manifest,) = results_folder(root).manifests()
        files = {str(path.relative_to(root)) for path in root.glob("rows/*/*")}
        assert files == {file["path"] for file in manifest["files"]}, name
        assert not [path for path in root.rglob("*.tmp") if "lease" not in path.name], name


def copied(source, target):
    """Replace a file or folder by another."""
    if source.is_file():
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(source, target)
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
