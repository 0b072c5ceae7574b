"""Readers that go on while files are compacted and expire; and the same on an object store."""

import threading

import duckdb
import pytest

from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.query import query
from braintumor_ray.archive.register import register
from braintumor_ray.predict.results import read_results
from braintumor_ray.scoring.verify import verify
from tests.archive.nights import add_night, by_the_readme, current, digest, make_nights
from tests.s3 import upload

SQL = "SELECT uri, scan_id, entropy FROM scans ORDER BY uri"


class Readers:
    """Read in threads until stopped; every answer is kept."""

    def __init__(self, *reads):
        self.answers = [[] for _ in reads]
        self.failures = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._go, args=(read, kept), daemon=True)
            for read, kept in zip(reads, self.answers, strict=True)
        ]

    def _go(self, read, kept):
        while not self._stop.is_set():
            try:
                kept.append(read())
            except Exception as error:
                self.failures.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        while not all(self.answers):
            self._stop.wait(0.01)
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def by_the_readme_again(root):
    """A program that finds a listed manifest gone lists again, as the documents tell it to."""
    for _ in range(20):
        try:
            return by_the_readme(root)
        except duckdb.IOException as error:
            if "manifests" not in str(error):
                raise
    raise AssertionError("the manifests never stay")


def test_readers_see_the_same_rows_while_files_are_compacted_and_expire(tmp_path):
    root = make_nights(tmp_path / "results", nights=6)
    before = current(root), by_the_readme(root)
    with Readers(lambda: current(root), lambda: by_the_readme_again(root)) as readers:
        compact(str(root), CompactOptions(target_mb=0.02))
        compact(str(root), CompactOptions(expire=True, grace_hours=1))
    assert readers.failures == []
    for wanted, answers in zip(before, readers.answers, strict=True):
        assert answers == [wanted] * len(answers)
    compact(str(root), CompactOptions(expire=True, grace_hours=0))
    assert (current(root), by_the_readme(root)) == before


@pytest.mark.slow
def test_an_object_store_is_compacted_queried_and_registered(s3, tmp_path):
    pytest.importorskip("pyiceberg")
    local, (bucket, _) = make_nights(tmp_path / "results", nights=3), s3
    upload(local, bucket, "results")
    results = f"s3://{bucket}/results"
    before = digest(read_results(results)), query(results, SQL).to_pylist()
    assert compact(results, CompactOptions(expire=True, grace_hours=0)).files_after == 2
    assert (digest(read_results(results)), query(results, SQL).to_pylist()) == before
    assert verify(results).differences == []
    done = register(results, f"sqlite:///{tmp_path}/catalog.db")
    assert (done.snapshots, done.generations) == (1, 3)


def test_a_folder_that_was_read_through_history_goes_on(tmp_path):
    root = make_nights(tmp_path / "results", nights=3)
    for number in range(4, 8):
        compact(str(root), CompactOptions(expire=True, grace_hours=0))
        add_night(root, number)
    folder_runs = [read_run(root, number) for number in range(1, 8)]
    assert folder_runs == list(range(1, 8))


def read_run(root, number):
    from braintumor_ray.predict.results import results_folder

    return results_folder(root).run(number)["summary"]["generation"]
