"""The job on a cluster that has a GPU, whatever is behind it: what Ray asks of GPU stages holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import write_archive

pytestmark = pytest.mark.ray
PROJECT = Path(__file__).resolve().parents[2]
SCORE = """
import sys
import ray
ray.init(num_cpus=6, num_gpus=1, include_dashboard=False, log_to_driver=False)
from braintumor_ray.cli import main
main()
"""


def test_a_cluster_with_a_gpu_scores_by_default_on_it(tmp_path, bundle_path):
    """Ray refuses GPU stages without a batch size. Where torch has no CUDA, 'auto' is the CPU."""
    write_archive(tmp_path / "archive", 40)
    words = ["score", tmp_path / "archive", "--bundle", bundle_path, "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", SCORE, *map(str, words), "--block-size", "16"],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "40 scans" in done.stdout
