"""What storage and archives do to a job: a clear line or recovery, nothing lost, nothing twice."""

import errno
import json
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
import ray

from braintumor_ray import storage
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.errors import ResultsError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.results import read_results
from braintumor_ray.scoring.decode_stage import CHANGED, ArchiveDecodeStage
from braintumor_ray.scoring.job import ScoreOptions, score
from braintumor_ray.scoring.options import DecodeSettings, PredictSettings
from braintumor_ray.scoring.verify import verify
from tests.builders import disc_scan, write_archive

pytestmark = pytest.mark.ray


def options(bundle, worker=None, block_size=8):
    decode = DecodeSettings(worker=worker) if worker else DecodeSettings()
    return ScoreOptions(PredictSettings(str(bundle)), decode, block_size=block_size)


def whole(results, count):
    ids = read_results(results)["scan_id"].to_pylist()
    assert len(ids) == len(set(ids)) == count
    assert verify(str(results)).differences == []


@contextmanager
def mounted(path, *mount_options):
    """A small file system of its own in memory; False where mounting is not permitted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(mount_options), "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "-l", str(path)], check=True)


class TestAFullDisk:
    def test_the_run_says_so_and_goes_on_when_there_is_room(
        self, tmp_path, bundle_path, cluster, monkeypatch
    ):
        write_archive(tmp_path / "archive", 40)
        catalog, free_before = load_catalog(tmp_path / "archive"), free_cpus()
        with mounted(tmp_path / "disk", "size=400k") as real:
            results = tmp_path / "disk" / "results"
            free = fill(results.parent, 60_000) if real else refuse_manifests(monkeypatch)
            with pytest.raises(ResultsError, match="No space left on device") as refused:
                score(catalog, str(results), options(bundle_path))
            assert "run the same command again" in str(refused.value)
            assert str(refused.value).count("\n") == 0
            wait_for(lambda: free_cpus() >= free_before, 60)  # although somebody keeps its error
            with pytest.raises(ResultsError, match="no committed run"):
                read_results(results)
            free()
            score(catalog, str(results), options(bundle_path))
            whole(results, 40)


def free_cpus():
    return ray.available_resources().get("CPU", 0)


def fill(folder, left):
    """Leave so many bytes of a small disk."""
    import shutil

    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).free - left))
    return ballast.unlink


def refuse_manifests(monkeypatch):
    """Without a small disk: the last write of a run finds no room."""
    real = storage.write_atomically

    def full(location, data):
        if "manifests" in str(location):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(location, data)

    monkeypatch.setattr(storage, "write_atomically", full)
    return lambda: monkeypatch.setattr(storage, "write_atomically", real)


class TestAStageThatCannotWork:
    def test_its_own_words_end_the_run_at_once_and_no_kept_error_holds_cpus(
        self, tmp_path, bundle_path, cluster, caplog
    ):
        write_archive(tmp_path / "archive", 8)
        catalog, results = load_catalog(tmp_path / "archive"), str(tmp_path / "results")
        broken = options(bundle_path, "tests.scoring.workers:of_no_such_name")
        for _ in range(2):  # with what the first leaves the second would wait for ever
            with pytest.raises(ResultsError, match="of_no_such_name"):
                score(catalog, results, broken)
        assert not [r for r in caplog.records if "execution 1 of" in r.getMessage()]  # no retry
        score(catalog, results, options(bundle_path))
        whole(results, 8)


class TestAnUnwritableOutput:
    def test_a_file_in_the_way_is_named(self, tmp_path, bundle_path, cluster):
        write_archive(tmp_path / "archive", 4)
        (tmp_path / "file").write_text("not a folder")
        catalog = load_catalog(tmp_path / "archive")
        with pytest.raises(ResultsError, match=r"file/results.*stopped"):
            score(catalog, str(tmp_path / "file" / "results"), options(bundle_path))

    def test_a_read_only_disk_is_named(self, tmp_path, bundle_path, cluster):
        write_archive(tmp_path / "archive", 4)
        catalog = load_catalog(tmp_path / "archive")
        with mounted(tmp_path / "disk", "ro") as real:
            if not real:
                pytest.skip("mounting is not permitted here; the file in the way is tested")
            with pytest.raises(ResultsError, match="Read-only file system"):
                score(catalog, str(tmp_path / "disk" / "results"), options(bundle_path))


class TestAnArchiveThatChanges:
    def test_a_file_changed_after_cataloguing_gets_its_row_the_next_night(
        self, tmp_path, bundle_path, cluster
    ):
        paths = write_archive(tmp_path / "archive", 8)
        catalog = load_catalog(tmp_path / "archive")
        paths[3].write_bytes(paths[4].read_bytes() + b"\0")
        results = tmp_path / "results"
        tonight = score(catalog, str(results), options(bundle_path))
        assert (tonight.status, tonight.reasons) == ({"ok": 7, "quarantined": 1}, {CHANGED: 1})
        next_night = score(load_catalog(tmp_path / "archive"), str(results), options(bundle_path))
        assert (next_night.scans, next_night.status) == (1, {"ok": 1})
        whole(results, 8)

    def test_a_file_of_the_same_size_is_told_by_its_time(self, tmp_path, bundle_path):
        import cv2

        path = tmp_path / "archive" / "a.bmp"
        path.parent.mkdir()
        cv2.imwrite(str(path), disc_scan(1))
        rows = load_catalog(path.parent)
        stage = ArchiveDecodeStage(load_bundle(bundle_path).preprocessing, DecodeSettings(), (2, 2))
        assert stage(rows)["status"].to_pylist() == ["ok"]
        cv2.imwrite(str(path), disc_scan(2))
        found = stage(rows).to_pylist()[0]
        assert (found["status"], found["reason"]) == ("quarantined", CHANGED)
        assert (found["pixel_sha256"], found["image"], found["height"]) == (None, None, None)

    @pytest.mark.parametrize("emptied", [True, False])
    def test_a_share_that_is_not_mounted_on_a_node_quarantines_nothing(
        self, tmp_path, bundle_path, emptied
    ):
        paths = write_archive(tmp_path / "archive", 3)
        rows = load_catalog(tmp_path / "archive")
        stage = ArchiveDecodeStage(load_bundle(bundle_path).preprocessing, DecodeSettings(), (2, 2))
        paths[0].unlink()
        assert stage(rows)["status"].to_pylist().count("quarantined") == 1
        shutil.rmtree(tmp_path / "archive")
        if emptied:  # the folder that it is mounted on
            (tmp_path / "archive").mkdir()
        with pytest.raises(OSError, match=r"archive/', .* is missing or empty on node '.*'; mount"):
            stage(rows)


class TestWhileAJobRuns:
    def test_a_second_is_refused_and_a_file_deleted_meanwhile_costs_only_itself(
        self, tmp_path, bundle_path, cluster
    ):
        paths = write_archive(tmp_path / "archive", 24)
        catalog = load_catalog(tmp_path / "archive")
        results = tmp_path / "results"
        job = InThread(catalog, results, options(bundle_path, "tests.scoring.workers:drowsy"))
        wait_for(lambda: list(results.glob("catalogs/*/*.parquet")))  # decoders still start
        paths[-1].unlink()
        holder = json.loads((results / "lease.json").read_text())
        with pytest.raises(ResultsError, match=f"being written by process {holder['pid']}"):
            score(catalog, str(results), options(bundle_path))
        assert job.result().status == {"ok": 23, "quarantined": 1}
        assert score(catalog, str(results), options(bundle_path)).generation is None
        whole(results, 24)


class InThread:
    """A job that runs beside the test."""

    def __init__(self, *arguments):
        self._found = []
        self._thread = threading.Thread(target=self._run, args=arguments)
        self._thread.start()

    def _run(self, catalog, results, chosen):
        self._found.append(score(catalog, str(results), chosen))

    def result(self):
        self._thread.join(300)
        (found,) = self._found
        return found


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
