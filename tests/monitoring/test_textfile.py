"""Figures of runs that have ended, for node_exporter."""

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from braintumor_ray.errors import UsageError
from braintumor_ray.monitoring.textfile import HELP, check_metrics_file, write_metrics_file
from tests.monitoring.runs import DAY, finished, summary


@pytest.fixture
def path(tmp_path):
    return tmp_path / "braintumor.prom"


def values(path):
    """Samples by name and by the labels' values but the results'."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = [v for k, v in sorted(sample.labels.items()) if k != "results"]
            found[(sample.name.removeprefix("braintumor_ray_"), *labels)] = sample.value
    return found


def test_a_night_is_told_in_full(path):
    write_metrics_file(str(path), finished(3, found=summary()))
    found = values(path)
    assert found[("generation_scans", "quarantined")] == 10
    assert found[("generation_class_scans", "glioma_tumor")] == 100
    assert found[("quarantine_ratio",)] == 0.05
    assert found[("out_of_domain_ratio",)] == pytest.approx(0.1)
    assert found[("drift_distance", "class shares")] > found[("drift_limit", "class shares")]
    assert found[("shift_distance",)] > found[("shift_limit",)]
    assert (found[("backlog_scans",)], found[("known_scans",)]) == (30, 1_200)
    assert found[("gates_not_met",)] == 2
    assert {name for name, *_ in found} == set(HELP)


def test_a_gate_is_a_success_and_a_failure_is_none(path):
    write_metrics_file(str(path), finished(3, day=1, found=summary()))
    write_metrics_file(str(path), finished(1, day=2, error="disk full"))
    found = values(path)
    assert found[("last_success_timestamp_seconds",)] == 1 * DAY
    assert found[("last_run_timestamp_seconds",)] == 2 * DAY
    assert found[("last_run_exit_code",)] == 1
    assert found[("quarantine_ratio",)] == 0.05, "of the newest generation, which is the old one"


def test_what_is_no_more_is_not_kept(path):
    write_metrics_file(str(path), finished(found=summary()))
    write_metrics_file(str(path), finished(day=2, found=summary(classes={"no_tumor": 190})))
    names = [key for key in values(path) if key[0] == "generation_class_scans"]
    assert names == [("generation_class_scans", "no_tumor")]


def test_a_night_that_is_too_small_for_a_figure_keeps_none_of_an_earlier_one(path):
    write_metrics_file(str(path), finished(3, found=summary()))
    small = summary(scans=2, status={"quarantined": 2}, classes={}, shift=None)
    small["night"] = {"gates": [], "comparison": None}
    write_metrics_file(str(path), finished(day=2, found=small))
    names = {name for name, *_ in values(path)}
    assert not names & {"shift_distance", "shift_limit", "drifts", "drift_limit", "mean_entropy"}


def test_a_night_with_nothing_new_keeps_the_newest_generations_figures(path):
    write_metrics_file(str(path), finished(found=summary()))
    nothing = summary(generation=None, scans=0, known=1_200, status={}, classes={}, backlog=0)
    write_metrics_file(str(path), finished(day=2, found=nothing))
    found = values(path)
    assert found[("generation_scans", "ok")] == 190
    assert (found[("backlog_scans",)], found[("last_run_new_scans",)]) == (0, 0)


def test_figures_of_other_results_are_not_taken_over(path):
    write_metrics_file(str(path), finished(found=summary(), results="/elsewhere"))
    write_metrics_file(str(path), finished(1, day=2))
    assert "/elsewhere" not in path.read_text()
    assert ("last_success_timestamp_seconds",) not in values(path)


def test_no_label_holds_an_id(path):
    reasons = {"file '/archive/DOE^JOHN.dcm' not readable": 1}
    write_metrics_file(str(path), finished(found=summary(reasons=reasons)))
    assert "DOE" not in path.read_text()


@pytest.mark.parametrize("name", ["nowhere/x.prom", "x.txt"])
def test_a_file_that_nobody_would_read_is_refused_before_the_run(tmp_path, name):
    with pytest.raises(UsageError, match="--metrics-file"):
        check_metrics_file(str(tmp_path / name))


def test_a_file_of_somebody_else_is_not_replaced(path):
    path.write_text("this is no metrics file {")
    with pytest.raises(ValueError, match="holds something else"):
        write_metrics_file(str(path), finished(found=summary()))
    assert path.read_text() == "this is no metrics file {"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (package prometheus) is absent")
def test_names_follow_the_conventions(path):
    write_metrics_file(str(path), finished(3, found=summary()))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=path.read_bytes(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
