"""A running job as Prometheus sees it, and every query of the dashboard and the alerts on it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from braintumor_ray.monitoring.textfile import write_metrics_file
from tests.builders import write_archive
from tests.command import PROJECT
from tests.monitoring.prometheus import files_over_http, free_port, prometheus, wait_for
from tests.monitoring.runs import finished, summary

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("prometheus"), reason="prometheus (the Debian package) is absent"
    ),
]
DASHBOARD = json.loads((PROJECT / "cluster" / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((PROJECT / "cluster" / "alerts.yaml").read_text())
TOTAL = 800  # blocks of 4 last for some scrapes
# No service runs here: its metrics are in tests/serving/test_real.py.
OF_SERVICE = ("ray_braintumor_requests", "ray_braintumor_request_latency", "ray_braintumor_batch")


def queries():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def filled_in(expr):
    return expr.replace("$__rate_interval", "1m").replace("$results", ".*")


class Job:
    """A `nightly` with a name in every path, told to a command, watched by a Prometheus."""

    def __init__(self, folder, bundle):
        self.folder, self.results = folder, folder / "results"
        self.port, self.metrics, self.told = free_port(), folder / "a.prom", folder / "told.json"
        archive = folder / "DOE^JOHN"
        write_archive(archive, TOTAL)
        (archive / "no_tumor" / "DOE_broken.png").write_bytes(b"no picture")
        copy = f"import sys, pathlib; pathlib.Path({str(self.told)!r}).write_text(sys.stdin.read())"
        arguments = [
            *("nightly", archive, "--bundle", bundle, "--output", self.results, "--json"),
            *("--block-size", 4, "--metrics-port", self.port, "--metrics-file", self.metrics),
            *("--log-json", "--on-finish", f"{shlex.quote(sys.executable)} -c {shlex.quote(copy)}"),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "braintumor_ray.cli", *map(str, arguments)],
            stdout=(folder / "stdout").open("wb"),
            stderr=(folder / "stderr").open("wb"),
            # Ray drops gauges after two intervals; those of the node come every 5 s.
            env=environment | {"RAY_metrics_report_interval_ms": "3000"},
            cwd=PROJECT,
        )

    def runs(self):
        return self.process.poll() is None

    def watch(self, server):
        """Ask until the job ends; the moments at which its metrics were there, the last first."""
        moments = []
        seen = "sum(ray_braintumor_scans_total) and sum(rate(ray_braintumor_scans_total[1m])) > 0"
        while self.runs():
            if server.query(seen):
                moments.append(time.time())
            time.sleep(0.5)
        return moments[::-1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory, bundle_path):
    """(server, moments at which the job ran, the job), after its end."""
    folder = tmp_path_factory.mktemp("watched")
    write_metrics_file(
        str(folder / "b.prom"), finished(3, found=summary(), results="/elsewhere", day=20_000)
    )
    job = Job(folder, bundle_path)
    with files_over_http(folder) as files:
        targets = [f"127.0.0.1:{job.port}/metrics", f"{files}/a.prom", f"{files}/b.prom"]
        with prometheus(folder, targets) as server:
            moments = job.watch(server)
            assert job.process.returncode == 0, (folder / "stderr").read_text()[-3000:]
            # Ended: the file has been written, and is scraped.
            wait_for(lambda: server.query("braintumor_ray_known_scans")[1:], 60)
            yield server, moments, job


def first_found(server, moments, query):
    """What a query gives at one of the moments.

    Of a gauge Ray shows only what was just set; and at the last moment the job may have been gone.
    """
    return next((found for at in moments[:60] if (found := server.query(query, at))), [])


def test_the_job_is_seen_while_it_runs(seen):
    server, moments, job = seen
    assert moments, "no scan was seen before the job ended"
    (found,) = first_found(server, moments, "sum by (results) (ray_braintumor_scans_total)")
    assert found["metric"] == {"results": str(job.results)}
    assert 0 < float(found["value"][1]) <= TOTAL + 1
    (found,) = first_found(server, moments, "ray_braintumor_run_info")
    assert found["metric"]["engine"] == "torch"
    assert first_found(server, moments, "ray_braintumor_backlog_scans")


@pytest.mark.parametrize(("title", "expr"), queries())
def test_every_panel_shows_something(seen, title, expr):
    server, moments, _ = seen
    query = filled_in(expr)
    found = server.query(query) or first_found(server, moments, query)
    assert found or any(name in query for name in OF_SERVICE), title


@pytest.mark.parametrize("rule", ALERTS["groups"][0]["rules"], ids=lambda rule: rule["alert"])
def test_every_alert_can_be_evaluated(seen, rule):
    server, moments, _ = seen
    for moment in (moments[0], None):
        server.query(rule["expr"], moment)


def test_the_file_that_the_night_left_is_scraped(seen):
    server, _, job = seen
    where = f'{{results="{job.results}"}}'
    (found,) = server.query(f"braintumor_ray_last_run_exit_code{where}")
    assert found["value"][1] == "0"
    statuses = server.query(f"braintumor_ray_generation_scans{where}")
    counts = {s["metric"]["status"]: int(s["value"][1]) for s in statuses}
    assert counts == {"ok": TOTAL, "quarantined": 1}


def test_the_finish_was_told(seen):
    job = seen[2]
    told = json.loads(job.told.read_text())
    assert (told["command"], told["exit_code"]) == ("nightly", 0)
    assert told["summary"] == json.loads((job.folder / "stdout").read_text())


def test_the_log_is_json_and_names_nobody(seen):
    job = seen[2]
    text = (job.folder / "stderr").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    keys = {"time", "level", "logger", "message", "run_id", "fields"}
    assert all(set(record) == keys for record in records)
    assert len({record["run_id"] for record in records}) == 1
    (worker, *_) = [r for r in records if r["logger"].endswith("predict_stage")]
    assert worker["fields"]["engine"] == "torch", "a process of Ray's has logged it"
    assert records[-1]["message"] == "nightly ended"
    assert records[-1]["fields"]["exit_code"] == 0
    assert "DOE" not in text


def test_no_metric_names_anybody(seen):
    server, moments, job = seen
    assert "DOE" not in job.metrics.read_text()
    series = first_found(server, moments, '{__name__=~"ray_braintumor.*"}')
    assert series
    assert "DOE" not in json.dumps(series)
