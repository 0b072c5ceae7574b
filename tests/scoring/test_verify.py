"""Each planted fault is found."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.cli import app
from braintumor_ray.predict.results import results_folder
from braintumor_ray.scoring.decode_stage import DecodeStage
from braintumor_ray.scoring.options import DecodeSettings, PredictSettings, ScoreOptions
from braintumor_ray.scoring.plan import make_plan, write_work
from braintumor_ray.scoring.predict_stage import PredictStage
from braintumor_ray.scoring.result_settings import describe_settings
from braintumor_ray.scoring.verify import verify
from tests.archive.nights import make_nights
from tests.builders import make_bundle, write_archive


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A results folder made by the job's own stages, without Ray."""
    root = tmp_path_factory.mktemp("verify")
    bundle = make_bundle(root / "bundle")
    write_archive(root / "archive", 10)
    (root / "archive" / "no_tumor" / "bad.png").write_bytes(b"")
    folder = results_folder(root / "results")
    settings = PredictSettings(str(root / "bundle"))
    folder.write_json(describe_settings(bundle, ScoreOptions(settings)), "results.json")
    plan = make_plan(folder, load_catalog(root / "archive"), [], "fp")
    catalogs = write_work(plan, "one")
    decode = DecodeStage(bundle.preprocessing, DecodeSettings(), bundle.cam_shape)
    rows = PredictStage(settings, bundle.fingerprint)(decode(plan.work.read()))
    (root / "results" / "rows" / "000001").mkdir(parents=True)
    files = []
    for name, part in (("a-0", rows.slice(0, 6)), ("b-0", rows.slice(6))):
        path = f"rows/000001/{name}.parquet"
        pq.write_table(part, folder.at(path))
        files.append({"path": path, "rows": part.num_rows, "bytes": 1})
    manifest = {"generation": 1, "catalogs": catalogs, "files": files, "supersedes": {}}
    folder.write_json(manifest, "manifests", "000001.json")
    return root / "results"


@pytest.fixture
def results(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "results")
    return tmp_path / "results"


def rewrite(results, change, name="a-0"):
    path = results / "rows" / "000001" / f"{name}.parquet"
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    manifest = results / "manifests" / "000001.json"
    content = json.loads(manifest.read_text())
    for file in content["files"]:
        if file["path"].endswith(f"{name}.parquet"):
            file["rows"] = table.num_rows
    manifest.write_text(json.dumps(content))


def replace(table, name, values):
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), values)


def test_a_clean_folder_is_verified(results):
    report = verify(str(results))
    assert report.differences == []
    assert (report.scans, report.rows) == (11, 11)
    assert CliRunner().invoke(app, ["verify", str(results)]).exit_code == 0


FAULTS = {
    "a row removed": (lambda t: t.slice(1), "without a row"),
    "a row doubled": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "surplus"),
    "a map of another shape": (
        lambda t: replace(
            t,
            "gradcam",
            pa.array([np.zeros(9, np.float16)] * t.num_rows, pa.list_(pa.float16())),
        ),
        "'gradcam' has not 64 values",
    ),
    "another fingerprint": (
        lambda t: replace(t, "bundle_fingerprint", pa.array(["other"] * t.num_rows)),
        "another bundle",
    ),
    "a foreign row": (
        lambda t: replace(t, "scan_id", pa.array([1, *t["scan_id"].to_pylist()[1:]], pa.int64())),
        "its catalog does not have",
    ),
    "a reason lost": (
        lambda t: replace(t, "reason", pa.nulls(t.num_rows, pa.string())),
        "no reason",
    ),
    "a status invented": (
        lambda t: replace(t, "status", pa.array(["fine"] * t.num_rows)),
        "status 'fine'",
    ),
    "a column lost": (lambda t: t.drop_columns(["entropy"]), "'entropy' is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_ends_in_exit_3(results, fault):
    change, words = FAULTS[fault]
    table = pq.read_table(results / "rows" / "000001" / "b-0.parquet")
    name = "b-0" if pc.any(pc.equal(table["status"], "quarantined")).as_py() else "a-0"
    rewrite(results, change, name)
    differences = verify(str(results)).differences
    assert any(words in difference for difference in differences), differences
    found = CliRunner().invoke(app, ["verify", str(results)])
    assert found.exit_code == 3


def test_a_stray_file_is_found(results):
    folder = results / "rows" / "000001"
    shutil.copy(folder / "a-0.parquet", folder / "stray-0.parquet")
    assert any("listed by no manifest" in d for d in verify(str(results)).differences)


def test_a_missing_and_a_damaged_file_are_found(results):
    (results / "rows" / "000001" / "a-0.parquet").unlink()
    assert any("cannot be read" in d for d in verify(str(results)).differences)


def test_rows_behind_the_manifests_back_are_counted(results):
    path = results / "rows" / "000001" / "a-0.parquet"
    pq.write_table(pq.read_table(path).slice(2), path)
    assert any("the manifest says 6" in d for d in verify(str(results)).differences)


def test_a_gap_in_the_manifests_is_found(results):
    (results / "manifests" / "000001.json").rename(results / "manifests" / "000002.json")
    content = json.loads((results / "manifests" / "000002.json").read_text())
    content["generation"] = 2
    (results / "manifests" / "000002.json").write_text(json.dumps(content))
    assert any("without a gap" in d for d in verify(str(results)).differences)


def test_an_unfinished_folder_is_not_called_verified(results):
    (results / "manifests" / "000001.json").unlink()
    assert verify(str(results)).differences


@pytest.mark.parametrize(
    ("superseded", "difference"),
    [
        ([20_002, 20_003], None),
        ([20_003], "1 scans have current rows below two roots, such as 'scan-0002-0002.png'"),
        ([20_002], "1 scan ids have current rows in more than one generation"),
    ],
)
def test_a_file_has_one_current_row_wherever_its_root_is(tmp_path, superseded, difference):
    root = make_nights(tmp_path / "results", nights=3)
    for file in (*(root / "rows" / "000003").iterdir(), *(root / "catalogs" / "000003").iterdir()):
        table = pq.read_table(file)
        moved = [f"/mnt/b/{uri}" for uri in table["uri"].to_pylist()]
        pq.write_table(replace(table, "uri", [moved]), file)
    manifest = root / "manifests" / "000003.json"
    content = json.loads(manifest.read_text()) | {"supersedes": {"2": superseded}}
    manifest.write_text(json.dumps(content))
    assert verify(str(root)).differences == ([difference] if difference else [])
