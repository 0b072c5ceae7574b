"""`studies`: scored slices as a table of series, studies or patients."""

import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from braintumor_ray.cli import app
from braintumor_ray.predict.schema import result_schema
from braintumor_ray.predict.study import STUDY_SCHEMA, read_studies

SCHEMA = result_schema((2, 2), ["gradcam"])
THRESHOLD = 0.5


def scan(scan_id, tumor, patient, *, status="ok", foreign=False):
    scored = status == "ok"
    return {
        "scan_id": scan_id,
        "uri": f"/{patient}.dcm",
        "frame": scan_id,
        "status": status,
        "patient_key": patient,
        "probabilities": [tumor, 1 - tumor] if scored else None,
        "decision": tumor >= THRESHOLD if scored else None,
        "out_of_domain": foreign if scored else None,
    }


@pytest.fixture
def results(tmp_path):
    """One slice of patient p is sure of a tumor, two are not; q is none; r cannot be told."""
    rows = [
        scan(1, 0.9, "p"),
        scan(2, 0.1, "p"),
        scan(3, 0.2, "p"),
        scan(4, 0.45, "q"),
        scan(5, 0.45, "q"),
        scan(6, 0.99, "r", foreign=True),
        scan(7, None, "r", status="quarantined"),
    ]
    folder = tmp_path / "results"
    (folder / "rows").mkdir(parents=True)
    (folder / "manifests").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "rows" / "a.parquet")
    manifest = {"generation": 1, "files": [{"path": "rows/a.parquet"}], "supersedes": {}}
    (folder / "manifests" / "000001.json").write_text(json.dumps(manifest))
    meta = {"class_names": ["tumor", "none"], "positive_classes": ["tumor"], "threshold": THRESHOLD}
    (folder / "results.json").write_text(json.dumps(meta))
    return folder


def studies(*arguments):
    return CliRunner().invoke(app, ["studies", *map(str, arguments)])


def test_parquet_holds_what_is_read_in_python_and_the_counts_are_printed(results, tmp_path):
    found = studies(results, "--level", "patient", "--output", tmp_path / "p.parquet", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == {
        "output": str(tmp_path / "p.parquet"),
        "level": "patient",
        "aggregate": "max",
        "rows": 3,
        "positive": 1,
        "negative": 1,
        "undecided": 1,
        "slices": 7,
        "slices_used": 5,
    }
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.schema.equals(STUDY_SCHEMA)
    assert table.equals(read_studies(results, "patient"))


def test_csv_holds_the_same_rows(results, tmp_path):
    assert studies(results, "--level", "patient", "-o", tmp_path / "p.csv").exit_code == 0
    table = pyarrow.csv.read_csv(tmp_path / "p.csv")
    assert table.column_names == STUDY_SCHEMA.names
    assert table["patient_key"].to_pylist() == ["p", "q", "r"]
    assert table["decision"].to_pylist() == [True, False, None]


def test_the_mean_of_the_slices_decides_and_sorts_where_that_is_asked_for(results, tmp_path):
    out = tmp_path / "p.parquet"
    found = studies(results, "--level", "patient", "--aggregate", "mean", "-o", out)
    assert found.exit_code == 0, found.output
    rows = pq.read_table(out).to_pylist()
    # p: mean of 0.9, 0.1 and 0.2 is 0.4, below the threshold and below q's 0.45.
    assert [row["patient_key"] for row in rows] == ["q", "p", "r"]
    assert [row["decision"] for row in rows] == [False, False, None]
    assert rows[1]["max_probability"] == pytest.approx(0.9)


def test_a_mean_that_reaches_the_threshold_is_positive(results):
    meta = json.loads((results / "results.json").read_text())
    (results / "results.json").write_text(json.dumps({**meta, "threshold": 0.42}))
    rows = read_studies(results, "patient", "mean").to_pylist()
    assert [(r["patient_key"], r["decision"]) for r in rows] == [
        ("q", True),
        ("p", False),
        ("r", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-o", "s.xlsx"), 2, "--output 's.xlsx' is neither .csv nor .parquet"),
        (("-o", "s.csv", "--level", "slice"), 2, "--level 'slice' is unknown"),
        (("-o", "s.csv", "--aggregate", "median"), 2, "--aggregate 'median' is unknown"),
    ],
)
def test_mistakes_are_one_line(results, arguments, code, words):
    found = studies(results, *arguments)
    assert found.exit_code == code
    assert words in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_folder_without_results_is_named(tmp_path):
    found = studies(tmp_path, "-o", tmp_path / "s.csv")
    assert found.exit_code == 1
    assert "is not a results folder" in found.stderr
    assert not (tmp_path / "s.csv").exists()
