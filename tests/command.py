"""The command line as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def run_command(*arguments):
    """Run `braintumor-ray` on a Ray of its own; never raises for its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "braintumor_ray.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        timeout=300,
    )
