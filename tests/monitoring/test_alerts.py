"""The alert rules, by Prometheus' own tools and by stories of some days."""

import shutil
import subprocess

import pytest
import yaml

from braintumor_ray.scoring.options import ScoreOptions
from tests.command import PROJECT

pytestmark = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool (Debian package prometheus) is absent"
)
RULES = PROJECT / "cluster" / "alerts.yaml"
FILE = 'braintumor_ray_{}{{results="/r"{}}}'
HOUR = 60  # samples are a minute apart


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_rules_and_the_example_configuration_are_valid():
    for arguments in (("rules", RULES), ("config", PROJECT / "cluster" / "prometheus.yaml")):
        code, output = promtool("check", *map(str, arguments))
        assert code == 0, output
    assert "11 rules" in promtool("check", "rules", str(RULES))[1]


def live(name, labels=""):
    return f'ray_braintumor_{name}{{results="/r"{labels}}}'


# Of each alert: series that make it fire at some hour, and series that do not.
OK_RATE, BAD_RATE = "0+10x600", "0+30x600"
STORIES = {
    "BraintumorNoSuccess": (
        27,
        {FILE.format("last_success_timestamp_seconds", ""): "0x2000"},
        {FILE.format("last_success_timestamp_seconds", ""): "0+60x2000"},
    ),
    "BraintumorNoMetricsFile": (
        27,
        {},
        {FILE.format("last_run_timestamp_seconds", ""): "0x2000"},
    ),
    "BraintumorRunFailed": (
        1,
        {FILE.format("last_run_exit_code", ""): "1x100"},
        {FILE.format("last_run_exit_code", ""): "3x100"},
    ),
    "BraintumorGateNotMet": (
        1,
        {FILE.format("last_run_exit_code", ""): "3x100"},
        {FILE.format("last_run_exit_code", ""): "1x100"},
    ),
    "BraintumorQuarantine": (
        1,
        {FILE.format("quarantine_ratio", ""): "0.2x100"},
        {FILE.format("quarantine_ratio", ""): "0.1x100"},
    ),
    "BraintumorShift": (
        1,
        {
            FILE.format("shift_distance", ""): "0.4x100",
            FILE.format("shift_limit", ""): "0.3x100",
        },
        {
            FILE.format("shift_distance", ""): "0.2x100",
            FILE.format("shift_limit", ""): "0.3x100",
        },
    ),
    "BraintumorDrift": (
        1,
        {FILE.format("drifts", ',figure="mean entropy"'): "1x100"},
        {FILE.format("drifts", ',figure="mean entropy"'): "0x100"},
    ),
    "BraintumorBacklogGrows": (
        80,
        {FILE.format("backlog_scans", ""): "0x1440 100x1440 200x1440 300x1440"},
        {FILE.format("backlog_scans", ""): "300x1440 200x1440 100x1440 0x1440"},
    ),
    "BraintumorJobStalled": (
        1,
        {live("backlog_scans"): "50x600", live("scans_total", ',status="ok"'): "9x600"},
        {live("backlog_scans"): "50x600", live("scans_total", ',status="ok"'): OK_RATE},
    ),
    "BraintumorJobQuarantines": (
        1,
        {
            live("scans_total", ',status="ok"'): OK_RATE,
            live("scans_total", ',status="quarantined"'): BAD_RATE,
        },
        {
            live("scans_total", ',status="ok"'): BAD_RATE,
            live("scans_total", ',status="quarantined"'): OK_RATE,
        },
    ),
    "BraintumorServiceErrors": (
        1,
        {
            live("requests_total", ',code="200"'): OK_RATE,
            live("requests_total", ',code="503"'): OK_RATE,
        },
        {
            live("requests_total", ',code="200"'): OK_RATE,
            live("requests_total", ',code="404"'): OK_RATE,
        },
    ),
}


def test_every_alert_has_a_story():
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == set(STORIES)


def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        alert = rule["alert"]
        hour, bad, good = STORIES[alert]
        alone = {"groups": [{"name": alert, "rules": [rule]}]}  # else all are worked out each time
        (tmp_path / f"{alert}.rules.yaml").write_text(yaml.safe_dump(alone))
        tests = [
            story(alert, f"{hour}h", bad, "firing"),
            story(alert, f"{hour}h", good, "inactive"),
        ]
        told = {"rule_files": [f"{alert}.rules.yaml"], "tests": tests}
        (tmp_path / f"{alert}.yaml").write_text(yaml.safe_dump(told))
    stories = [str(tmp_path / f"{alert}.yaml") for alert in STORIES]
    code, output = promtool("test", "rules", *stories)
    assert code == 0, output
    assert output.count("SUCCESS") == len(STORIES)


def test_a_stalled_job_is_told_before_it_gives_up(tmp_path):
    """Ray Data ends it, and with it its series, after ten minutes in which nothing moves."""
    minutes = ScoreOptions.no_progress_timeout_s / 60
    last_row = 60
    end = last_row + int(minutes)
    told = story("BraintumorJobStalled", f"{end}m", {}, "firing") | {
        "input_series": [
            {"series": live("backlog_scans"), "values": f"50x{end - 1} stale"},
            {
                "series": live("scans_total", ',status="ok"'),
                "values": f"0+10x{last_row} {10 * last_row}x{end - last_row - 2} stale",
            },
        ]
    }
    told["promql_expr_test"][0]["expr"] = (
        'count(max_over_time(ALERTS{alertname="BraintumorJobStalled",alertstate="firing"}[70m]))'
    )
    path = tmp_path / "stalled.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [told]}))
    code, output = promtool("test", "rules", str(path))
    assert code == 0, output


def story(alert, time, series, state):
    """ALERTS holds what fires; how its labels and texts read is no matter here."""
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    wanted = 1 if state == "firing" else 0
    return {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in series.items()],
        "promql_expr_test": [
            {
                "expr": count,
                "eval_time": time,
                "exp_samples": [{"labels": "{}", "value": wanted}],
            }
        ],
    }
