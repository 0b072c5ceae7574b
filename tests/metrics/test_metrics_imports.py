"""The metrics run where neither Ray nor torch is wanted."""

import subprocess
import sys


def test_metrics_load_neither_ray_nor_torch():
    program = (
        "import sys\n"
        "from braintumor_ray.metrics import calibration, classification, comparison\n"
        "from braintumor_ray.metrics import intervals, thresholds\n"
        "print([m for m in ('ray', 'torch', 'cv2') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
