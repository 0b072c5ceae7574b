"""Ctrl-C during Ray Train, whose own handler would end with exit code 0; errors of workers."""

import subprocess
import sys

import pytest
from ray.train import WorkerGroupError

from braintumor_ray.errors import TrainingError
from braintumor_ray.training.trainer import _as_own_errors

# In a process of its own: a signal that nobody takes would end all tests.
PROGRAM = """
import signal
from braintumor_ray.training.trainer import _interruptible

def rays_handler(number, frame):
    raise SystemExit(0)

before = signal.getsignal(signal.SIGINT)
try:
    with _interruptible():
        signal.signal(signal.SIGINT, rays_handler)  # as Ray Train does when a run starts
        {during}
    print("ended")
except KeyboardInterrupt:
    print("interrupted")
assert signal.getsignal(signal.SIGINT) is before
"""


@pytest.mark.parametrize(
    ("during", "told"),
    [("signal.raise_signal(signal.SIGINT)", "interrupted"), ("pass", "ended")],
)
def test_ctrl_c_is_a_keyboard_interrupt_and_the_handler_of_before_is_put_back(during, told):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(during=during)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, told), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (TrainingError("choose another --output"), pytest.raises(TrainingError, match=r"^choose")),
        (ValueError("a fault"), pytest.raises(WorkerGroupError, match="Rank 0")),
    ],
)
def test_what_a_worker_says_to_users_is_the_error(failure, told):
    with told, _as_own_errors():
        raise WorkerGroupError("Traceback\n[Rank 0 Error Snippet]:", {0: failure})
