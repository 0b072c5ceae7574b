"""An Iceberg table has the rows of a results folder, each run once, and no copies of files."""

import sys
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.register import RUN, iceberg_schema, register
from braintumor_ray.cli import app
from braintumor_ray.errors import ResultsError, UsageError
from braintumor_ray.predict.results import read_results, results_folder
from tests.archive.nights import add_night, make_nights

PROJECT = Path(__file__).resolve().parents[2]
pyiceberg_catalog = pytest.importorskip("pyiceberg.catalog")
CURRENT = (
    "SELECT * FROM rows QUALIFY row_number() OVER "
    "(PARTITION BY uri, frame ORDER BY scored_at DESC) = 1"
)
NOW = CompactOptions(expire=True, grace_hours=0)


@pytest.fixture
def nights(tmp_path):
    return make_nights(tmp_path / "results", nights=3)


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/catalog.db"


def load(uri):
    """As any program does, without our code."""
    return pyiceberg_catalog.load_catalog("default", type="sql", uri=uri).load_table(
        "braintumor.scans"
    )


def check_same(nights, uri):
    """Current rows by pyiceberg and DuckDB are those of our reader, maps left out."""
    rows = load(uri).scan().to_arrow()
    found = duckdb.connect().register("rows", rows).sql(CURRENT).to_arrow_table()
    wanted = read_results(nights).select(found.column_names)
    assert sorted(map(str, found.drop_columns("scored_at").to_pylist())) == sorted(
        map(str, wanted.drop_columns("scored_at").to_pylist())
    )


def runs(uri):
    return [s.summary.additional_properties.get(RUN) for s in load(uri).metadata.snapshots]


def test_a_warehouse_that_is_named_from_here_is_found_from_elsewhere(
    nights, uri, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    register(str(nights), uri, warehouse="lake")
    monkeypatch.chdir("/")
    check_same(nights, uri)
    assert (tmp_path / "lake").is_dir()


@pytest.mark.parametrize("again", ["register", "compact"])
def test_what_a_killed_registration_was_writing_is_deleted(nights, uri, again):
    register(str(nights), uri)
    (record,) = (nights / "registered").iterdir()
    unfinished = record.with_name(f"{record.name}.0123456789abcdef.tmp")
    unfinished.write_text("{")
    if again == "register":
        register(str(nights), uri)
    else:
        compact(str(nights))
    assert [*record.parent.iterdir()] == [record]


def test_every_run_is_one_snapshot_and_no_file_is_copied(nights, uri):
    done = register(str(nights), uri)
    assert (done.snapshots, done.generations, done.files) == (3, 3, 6)
    assert register(str(nights), uri).snapshots == 0
    assert runs(uri) == [m["run_id"] for m in results_folder(nights).manifests()]
    assert not list((nights / "iceberg").rglob("*.parquet"))
    check_same(nights, uri)
    filtered = load(uri).scan(row_filter="status == 'quarantined'", selected_fields=("uri",))
    assert filtered.to_arrow().num_rows == 3


def test_a_compaction_exchanges_the_files_in_one_snapshot(nights, uri):
    register(str(nights), uri)
    compact(str(nights))
    add_night(nights, 4)
    done = compact(str(nights), NOW)
    assert done.registered == 3 * 2 + 3  # the table still lists files of the first nights
    check_rows = load(uri).scan().to_arrow().num_rows
    assert check_rows == 60
    assert register(str(nights), uri).snapshots == 1
    check_same(nights, uri)
    assert compact(str(nights), NOW).registered == 0
    check_same(nights, uri)
    assert {f.file.file_path for f in load(uri).scan().plan_files()} == {
        f"file://{nights}/{file['path']}" for file in results_folder(nights).manifests()[0]["files"]
    }


def test_the_documents_list_the_tables_columns(nights):
    text = (PROJECT / "docs" / "archive.md").read_text(encoding="utf-8")
    assert all(name in text for name in ("gradcam", "half-precision", "braintumor.scans"))
    assert "gradcam" not in iceberg_schema(results_folder(nights)).names


def test_a_table_of_another_folder_or_schema_is_refused(nights, uri, tmp_path):
    register(str(nights), uri)
    other = make_nights(tmp_path / "other", nights=1)
    with pytest.raises(ResultsError, match="belongs to results"):
        register(str(other), uri)
    table = load(uri)
    with table.update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("entropy")
    with pytest.raises(ResultsError, match="'entropy' as missing"):
        register(str(nights), uri)


@pytest.mark.parametrize("bad", ["sqlite:////no/such/folder/catalog.db", "nonsense://x", "plain"])
def test_a_catalog_that_does_not_answer_is_one_line(nights, bad):
    found = CliRunner().invoke(app, ["register", str(nights), "--catalog", bad])
    assert (found.exit_code, found.stderr.count("\n")) == (1, 1)
    assert bad.rsplit("//", 1)[0] in found.stderr


def test_a_password_is_not_shown(nights):
    with pytest.raises(ResultsError) as raised:
        register(str(nights), "nonsense://user:secret@host/x")
    assert "secret" not in str(raised.value)


def test_wrong_names_and_a_missing_library_are_named(nights, uri, monkeypatch):
    with pytest.raises(UsageError, match="NAMESPACE"):
        register(str(nights), uri, "scans")
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    with pytest.raises(UsageError, match=r"braintumor-ray\[iceberg\]"):
        register(str(nights), uri)
