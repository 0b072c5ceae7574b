"""From an archive to pictures, from the command line; the job on a cluster that has a GPU."""

import json

import pytest
from ray.data import DataContext

from tests.builders import write_archive
from tests.command import run_python
from tests.test_cli import call

# The command on a Ray of its own, which has a GPU, whatever is behind it: what Ray asks of GPU
# stages holds. Ray refuses them without a batch size. Where torch has no CUDA, 'auto' is the CPU.
WITH_A_GPU = """
import functools
import ray
ray.init = functools.partial(ray.init, num_gpus=1)
from braintumor_ray.cli import main
main()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_score_verify_and_explain_from_the_command_line(tmp_path, bundle_path, cluster):
    archive = tmp_path / "archive"
    paths = write_archive(archive, 40)
    for path in paths[:4]:
        path.write_bytes(b"")
    for path in paths[4:8]:
        path.write_bytes(b"not an image")
    results = tmp_path / "results"
    words = ("score", archive, "-b", bundle_path, "-o", results)
    dry = call(*words, "--dry-run", "--json")
    assert json.loads(dry.stdout)["would_score"] == 40
    assert not results.exists()
    gate = run_python("-c", WITH_A_GPU, *words, "--json", "--block-size", 16)
    assert gate.returncode == 3, gate.stderr
    assert "20.0% of the scans are quarantined" in gate.stderr
    assert json.loads(gate.stdout)["status"] == {"ok": 32, "quarantined": 8}
    again = call(*words)
    assert again.exit_code == 0
    assert "nothing new" in again.stdout
    assert call("verify", results).exit_code == 0
    drawn = call("explain", "--results", results, "-o", tmp_path / "drawn", "--limit", 4, "--json")
    assert len(json.loads(drawn.stdout)["pictures"]) == 5


def test_ray_still_has_the_setting_that_lets_cutting_tasks_end():
    """It is private: were it renamed, ours would do nothing and nobody would notice."""
    assert hasattr(DataContext.get_current(), "_max_num_blocks_in_streaming_gen_buffer")
