"""Archives, bundles and results in an object store, with its faults."""

import json
import os
import time

import boto3
import numpy as np
import obstore
import pyarrow as pa
import pytest
from obstore.exceptions import GenericError, NotSupportedError
from obstore.store import MemoryStore
from typer.testing import CliRunner

from braintumor_ray import lease as lease_module
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.listing import list_files
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.cli import app
from braintumor_ray.decode.files import read_file
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.errors import ResultsError
from braintumor_ray.lease import Holder, NoLease, StoreLease, lease_on
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.results import read_results
from braintumor_ray.scoring import decode_stage as watchful
from braintumor_ray.scoring.job import ScoreOptions, score
from braintumor_ray.scoring.options import DecodeSettings, PredictSettings
from braintumor_ray.scoring.verify import verify
from braintumor_ray.storage import open_filesystem, read_bytes, write_atomically
from tests.builders import write_archive
from tests.s3 import upload


class TestLeaseOnAStore:
    def test_one_of_two_gets_it_and_the_other_is_told_who(self, s3):
        results = f"s3://{s3[0]}/results"
        with lease_on(results) as lease:
            assert isinstance(lease, StoreLease)
            lease.check()
            with pytest.raises(ResultsError, match=f"process {os.getpid()}"):
                lease_on(results).__enter__()
        with lease_on(results):
            pass

    def test_of_many_at_once_one_gets_it(self, s3):
        leases = [StoreLease(f"s3://{s3[0]}/r") for _ in range(6)]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(6) as pool:
            refused = list(pool.map(lambda lease: lease.take(), leases))
        assert sum(holder is None for holder in refused) == 1

    def test_a_stale_holder_elsewhere_is_taken_over_and_notices(self, s3):
        first, second = (StoreLease(f"s3://{s3[0]}/r") for _ in range(2))
        old = Holder("t", "elsewhere", 1, 0.0, time.time() - 61)
        assert first._put(old, None)
        assert second.take() is None
        assert not first.renew()
        first.token = "t"
        with pytest.raises(ResultsError, match="now belongs to"):
            first.check()

    def test_a_fresh_holder_elsewhere_is_respected(self, s3):
        lease = StoreLease(f"s3://{s3[0]}/r")
        assert lease._put(Holder("t", "elsewhere", 1, 0.0, time.time()), None)
        assert lease.take().host == "elsewhere"

    def test_heartbeats_go_on_and_outlast_a_busy_store(self, s3, monkeypatch):
        bucket, faults = s3
        monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.1)
        with lease_on(f"s3://{bucket}/r") as lease:
            first = lease.read().heartbeat
            faults.busy_for(1.0, "lease.json")
            deadline = time.monotonic() + 30
            while lease.read().heartbeat == first and time.monotonic() < deadline:
                time.sleep(0.1)
            assert lease.read().heartbeat > first
            lease.check()

    def test_a_heartbeat_whose_answer_never_came_is_not_the_last(self, monkeypatch):
        lease, put = StoreLease("s3://b/r", MemoryStore()), obstore.put
        assert lease.take() is None

        def unanswered(*args, **options):
            put(*args, **options)
            raise GenericError("operation timed out")

        with monkeypatch.context() as slow:
            slow.setattr(obstore, "put", unanswered)
            with pytest.raises(OSError, match="timed out"):
                lease.renew()
        first = lease.read().heartbeat
        assert lease.renew()
        assert lease.read().heartbeat > first
        lease.release()
        assert lease.read() is None

    def test_without_the_library_a_warning_names_the_guard(self, s3, monkeypatch, caplog):
        monkeypatch.setattr("braintumor_ray.lease.find_spec", lambda _: None)
        with lease_on(f"s3://{s3[0]}/r") as lease:
            assert isinstance(lease, NoLease)
            lease.check()
        assert "submission id" in caplog.text

    def test_a_store_without_conditional_put_is_written_all_the_same(self, s3, caplog):
        bucket, faults = s3
        faults.unconditional = True
        with lease_on(f"s3://{bucket}/r") as lease:
            assert isinstance(lease, NoLease)
            lease.check()
        assert "no conditional put; make sure that only one job" in caplog.text

    def test_so_is_one_that_knows_only_the_condition_of_a_new_object(self, monkeypatch, caplog):
        """`If-None-Match` without `If-Match`: such a lease could not be renewed or released."""
        store, put = MemoryStore(), obstore.put

        def only_new(*args, mode, **options):
            if mode != "create":
                raise NotSupportedError("If-Match")
            return put(*args, mode=mode, **options)

        monkeypatch.setattr(obstore, "put", only_new)
        monkeypatch.setattr(lease_module, "open_object_store", lambda _: store)
        for _ in range(2):  # of one process, one after the other
            with lease_on("s3://b/r") as lease:
                assert isinstance(lease, NoLease)
        assert len(caplog.messages) == 2
        assert all("has no conditional put" in message for message in caplog.messages)
        assert not list(store.list())


class TestFiles:
    def test_a_busy_store_is_asked_again(self, s3):
        bucket, faults = s3
        write_atomically(f"s3://{bucket}/a.bin", b"content")
        faults.busy_for(2.0)
        assert read_bytes(f"s3://{bucket}/a.bin") == b"content"
        faults.busy_for(2.0)
        write_atomically(f"s3://{bucket}/b.bin", b"more")
        assert faults.refused >= 2
        assert read_bytes(f"s3://{bucket}/b.bin") == b"more"

    def test_a_slow_read_is_waited_for(self, s3):
        bucket, faults = s3
        write_atomically(f"s3://{bucket}/a.bin", bytes(100_000))
        faults.delay_s = 2.0
        assert read_file(f"s3://{bucket}/a.bin", DecodeLimits()).data == bytes(100_000)
        assert faults.slowed

    def test_a_missing_object_is_said_to_be_missing(self, s3):
        found = read_file(f"s3://{s3[0]}/nothing.png", DecodeLimits())
        assert found.reason == "file not found (deleted or moved since it was catalogued)"

    def test_a_bundle_loads_from_a_store(self, s3, bundle_path):
        upload(bundle_path, s3[0], "bundle")
        stored = load_bundle(f"s3://{s3[0]}/bundle")
        assert stored.fingerprint == load_bundle(bundle_path).fingerprint


class TestDecodingFromAStore:
    @pytest.fixture
    def archive(self, s3, tmp_path):
        write_archive(tmp_path / "archive", 6)
        upload(tmp_path / "archive", s3[0], "archive")
        return load_catalog(f"s3://{s3[0]}/archive")

    @pytest.fixture
    def impatient(self, monkeypatch):
        """Reading gives up at once, so that only our own waiting is left."""
        import pyarrow.fs as pafs

        from braintumor_ray import storage
        from braintumor_ray import storage as stores

        monkeypatch.setattr(stores, "MAX_ATTEMPTS", 1)
        storage._filesystem.cache_clear()
        assert pafs
        yield
        storage._filesystem.cache_clear()

    def decode(self, bundle_path):
        return watchful.ArchiveDecodeStage(
            load_bundle(bundle_path).preprocessing, DecodeSettings(), (2, 2)
        )

    def test_what_a_busy_store_refused_is_read_again(self, s3, archive, bundle_path, impatient):
        stage = self.decode(bundle_path)
        s3[1].busy_for(4.0, "archive")
        found = stage(archive)
        assert found["status"].to_pylist() == ["ok"] * 6
        assert found["scan_id"].to_pylist() == archive["scan_id"].to_pylist()
        assert s3[1].refused

    def test_a_store_that_stays_away_fails_the_block_and_quarantines_nothing(
        self, s3, archive, bundle_path, impatient
    ):
        stage = self.decode(bundle_path)
        stage.patience_s = 1.0
        s3[1].busy_for(600.0)
        with pytest.raises(OSError, match="does not answer"):
            stage(archive)

    def test_an_object_that_alone_refuses_is_quarantined(self, s3, archive, bundle_path, impatient):
        stage = self.decode(bundle_path)
        stage.patience_s = 1.0
        name = archive["path"][2].as_py().rsplit("/", 1)[1]
        s3[1].busy_for(600.0, name)
        found = stage(archive)
        assert found["status"].to_pylist().count("ok") == 5
        assert found["reason"][2].as_py() == "file not readable: OSError"

    def test_an_object_that_was_replaced_is_quarantined(self, s3, archive, bundle_path):
        uri = archive["uri"][1].as_py()
        write_atomically(uri, read_bytes(archive["uri"][0].as_py()) + b"\0")
        found = self.decode(bundle_path)(archive)
        assert found["reason"].to_pylist() == [None, watchful.CHANGED, *[None] * 4]


PRINTABLE = [chr(code) for code in range(32, 127) if chr(code) != "/"]


class TestKeys:
    """A key may hold any character; each means itself."""

    def test_every_printable_character(self, s3, tmp_path):
        (scan,) = write_archive(tmp_path, 1)
        keys = {f"a {letter} b{letter}.png" for letter in (*PRINTABLE, "é", "脑", "%41", "+%2B")}
        root = f"s3://{s3[0]}/archive #1?x=%20+&y"
        for key in sorted(keys):
            write_atomically(f"{root}/glioma/{key}", scan.read_bytes() + key.encode())
        catalog = load_catalog(root)
        assert {*catalog["path"].to_pylist()} == {f"glioma/{key}" for key in keys}
        assert {*catalog["label"].to_pylist()} == {"glioma"}
        for uri, path in zip(catalog["uri"].to_pylist(), catalog["path"].to_pylist(), strict=True):
            content = read_file(uri, DecodeLimits()).data
            assert content == scan.read_bytes() + path.removeprefix("glioma/").encode()
        assert not watchful.changed_files(catalog).any()

    def test_a_table_names_them(self, s3, tmp_path):
        (scan,) = write_archive(tmp_path, 1)
        root = f"s3://{s3[0]}/set"
        names = ("scan #1.png", "100%25.png", "a+b?.png")
        for name in names:
            write_atomically(f"{root}/x/{name}", scan.read_bytes())
        rows = [f"x/{names[0]},a", f"{root}/x/{names[1]},b", f"{root}/x/{names[2]},c"]
        write_atomically(f"{root}/t #1.csv", "\n".join(["path,label", *rows]).encode())
        catalog = load_catalog(f"{root}/t #1.csv")
        found = dict(zip(catalog["path"].to_pylist(), catalog["label"].to_pylist(), strict=True))
        assert found == {f"x/{name}": label for name, label in zip(names, "abc", strict=True)}
        assert catalog["size"].null_count == 0

    def test_a_catalog_a_bundle_and_a_lease(self, s3, bundle_path, tmp_path):
        place = f"s3://{s3[0]}/my results #1? 100%25+"
        write_archive(tmp_path / "archive", 2)
        catalog = load_catalog(tmp_path / "archive")
        write_catalog(catalog, f"{place}/c #2.parquet")
        assert load_catalog(f"{place}/c #2.parquet").equals(catalog)
        for path in sorted(bundle_path.rglob("*")):
            write_atomically(f"{place}/bundle/{path.name}", path.read_bytes())
        assert load_bundle(f"{place}/bundle").fingerprint == load_bundle(bundle_path).fingerprint
        with lease_on(place) as lease:
            assert isinstance(lease, StoreLease)
            assert read_bytes(f"{place}/lease.json")  # where pyarrow looks for it

    def test_what_a_file_server_left_is_counted(self, s3):
        root = f"s3://{s3[0]}/nas"
        for key in ("a/1.png", "a/@eaDir/1.png/T.jpg", "#recycle/2.png", "x.zip", ".hidden"):
            write_atomically(f"{root}/{key}", b"x")
        found = list_files(root)
        assert [file.path for file in found.files] == ["a/1.png"]
        assert found.left_out == {"thumbnails and bins": 2, "archives to unpack": 1, "hidden": 1}

    def test_a_key_with_an_empty_part_is_counted(self, s3):
        client = boto3.client("s3")
        for key in (
            "x/a//b.png",
            "x/a/c.png",
            "x/ok/1.png",
            "x/2.png",
            "x/dir/",
            "y//1.png",
            "y/2.png",
        ):
            client.put_object(Bucket=s3[0], Key=key, Body=b"" if key.endswith("/") else b"x")
        found = list_files(f"s3://{s3[0]}/x")
        assert [file.path for file in found.files] == ["2.png", "a/c.png", "ok/1.png"]
        assert found.left_out == {"keys with an empty part ('//')": 1}
        assert [file.path for file in list_files(f"s3://{s3[0]}/y").files] == ["2.png"]


@pytest.mark.ray
@pytest.mark.slow
def test_scores_from_and_to_a_store_equal_local_ones(cluster, s3, tmp_path, bundle_path):
    bucket, faults = s3
    write_archive(tmp_path / "archive", 40)
    upload(tmp_path / "archive", bucket, "archive")
    upload(bundle_path, bucket, "bundle")
    options = ScoreOptions(PredictSettings(str(bundle_path)), block_size=20)
    score(load_catalog(tmp_path / "archive"), str(tmp_path / "results"), options)
    faults.delay_s = 0.01
    with faults.busy_at_first(6, "archive/"):
        found = json.loads(score_by_command(*(f"s3://{bucket}/{n}" for n in PARTS)))
    assert found["status"] == {"ok": 40}
    assert faults.refused
    assert faults.slowed
    assert verify(f"s3://{bucket}/results").differences == []
    local, stored = comparable(tmp_path / "results"), comparable(f"s3://{bucket}/results")
    exact = ["path", "status", "predicted_class", "pixel_sha256"]
    assert local.select(exact).equals(stored.select(exact))
    probabilities = [np.array(t["probabilities"].to_pylist()) for t in (local, stored)]
    np.testing.assert_allclose(*probabilities, atol=1e-3)
    filesystem, base = open_filesystem(f"s3://{bucket}/results")
    assert filesystem.get_file_info(f"{base}/lease.json").type.name == "File"


PARTS = ("archive", "bundle", "results")


def score_by_command(source, bundle, output):
    words = ["score", source, "-b", bundle, "-o", output, "--json", "--block-size", "20"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output[-3000:]
    return done.stdout


def comparable(results):
    """Rows by their path below the archive."""
    table = read_results(results)
    paths = [uri.rsplit("/archive/", 1)[1] for uri in table["uri"].to_pylist()]
    return table.append_column("path", pa.array(paths)).sort_by("path")
