"""What the slices of a series, a study or a patient say together."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from braintumor_ray.cli import app
from braintumor_ray.errors import ResultsError
from braintumor_ray.predict.schema import result_schema
from braintumor_ray.predict.study import STUDY_SCHEMA, chosen_rule, read_studies, roll_up

SCHEMA = result_schema((2, 2), ["gradcam"])
POSITIVE = [0, 2]  # of three classes


def scan(scan_id, tumor=None, *, status="ok", foreign=False, uri="/a.dcm", frame=0, **keys):
    scored = status == "ok"
    return {
        "scan_id": scan_id,
        "uri": uri,
        "frame": frame,
        "status": status,
        "probabilities": [tumor / 2, 1 - tumor, tumor / 2] if scored else None,
        "decision": tumor >= 0.5 if scored else None,
        "out_of_domain": foreign if scored else None,
        **{f"{name}_key": value for name, value in keys.items()},
    }


def rolled(*scans, level="series"):
    table = pa.Table.from_pylist(list(scans), schema=SCHEMA)
    found = roll_up(table, POSITIVE, level)
    assert found.schema == STUDY_SCHEMA
    return found.to_pylist()


def test_a_series_is_decided_by_its_most_probable_slice():
    (row,) = rolled(
        scan(1, 0.2, series="s", patient="p", frame=0),
        scan(2, 0.9, series="s", patient="p", frame=1),
        scan(3, 0.4, series="s", patient="p", frame=2),
    )
    assert row["max_probability"] == pytest.approx(0.9)
    assert row["mean_probability"] == pytest.approx(0.5)
    assert (row["slices"], row["used"], row["decision"]) == (3, 3, True)
    assert (row["top_scan_id"], row["top_uri"], row["top_frame"]) == (2, "/a.dcm", 1)
    assert (row["patient_key"], row["series_key"], row["study_key"]) == ("p", "s", None)


def test_slices_that_were_not_scored_are_counted_and_have_no_say():
    (row,) = rolled(
        scan(1, 0.2, series="s"),
        scan(2, 0.99, series="s", foreign=True),
        scan(3, series="s", status="quarantined"),
        scan(4, series="s", status="skipped"),
    )
    assert row["max_probability"] == row["mean_probability"] == pytest.approx(0.2)
    counts = {name: row[name] for name in ("out_of_domain", "quarantined", "skipped", "used")}
    assert counts == dict.fromkeys(counts, 1)
    assert row["slices"] == 4


def test_where_no_slice_is_usable_nothing_is_claimed_and_the_row_comes_last():
    first, last = rolled(
        scan(1, series="s", status="quarantined"),
        scan(2, 0.8, series="s", foreign=True),
        scan(3, 0.1, series="t"),
    )
    assert (first["series_key"], last["series_key"]) == ("t", "s")
    claims = ("max_probability", "mean_probability", "decision", "top_scan_id", "top_uri")
    assert [last[name] for name in claims] == [None] * 5


def test_the_most_probable_comes_first_and_ties_go_to_the_first_in_the_archive():
    first, second = rolled(
        scan(1, 0.3, series="t"),
        scan(5, 0.7, series="s", uri="/b.dcm"),
        scan(4, 0.7, series="s", uri="/a.dcm", frame=3),
        scan(3, 0.7, series="s", uri="/a.dcm", frame=2),
    )
    assert (first["top_scan_id"], second["top_scan_id"]) == (3, 1)


@pytest.mark.parametrize(("level", "groups"), [("series", 3), ("study", 2), ("patient", 1)])
def test_wider_levels_join_what_narrower_ones_part(level, groups):
    scans = (
        scan(1, 0.1, patient="p", study="a", series="1"),
        scan(2, 0.2, patient="p", study="a", series="2"),
        scan(3, 0.3, patient="p", study="b", series="3"),
    )
    found = rolled(*scans, level=level)
    assert len(found) == groups
    assert sum(row["slices"] for row in found) == 3
    if level == "patient":
        assert (found[0]["patient_key"], found[0]["study_key"]) == ("p", None)


def test_unknown_patients_are_never_taken_for_the_same():
    found = rolled(
        scan(1, 0.1, uri="/a.png"),
        scan(2, 0.2, uri="/b.png"),
        scan(3, 0.3, uri="/c.nii", frame=0),
        scan(4, 0.4, uri="/c.nii", frame=1),
        scan(5, 0.5, series="s", uri="/d.dcm"),
        scan(6, 0.6, series="s", uri="/e.dcm"),
        level="patient",
    )
    assert sorted(row["slices"] for row in found) == [1, 1, 2, 2]
    assert {row["patient_key"] for row in found} == {None}


def test_series_of_two_patients_stay_apart_though_their_uid_was_copied():
    found = rolled(scan(1, 0.1, patient="p", series="s"), scan(2, 0.9, patient="q", series="s"))
    assert [row["patient_key"] for row in found] == ["q", "p"]


def test_an_unknown_level_is_named():
    with pytest.raises(ResultsError, match="level 'slice' is unknown; use series, study, patient"):
        roll_up(SCHEMA.empty_table(), POSITIVE, "slice")


def test_nothing_rolls_up_to_nothing():
    assert rolled() == []


def test_results_roll_up_by_the_classes_of_their_bundle(tmp_path):
    rows = pa.Table.from_pylist([scan(1, 0.6, series="s"), scan(2, 0.8, series="s")], schema=SCHEMA)
    (tmp_path / "rows").mkdir()
    (tmp_path / "manifests").mkdir()
    pq.write_table(rows, tmp_path / "rows" / "a.parquet")
    manifest = {"generation": 1, "files": [{"path": "rows/a.parquet"}], "supersedes": {"1": [2]}}
    (tmp_path / "manifests" / "000001.json").write_text(json.dumps(manifest))
    meta = {"class_names": ["glioma", "none", "other"], "positive_classes": ["other", "glioma"]}
    (tmp_path / "results.json").write_text(json.dumps(meta))
    (row,) = read_studies(tmp_path).to_pylist()
    assert (row["slices"], row["top_scan_id"]) == (1, 1)
    assert row["max_probability"] == pytest.approx(0.6)


class TestAChosenRule:
    """`studies --rule EVALUATION`: aggregate and threshold that validation chose."""

    @pytest.fixture
    def results(self, tmp_path):
        (tmp_path / "results" / "rows").mkdir(parents=True)
        (tmp_path / "results" / "manifests").mkdir()
        rows = [scan(1, 0.2, study="s"), scan(2, 0.8, study="s"), scan(3, 0.3, study="t")]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "results/rows/a.parquet"
        )
        manifest = {"generation": 1, "files": [{"path": "rows/a.parquet"}], "supersedes": {}}
        (tmp_path / "results/manifests/000001.json").write_text(json.dumps(manifest))
        meta = {
            "class_names": ["glioma", "none", "other"],
            "positive_classes": ["other", "glioma"],
            "threshold": 0.5,
            "bundle_fingerprint": "f1",
        }
        (tmp_path / "results/results.json").write_text(json.dumps(meta))
        return tmp_path / "results"

    @staticmethod
    def evaluation(tmp_path, fingerprint="f1", chosen=None):
        folder = tmp_path / "evaluation"
        folder.mkdir()
        found = {"bundle": {"fingerprint": fingerprint}, "studies": {"chosen": chosen}}
        (folder / "metrics.json").write_text(json.dumps(found))
        return folder

    @pytest.mark.parametrize(
        ("aggregate", "threshold", "positive"),
        [("mean", 0.6, []), ("mean", 0.4, ["s"]), ("max", 0.25, ["s", "t"]), ("max", 0.9, [])],
    )
    def test_decides(self, results, tmp_path, aggregate, threshold, positive):
        chosen = {"aggregate": aggregate, "threshold": threshold}
        folder = self.evaluation(tmp_path, chosen=chosen)
        arguments = ["studies", str(results), "-o", str(tmp_path / "s.csv"), "--level", "study"]
        done = CliRunner().invoke(app, [*arguments, "--rule", str(folder), "--json"])
        assert json.loads(done.stdout).items() >= chosen.items()
        rule = chosen_rule(folder, results, "study")
        rows = read_studies(results, "study", rule).to_pylist()
        assert sorted(row["study_key"] for row in rows if row["decision"]) == positive

    def test_of_another_bundle_is_refused(self, results, tmp_path):
        folder = self.evaluation(tmp_path, "f2", {"aggregate": "max", "threshold": 0.5})
        with pytest.raises(ResultsError, match=r"bundle f2 and .* of f1; evaluate the bundle"):
            chosen_rule(folder, results, "study")

    @pytest.mark.parametrize("level", ["study", "patient", "series"])
    def test_that_is_not_there_is_said(self, results, tmp_path, level):
        folder = self.evaluation(tmp_path)
        with pytest.raises(ResultsError, match=f"chose no rule for level '{level}'"):
            chosen_rule(folder, results, level)

    def test_in_no_evaluation(self, results, tmp_path):
        with pytest.raises(ResultsError, match="give a folder of `evaluate`"):
            chosen_rule(tmp_path, results, "study")
