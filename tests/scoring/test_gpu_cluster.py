"""The job on a cluster that has a GPU, whatever is behind it: what Ray asks of GPU stages holds."""

import pytest
from ray.data import DataContext

from braintumor_ray.scoring.verify import verify
from tests.builders import write_archive
from tests.command import run_python

pytestmark = pytest.mark.ray
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
    done = run_python("-c", SCORE, *words, "--block-size", "16")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "40 scans" in done.stdout
    assert verify(str(tmp_path / "out")).differences == []


def test_ray_still_has_the_setting_that_lets_cutting_tasks_end():
    """It is private: were it renamed, ours would do nothing and nobody would notice."""
    assert hasattr(DataContext.get_current(), "_max_num_blocks_in_streaming_gen_buffer")
