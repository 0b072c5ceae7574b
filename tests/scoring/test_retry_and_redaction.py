"""Quarantined scans tried again, and results that do not tell where a scan is; without Ray."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.redaction import UriRedaction, redact_catalog, uri_redaction
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import UsageError
from braintumor_ray.predict.results import read_results, results_folder
from braintumor_ray.scoring.decode_stage import DecodeStage
from braintumor_ray.scoring.generation import drop_unlisted
from braintumor_ray.scoring.options import DecodeSettings
from braintumor_ray.scoring.plan import make_plan, write_work
from tests.builders import write_archive

SQUARE = Preprocessing(32, "area", (0.5,) * 3, (0.25,) * 3)
KEY = UriRedaction(b"a key of our own")


def night(folder, catalog, redaction=None, **options):
    """Plan, decode and commit as the job does; returns the plan."""
    manifests = folder.manifests()
    plan = make_plan(folder, catalog, manifests, "fp", redaction=redaction, **options)
    if not plan.work.num_rows:
        return plan
    generation = plan.generation
    catalogs = write_work(plan, "attempt")
    rows = DecodeStage(SQUARE, DecodeSettings(redaction=redaction), (2, 2))(plan.work.read())
    os.makedirs(folder.at(generation.rows))
    file = f"{generation.rows}/a_000000-0.parquet"
    pq.write_table(rows.drop_columns(["image", "head"]), folder.at(file), compression="none")
    if redaction:
        catalogs = write_work(plan, "attempt-redacted", redaction)
    manifest = {
        "generation": generation.number,
        "catalogs": catalogs,
        "files": [{"path": file, "rows": rows.num_rows}],
        "supersedes": {str(k): v for k, v in plan.supersedes.items()},
    }
    folder.write_json(manifest, "manifests", f"{generation.name}.json")
    drop_unlisted(generation, manifest)
    return plan


def statuses(folder):
    rows = read_results(folder.location, ["frame", "status"])
    return sorted(rows["status"].to_pylist())


@pytest.fixture
def archive(tmp_path):
    """Three scans, and one whose disk does not let it be read tonight."""
    write_archive(tmp_path / "archive", 3)
    (tmp_path / "archive" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "archive"


@pytest.fixture
def folder(tmp_path):
    return results_folder(tmp_path / "results")


class TestRetry:
    def test_quarantined_scans_are_left_alone_unless_asked(self, archive, folder):
        night(folder, load_catalog(archive))
        assert night(folder, load_catalog(archive)).remaining == 0

    def test_a_retry_takes_quarantined_scans_only(self, archive, folder):
        night(folder, load_catalog(archive))
        plan = night(folder, load_catalog(archive), retry_quarantined=True)
        assert plan.work.read()["path"].to_pylist() == ["broken.png"]
        assert plan.known == 3
        assert list(plan.supersedes) == [1]
        assert statuses(folder) == ["ok", "ok", "ok", "quarantined"]

    def test_a_scan_that_can_be_read_now_is_ok_and_has_one_row(self, archive, folder, monkeypatch):
        catalog = load_catalog(archive)
        missing = archive.rename(archive.with_name("unmounted"))
        night(folder, catalog)
        assert statuses(folder) == ["quarantined"] * 4
        missing.rename(archive)
        night(folder, catalog, retry_quarantined=True)
        assert statuses(folder) == ["ok", "ok", "ok", "quarantined"]
        night(folder, catalog, retry_quarantined=True)
        assert statuses(folder) == ["ok", "ok", "ok", "quarantined"]
        assert [m["supersedes"].keys() for m in folder.manifests()] == [
            set(),
            {"1"},
            {"1", "2"},
        ]

    def test_a_scan_that_is_gone_from_the_source_is_not_retried(self, archive, folder):
        night(folder, load_catalog(archive))
        (archive / "broken.png").unlink()
        assert night(folder, load_catalog(archive), retry_quarantined=True).remaining == 0

    def test_an_interrupted_retry_goes_on(self, archive, folder):
        night(folder, load_catalog(archive))
        plan = make_plan(
            folder, load_catalog(archive), folder.manifests(), "fp", retry_quarantined=True
        )
        write_work(plan, "one")
        for part in (plan.generation.rows, plan.generation.checkpoints):
            os.makedirs(folder.at(part))
        ids = plan.work.read().select(["scan_id"])
        pq.write_table(ids, folder.at(plan.generation.checkpoints, "x_000000.parquet"))
        pq.write_table(ids, folder.at(plan.generation.rows, "x_000000-0.parquet"))
        for retry in (True, False):  # also where the second run is not asked to retry
            again = make_plan(
                folder, load_catalog(archive), folder.manifests(), "fp", retry_quarantined=retry
            )
            assert (again.resumed, again.remaining) == (1, 0)
            assert list(again.supersedes) == [1]


class TestRedaction:
    def test_nothing_in_the_folder_tells_where_a_scan_is(self, archive, folder):
        (archive / "Quorra_Zoe").mkdir()
        write_archive(archive / "Quorra_Zoe", 1, seed=1)
        night(folder, load_catalog(archive), KEY)
        found = [path for path in archive.parent.glob("results/**/*") if path.is_file()]
        assert len(found) == 3  # catalog, rows, manifest
        for path in found:
            if path.suffix == ".parquet":
                said = str(pq.read_table(path).to_pydict())
            else:
                said = path.read_text()
            for word in (str(archive), "Quorra", "broken", "scan0", "scan1"):
                assert word not in said, path
        uris = read_results(folder.location, ["uri"])["uri"].to_pylist()
        assert len(set(uris)) == 5
        assert all(uri.startswith("redacted:") for uri in uris)

    def test_the_newest_version_of_a_file_is_current_all_the_same(self, archive, folder):
        night(folder, load_catalog(archive), KEY)
        assert night(folder, load_catalog(archive), KEY).remaining == 0
        write_archive(archive, 1, seed=0)
        path = next(archive.glob("**/scan0_0000.png"))
        os.utime(path, ns=(1, 1))
        plan = night(folder, load_catalog(archive), KEY)
        assert (plan.work.num_rows, plan.known) == (1, 3)
        assert [len(ids) for ids in plan.supersedes.values()] == [1]
        night(folder, load_catalog(archive), KEY, retry_quarantined=True)
        rows = read_results(folder.location, ["uri", "frame"])
        assert rows.num_rows == len(set(rows["uri"].to_pylist())) == 4

    def test_rows_lead_back_to_the_source_by_their_scan_id(self, archive, folder):
        catalog = load_catalog(archive)
        night(folder, catalog, KEY)
        rows = read_results(folder.location, ["scan_id", "status"])
        joined = rows.join(catalog.select(["scan_id", "path"]), "scan_id")
        ends = dict(zip(joined["path"].to_pylist(), joined["status"].to_pylist(), strict=True))
        assert ends["broken.png"] == "quarantined"
        assert len(ends) == 4

    def test_redacting_twice_changes_nothing(self, archive):
        once = redact_catalog(load_catalog(archive), KEY)
        assert redact_catalog(once, KEY).equals(once)

    def test_labels_from_folders_and_further_columns_go_and_given_labels_stay(self, tmp_path):
        write_archive(tmp_path, 2)
        redacted = redact_catalog(load_catalog(tmp_path), KEY)
        assert redacted["label"].null_count == 2
        names = sorted(path.name for path in tmp_path.glob("**/*.png"))
        lines = [f"{name},tumor,{name}" for name in names]
        (tmp_path / "table.csv").write_text("\n".join(["path,label,note", *lines]))
        catalog = load_catalog(tmp_path / "table.csv", CatalogOptions())
        assert "note" in catalog.column_names
        redacted = redact_catalog(catalog, KEY)
        assert redacted["label"].to_pylist() == ["tumor", "tumor"]
        assert "note" not in redacted.column_names

    def test_another_key_is_told_apart_without_the_key(self):
        assert KEY.check != UriRedaction(b"another").check
        assert KEY("a.png") != UriRedaction(b"another")("a.png")
        assert "our own" not in KEY.check + KEY("a.png")

    def test_without_a_key_there_is_no_redaction(self):
        with pytest.raises(UsageError, match="needs a key"):
            uri_redaction(IdentityHash())
        assert uri_redaction(IdentityHash(b"k", clear=True))("p") == UriRedaction(b"k")("p")


def test_without_redaction_the_rows_keep_their_uris(archive):
    catalog = load_catalog(archive)
    rows = DecodeStage(SQUARE, DecodeSettings(), (2, 2))(catalog)
    assert isinstance(rows, pa.Table)
    np.testing.assert_array_equal(rows["uri"].to_pylist(), catalog["uri"].to_pylist())
