"""The archive job on a local Ray cluster: exactly once, whatever happens."""

import html
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow.fs import LocalFileSystem

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.redaction import UriRedaction
from braintumor_ray.errors import ResultsError
from braintumor_ray.models.bundle import load_bundle, save_bundle
from braintumor_ray.models.domain import ArchiveReference
from braintumor_ray.parquet_dataset import read_rows
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.predict.results import read_results, results_folder
from braintumor_ray.predict.shift import shift_of
from braintumor_ray.scoring.job import ScoreOptions, score
from braintumor_ray.scoring.options import DecodeSettings, PredictSettings
from braintumor_ray.scoring.pipeline import Counter
from braintumor_ray.scoring.verify import verify
from braintumor_ray.worklist.worklist import make_worklist
from tests.archive.nights import by_the_readme
from tests.builders import make_bundle, make_fields, make_model, write_archive
from tests.decode.mutations import intact_images, mutated_images
from tests.scoring.workers import POISON, SLEEPING_POISON

pytestmark = pytest.mark.ray
PROJECT = Path(__file__).resolve().parents[2]


def options(bundle, block_size=16, **changes):
    decode = DecodeSettings(**changes.pop("decode", {}))
    return ScoreOptions(
        PredictSettings(str(bundle), **changes.pop("predict", {})),
        decode,
        block_size=block_size,
        **changes,
    )


def run(archive, results, bundle, **changes):
    return score(load_catalog(archive), str(results), options(bundle, **changes))


def count_by_duckdb(results):
    """As the README shows it: the committed files, from the manifests."""
    files = [
        f"{results}/{file['path']}"
        for manifest in results_folder(results).manifests()
        for file in manifest["files"]
    ]
    return duckdb.sql(
        f"SELECT count(*), count(DISTINCT scan_id) FROM read_parquet({files!r})"
    ).fetchall()[0]


@pytest.fixture(scope="module")
def reference():
    """Validation scans that no scan of the archive is like."""
    features = np.random.default_rng(0).random((60, make_model().map_shape[0]))
    return ArchiveReference.fit(features, np.arange(60) % 2 == 0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, reference):
    """A bundle that compares archives with its validation scans."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    make_bundle(path, archive=reference)
    return path


@pytest.fixture(scope="module")
def nights(tmp_path_factory, bundle, cluster):
    """An archive of 40 scans, scored once in blocks of 16; `scored` looks at a copy of that."""
    folder = tmp_path_factory.mktemp("nights")
    write_archive(folder / "archive", 40)
    return folder, run(folder / "archive", folder / "results", bundle)


@pytest.fixture(scope="module")
def scored(nights):
    """The results as they were after the first night."""
    folder, summary = nights
    shutil.copytree(folder / "results", folder / "first" / "results")
    return folder, folder / "first" / "results", summary


def test_predictors_report_to_one_counter_which_forgets_them_in_the_end(cluster):
    with closing(Counter()) as counter, closing(Counter()) as other:
        report = counter.reporter()

        @ray.remote(num_cpus=0)
        def predictor(blocks):
            for _ in range(blocks):
                report(16, 0.5)

        ray.get([predictor.remote(2), predictor.remote(3)])
        assert counter.read() == (80, 2.5)
        assert other.read() == (0, 0)
    assert counter.read() == (0, 0)


def test_names_of_folders_are_no_columns(tmp_path, cluster):
    path = tmp_path / "label=x" / "frame=7" / "rows.parquet"
    path.parent.mkdir(parents=True)
    rows = [{"label": "a", "frame": 1}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert read_rows([str(path)], LocalFileSystem()).take_all() == rows


def test_an_archive_that_differs_from_validation_is_said_to(scored, bundle, reference, tmp_path):
    _, results, summary = scored
    assert summary.shift.differs
    assert summary.shift.scans == 40
    rows = read_results(results)
    places = np.array(rows["domain_coordinates"].to_pylist())
    assert places.shape == (40, len(load_bundle(bundle).archive.scale))
    again = shift_of(reference, places, rows["decision"].to_numpy(), [None] * 40)
    assert again.distance == pytest.approx(summary.shift.distance, rel=1e-5)
    found = make_worklist(results, tmp_path / "worklist", overlays=0)
    assert "Run 1: these 40 scans differ" in found["shifts"][0]
    page = (tmp_path / "worklist" / "worklist.html").read_text()
    assert found["shifts"][0] in html.unescape(page)


class TestNights:
    def test_the_first_scores_everything(self, scored):
        _, results, summary = scored
        assert summary.status == {"ok": 40}
        table = read_results(results)
        assert len(set(table["scan_id"].to_pylist())) == table.num_rows == 40
        assert count_by_duckdb(results) == (40, 40)
        assert verify(str(results)).differences == []

    def test_block_size_bounds_what_a_crash_costs(self, scored):
        (manifest,) = results_folder(scored[1]).manifests()
        assert sorted(file["rows"] for file in manifest["files"]) == [8, 16, 16]

    def test_the_second_scores_nothing_and_the_third_what_is_new_or_changed(self, scored, bundle):
        folder, _, _ = scored
        archive, results = folder / "archive", folder / "results"
        again = run(archive, results, bundle)
        assert (again.generation, again.known) == (None, 40)
        before = read_results(results, ["uri", "pixel_sha256"]).to_pylist()
        new = write_archive(archive, 20, seed=1)
        changed = next(archive.rglob("scan0_*.png"))
        changed.write_bytes(intact_images(5, 1)[0][1])
        third = run(archive, results, bundle)
        assert third.scans == 20 + 1
        after = read_results(results, ["uri", "pixel_sha256"]).to_pylist()
        assert {row["uri"] for row in after if row not in before} == {str(changed), *map(str, new)}
        assert len(after) == 60, "the changed file's older row is no longer current"
        assert count_by_duckdb(results) == (61, 61)
        assert verify(str(results)).differences == []

    def test_the_readmes_query_finds_each_scan_once(self, scored):
        counts, _ = by_the_readme(scored[1])
        assert sum(n for _, n, _ in counts) == 40

    def test_results_belong_to_one_bundle(self, scored, tmp_path):
        folder, results, _ = scored
        make_bundle(tmp_path / "other", threshold=0.7)
        with pytest.raises(ResultsError, match="bundle_fingerprint"):
            run(folder / "archive", results, tmp_path / "other")

    def test_settings_that_change_the_maps_are_refused_too(self, scored, bundle):
        folder, results, _ = scored
        with pytest.raises(ResultsError, match="cam_class"):
            run(folder / "archive", results, bundle, predict={"cam_class": "positive"})

    def test_maps_keep_their_shape_for_plain_readers(self, scored):
        _, results, _ = scored
        (manifest,) = results_folder(results).manifests()
        path = f"{results}/{manifest['files'][0]['path']}"
        lengths = duckdb.sql(f"SELECT DISTINCT len(gradcam), len(gradcam_pp) FROM '{path}'")
        assert lengths.fetchall() == [(64, 64)]
        assert pq.read_schema(path).field("gradcam").metadata[b"shape"] == b"[8, 8]"
        assert pq.read_table(path).to_pandas()["gradcam"].iloc[0].shape == (64,)


class TestBadInput:
    def test_deadly_and_stalling_files_are_quarantined_and_the_rest_is_scored(
        self, tmp_path, bundle_path, cluster
    ):
        paths = write_archive(tmp_path / "archive", 18)
        paths[5].write_bytes(POISON)
        paths[14].write_bytes(SLEEPING_POISON)
        decode = {"worker": "tests.scoring.workers:deadly_or_stalling", "timeout_s": 1.0}
        summary = run(tmp_path / "archive", tmp_path / "results", bundle_path, decode=decode)
        assert summary.status == {"ok": 16, "quarantined": 2}
        assert set(summary.reasons) == {
            "decoder died twice (exit code 7)",
            "decoder took longer than 1 s, twice",
        }

    def test_quarantined_rows_are_kept_and_tried_again_on_request_only(
        self, tmp_path, bundle_path, cluster
    ):
        paths = write_archive(tmp_path / "archive", 6)
        paths[0].write_bytes(b"")
        catalog = load_catalog(tmp_path / "archive")
        data, state = paths[1].read_bytes(), paths[1].stat()
        paths[1].unlink()  # between listing and reading
        results = str(tmp_path / "results")
        summary = score(catalog, results, options(bundle_path))
        assert summary.status == {"ok": 4, "quarantined": 2}
        gone = "file not found (deleted or moved since it was catalogued)"
        assert set(summary.reasons) == {"empty file (0 bytes)", gone}
        again = score(catalog, results, options(bundle_path))
        assert again.generation is None
        paths[1].write_bytes(data)  # the share is mounted again, with the file as it was
        os.utime(paths[1], ns=(state.st_atime_ns, state.st_mtime_ns))
        retried = score(catalog, results, options(bundle_path, retry_quarantined=True))
        assert (retried.scans, retried.status) == (2, {"ok": 1, "quarantined": 1})
        rows = read_results(results)
        assert rows.num_rows == 6
        assert rows["status"].to_pylist().count("ok") == 5
        assert verify(results).differences == []

    def test_a_redacted_folder_tells_no_path_and_is_still_exactly_once(
        self, tmp_path, bundle_path, cluster
    ):
        write_archive(tmp_path / "secretplace", 6)
        results = tmp_path / "results"
        redacted = {"decode": {"redaction": UriRedaction(b"key")}}
        run(tmp_path / "secretplace", results, bundle_path, **redacted)
        write_archive(tmp_path / "secretplace", 2, seed=3)
        assert run(tmp_path / "secretplace", results, bundle_path, **redacted).scans == 2
        assert read_results(results).num_rows == 8
        assert verify(str(results)).differences == []
        for path in results.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert b"secretplace" not in content, path
                assert b"scan0_0001" not in content, path
        for path in results.rglob("*.parquet"):
            text = str(pq.read_table(path).to_pylist())
            assert "secretplace" not in text
            assert "scan0_0001" not in text
        with pytest.raises(ResultsError, match="uri_redaction"):
            run(tmp_path / "secretplace", results, bundle_path)

    @pytest.mark.slow
    def test_three_hundred_mutated_files_between_fifty_intact_ones(
        self, tmp_path, bundle_path, cluster
    ):
        bad, good = mutated_images(11, 300), intact_images(12, 50)
        kinds = {}
        for index, (name, data, kind) in enumerate([*bad, *good]):
            path = tmp_path / "archive" / f"{(index * 7) % 350:03d}_{name}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            kinds[str(path)] = (kind, index >= 300)
        run(tmp_path / "archive", tmp_path / "results", bundle_path, block_size=64)
        rows = read_results(tmp_path / "results").to_pylist()
        assert len(rows) == len({row["scan_id"] for row in rows}) == 350
        for row in rows:
            assert (row["status"] == "ok") == (row["reason"] is None)
            if kinds[row["uri"]][1]:
                assert row["status"] == "ok", row
        assert verify(str(tmp_path / "results")).differences == []


SCRIPT = """
import sys
from braintumor_ray.local_ray import ray_session
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.scoring.job import ScoreOptions, score
from braintumor_ray.scoring.options import (DecodeSettings)
from braintumor_ray.scoring.options import (PredictSettings)

archive, results, bundle = sys.argv[1:]
with ray_session():
    score(
        load_catalog(archive),
        results,
        ScoreOptions(
            PredictSettings(bundle),
            DecodeSettings(worker="tests.scoring.workers:slow"),
            block_size=16,
        ),
    )
"""


def start(archive, results, bundle):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(archive), str(results), str(bundle)],
        cwd=PROJECT,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def rows_on_disk(results):
    return sum(pq.read_metadata(path).num_rows for path in complete_files(results))


def complete_files(results):
    """Data files whose checkpoint is committed: others may still be being written."""
    done = {p.name[: -len(".parquet")] for p in Path(results).glob("checkpoints/*/*/*.parquet")}
    for path in Path(results).glob("rows/*/*.parquet"):
        if path.name.rsplit("-", 1)[0] in done:
            yield path


def wait_for_rows(process, results, count):
    """Wait until at least `count` rows are committed; False if the run ended before."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if rows_on_disk(results) >= count:
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    raise TimeoutError(f"{rows_on_disk(results)} rows after 180 s, waited for {count}")


@pytest.mark.chaos
@pytest.mark.slow
def test_a_driver_killed_twice_loses_nothing_and_doubles_nothing(tmp_path, bundle_path):
    total = 240
    write_archive(tmp_path / "archive", total)
    results = tmp_path / "results"
    for share in (0.3, 0.6):
        process = start(tmp_path / "archive", results, bundle_path)
        assert wait_for_rows(process, results, share * total), process.stderr.read().decode()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert rows_on_disk(results) < total
        with pytest.raises(ResultsError, match="no committed run"):
            read_results(results)
        assert any("in flight" in d for d in verify(str(results)).differences)
    process = start(tmp_path / "archive", results, bundle_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]
    ids = read_results(results)["scan_id"].to_pylist()
    assert len(ids) == len(set(ids)) == total
    assert count_by_duckdb(results) == (total, total)
    assert verify(str(results)).differences == []


@pytest.mark.chaos
@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_nothing(tmp_path, bundle_path):
    import psutil

    total = 160
    write_archive(tmp_path / "archive", total)
    results = tmp_path / "results"
    process = start(tmp_path / "archive", results, bundle_path)
    assert wait_for_rows(process, results, 0.2 * total), process.stderr.read().decode()
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("ray::MapWorker(MapBatches(PredictStage))" in part for part in child.cmdline())
    ]
    assert workers
    workers[0].send_signal(signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]
    assert output == b"", "stdout is for results, whatever Ray has to say"
    assert count_by_duckdb(results) == (total, total)
    assert verify(str(results)).differences == []


@pytest.mark.usefixtures("cluster")
def test_a_transformer_is_scored_and_explained(tmp_path):
    """Another one: in `test_predict_stage.py`."""
    write_archive(tmp_path / "archive", 8)
    model = make_model("vit_small_patch16_224", "linear", 96)
    save_bundle(tmp_path / "bundle", make_fields(model.architecture), model, None, "# card\n")
    summary = run(tmp_path / "archive", tmp_path / "results", tmp_path / "bundle")
    assert summary.status == {"ok": 8}
    assert verify(str(tmp_path / "results")).differences == []
    predictor = Predictor.from_bundle(tmp_path / "bundle")
    rows = read_results(tmp_path / "results", ["uri", "gradcam", "probabilities"]).to_pylist()[:4]
    expected = predictor([cv2.imread(row["uri"], cv2.IMREAD_GRAYSCALE) for row in rows])
    for row, probabilities, cam in zip(
        rows, expected["probabilities"], expected["gradcam"], strict=True
    ):
        np.testing.assert_allclose(row["probabilities"], probabilities, atol=0.01)
        stored = np.reshape(row["gradcam"], cam.shape)
        np.testing.assert_allclose(stored, cam, atol=0.05 * max(float(cam.max()), 1e-3))
