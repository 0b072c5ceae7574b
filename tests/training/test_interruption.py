"""Ctrl-C during Ray Train, whose own handler would end with exit code 0; errors of workers."""

import errno
import subprocess
import sys

import pytest
from ray.exceptions import ActorDiedError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from braintumor_ray.errors import TrainingError
from braintumor_ray.training.trainer import EndAtOnce, _as_own_errors

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


OURS = TrainingError("choose another --output")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("cause", [OURS, FULL])
def test_what_a_user_must_mend_ends_a_run_on_whichever_worker_it_is(cause):
    raised = UserExceptionWithTraceback(cause, "Traceback ...")
    with pytest.raises(type(cause), match=str(cause.args[-1])):
        EndAtOnce().after_exception(None, {0: RuntimeError("Connection reset"), 1: raised})


@pytest.mark.parametrize("cause", [ActorDiedError(), RuntimeError("Connection reset"), OSError(5)])
def test_a_death_and_a_fault_of_the_network_do_not(cause):
    EndAtOnce().after_exception(None, {0: cause})


@pytest.mark.ray
def test_ray_train_does_not_try_again_what_ends_alike(cluster, tmp_path):
    attempts = tmp_path / "attempts"

    def train():
        with attempts.open("a") as stream:
            stream.write("once\n")
        raise TrainingError("choose another --output")

    run = RunConfig(
        name="run",
        storage_path=str(tmp_path),
        failure_config=FailureConfig(max_failures=1),
        callbacks=[EndAtOnce()],
    )
    trainer = TorchTrainer(train, scaling_config=ScalingConfig(num_workers=1), run_config=run)
    with pytest.raises(TrainingError, match=r"^choose another"), _as_own_errors():
        trainer.fit()
    assert attempts.read_text() == "once\n"
