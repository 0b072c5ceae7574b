"""From an archive to pictures, from the command line."""

import json

import pytest

from tests.builders import write_archive
from tests.command import run_command
from tests.test_cli import call


@pytest.mark.ray
@pytest.mark.slow
def test_score_verify_and_explain_from_the_command_line(tmp_path, bundle_path, cluster):
    archive = tmp_path / "archive"
    paths = write_archive(archive, 10)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(b"not an image")
    results = tmp_path / "results"
    dry = call("score", archive, "-b", bundle_path, "-o", results, "--dry-run", "--json")
    assert json.loads(dry.stdout)["would_score"] == 10
    assert not results.exists()
    gate = run_command("score", archive, "-b", bundle_path, "-o", results, "--json")
    assert gate.returncode == 3, gate.stderr
    assert "20.0% of the scans are quarantined" in gate.stderr
    assert json.loads(gate.stdout)["status"] == {"ok": 8, "quarantined": 2}
    again = call("score", archive, "-b", bundle_path, "-o", results)
    assert again.exit_code == 0
    assert "nothing new" in again.stdout
    assert call("verify", results).exit_code == 0
    drawn = call("explain", "--results", results, "-o", tmp_path / "drawn", "--limit", 4, "--json")
    assert len(json.loads(drawn.stdout)["pictures"]) == 5
