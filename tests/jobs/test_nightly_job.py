"""The nightly job through Ray's own job server, with token authentication on."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from braintumor_ray.predict.results import read_results
from braintumor_ray.scoring.verify import verify
from tests.builders import write_archive
from tests.chaos.cluster import PROJECT, ClusterOfNodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-for-this-test-only-0123456789"}


@pytest.fixture
def job_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # One node: several on one machine would share, and tidy up, each other's working directories.
    cluster = ClusterOfNodes(nodes=1, cpus=4, dashboard=port, env=TOKEN)
    yield f"http://127.0.0.1:{port}"
    cluster.close()


def submit(server, identity, *arguments, env=TOKEN):
    """`ray job submit`, waiting for its end; its exit code tells how the job ended."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    command += ["--address", server, "--submission-id", identity, "--working-dir", str(PROJECT)]
    job = [sys.executable, "jobs/score_archive.py", *map(str, arguments), "--json"]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [*command, "--", *job],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, **env},
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)  # the cluster is up before its nodes' agents are


def summary_in(done):
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


@pytest.mark.timeout(900)
def test_three_nights_and_a_night_submitted_twice(job_server, tmp_path, bundle_path):
    archive, results = tmp_path / "archive", tmp_path / "results"
    options = (archive, "--bundle", bundle_path, "--output", results, "--block-size", "16")
    write_archive(archive, 40)
    first = submit(job_server, "night-1", *options)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert summary_in(first)["scans"] == 40
    twice = submit(job_server, "night-1", *options)
    assert twice.returncode != 0
    assert "already exists" in twice.stdout + twice.stderr
    second = submit(job_server, "night-2", *options)
    assert second.returncode == 0, second.stdout[-3000:]
    assert (summary_in(second)["generation"], summary_in(second)["known"]) == (None, 40)
    write_archive(archive, 20, seed=1)
    third = submit(job_server, "night-3", *options)
    assert third.returncode == 0, third.stdout[-3000:]
    assert (summary_in(third)["scans"], summary_in(third)["known"]) == (20, 40)
    assert read_results(results).num_rows == 60
    assert verify(str(results)).differences == []
    foreign_format = submit(job_server, "night-4", *options, env={"RAY_AUTH_MODE": "disabled"})
    assert foreign_format.returncode != 0
