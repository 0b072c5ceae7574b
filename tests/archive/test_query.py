"""SQL sees the current rows, and nothing else."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.query import query
from braintumor_ray.cli import app
from braintumor_ray.predict.results import read_results
from tests.archive.nights import add_night, by_the_readme, make_nights

SQL = "SELECT uri, scan_id, entropy, gradcam FROM scans ORDER BY uri"


@pytest.fixture
def nights(tmp_path):
    return make_nights(tmp_path / "re'sults", nights=4)


def expected(root):
    return read_results(root, ["uri", "scan_id", "entropy", "gradcam"]).sort_by("uri").to_pylist()


def test_the_view_has_the_rows_that_our_reader_has(nights):
    before = expected(nights)
    assert query(str(nights), SQL).to_pylist() == before
    compact(str(nights), CompactOptions(target_mb=0.02))
    assert query(str(nights), SQL).to_pylist() == before
    add_night(nights, 5)
    assert query(str(nights), SQL).to_pylist() == expected(nights)


@pytest.mark.parametrize("name", ["results*", "results[12]", "results?"])
def test_a_name_with_signs_of_a_pattern_is_that_folder_only(tmp_path, name):
    make_nights(tmp_path / "results1", nights=2)
    root = make_nights(tmp_path / name, nights=4)
    assert query(str(root), SQL).to_pylist() == expected(root)


def test_names_of_folders_are_no_columns(tmp_path):
    root = make_nights(tmp_path / "frame=7" / "status=final" / "run=5", nights=2)
    assert "run" not in query(str(root), "SELECT * FROM scans LIMIT 1").column_names
    sql = "SELECT uri, frame, status FROM scans ORDER BY uri"
    found = read_results(root, ["uri", "frame", "status"]).sort_by("uri")
    assert query(str(root), sql).to_pylist() == found.to_pylist()
    assert by_the_readme(root) == by_the_readme(make_nights(tmp_path / "plain", nights=2))


def test_the_readmes_query_follows_an_archive_to_another_root(tmp_path):
    root = make_nights(tmp_path / "results", nights=3)
    for file in (root / "rows" / "000003").iterdir():
        rows = pq.read_table(file)
        moved = [f"/mnt/b/{uri}" for uri in rows["uri"].to_pylist()]
        place = rows.column_names.index("uri")
        pq.write_table(rows.set_column(place, rows.schema.field("uri"), [moved]), file)
    before = by_the_readme(root)
    assert sum(n for _, n, _ in before[0]) == read_results(root).num_rows
    compact(str(root))
    assert by_the_readme(root) == before


def test_the_command_prints_json_a_table_and_files(nights, tmp_path):
    sql = "SELECT status, count(*) AS n FROM scans GROUP BY ALL ORDER BY status"
    run = CliRunner().invoke
    rows = [{"status": "ok", "n": 70}, {"status": "quarantined", "n": 4}]
    assert json.loads(run(app, ["query", str(nights), sql, "--json"]).stdout) == rows
    assert "quarantined" in run(app, ["query", str(nights), sql]).stdout
    for name in ("answer.csv", "answer.parquet"):
        found = run(app, ["query", str(nights), sql, "--output", str(tmp_path / name)])
        assert found.exit_code == 0
    assert pq.read_table(tmp_path / "answer.parquet").to_pylist() == rows
    assert (tmp_path / "answer.csv").read_text().splitlines()[1:] == ['"ok",70', '"quarantined",4']


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nothing FROM scans", "SELECT * FROM rows"])
def test_a_wrong_statement_is_one_line(nights, sql):
    found = CliRunner().invoke(app, ["query", str(nights), sql])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert sql in found.stderr


def test_columns_of_one_name_are_all_shown(nights):
    sql = "SELECT a.uri, b.frame, b.uri, 1 AS uri_1 FROM scans a JOIN scans b USING (scan_id)"
    table = query(str(nights), sql)
    assert table.column_names == ["uri", "frame", "uri_1", "uri_1_1"]
    assert table["uri"].equals(table["uri_1"])


def test_what_is_no_number_is_null_in_json(nights):
    sql = "SELECT 'nan'::FLOAT AS a, ['inf'::FLOAT, 1.0] AS b"
    found = CliRunner().invoke(app, ["query", str(nights), sql, "--json"])
    assert json.loads(found.stdout, parse_constant=pytest.fail) == [{"a": None, "b": [None, 1.0]}]


def test_an_answer_that_cannot_be_written_is_one_line(nights, tmp_path):
    (tmp_path / "file").touch()
    words = ["query", str(nights), "SELECT uri FROM scans", "--output", f"{tmp_path}/file/a.csv"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1
    assert "file/a.csv' cannot be written" in found.stderr


def test_without_duckdb_the_extra_is_named(nights, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    found = CliRunner().invoke(app, ["query", str(nights), "SELECT 1"])
    assert found.exit_code == 2
    assert "braintumor-ray[sql]" in found.stderr
