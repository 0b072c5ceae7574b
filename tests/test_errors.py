"""An error is one line that says what went wrong, wherever it was raised."""

import errno

import pytest
import typer
from ray.exceptions import NodeDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from typer.testing import CliRunner

from braintumor_ray.cli.console import short_errors
from braintumor_ray.errors import GateError, TrainingError, innermost, root_cause
from braintumor_ray.parquet_dataset import EndedByForce
from braintumor_ray.scoring.job import ATTEMPTS, _retried

FULL = OSError(errno.ENOSPC, "No space left on device")


def of_a_task(cause):
    return RayTaskError("decode()", "Traceback (most recent call last):\n...", cause)


def of_training(cause):
    """What a worker of Ray Train raised."""
    return WorkerGroupError("...", {1: UserExceptionWithTraceback(cause, "Traceback ...")})


def of_a_controller(cause):
    return ControllerError(cause)


FAR = pytest.mark.parametrize("raised", [of_a_task, of_training, of_a_controller])


class TestFromAnotherProcess:
    @FAR
    def test_the_cause_is_found(self, raised):
        assert innermost(raised(FULL)) is FULL
        assert innermost(raised(GateError("the split leaks"))).exit_code == 3

    def test_of_a_task_as_ray_raises_it(self):
        error = of_a_task(TrainingError("no memory")).as_instanceof_cause()
        assert str(innermost(error)) == "no memory"

    @FAR
    def test_the_command_line_has_one_line_and_the_exit_code(self, raised):
        assert command_that_raises(raised(GateError("the split leaks"))) == (
            3,
            "error: the split leaks\n",
        )
        code, line = command_that_raises(raised(FULL))
        assert (code, line.count("\n")) == (1, 1)
        assert "No space left on device" in line
        assert "run the same command again" in line


def command_that_raises(error):
    app = typer.Typer()

    @app.command()
    @short_errors
    def fail() -> None:
        raise error

    found = CliRunner().invoke(app, [])
    return found.exit_code, found.stderr


class TestAnotherExecution:
    @pytest.mark.parametrize(
        "error",
        [
            NodeDiedError("its node is gone"),
            of_a_task(RuntimeError("CUDA error: an illegal memory access was encountered")),
        ],
    )
    def test_is_tried_after_a_death_some_times(self, error):
        with _retried(ATTEMPTS - 1):
            raise error
        with pytest.raises(type(error)), _retried(ATTEMPTS):
            raise error

    def test_is_not_tried_where_it_would_end_alike(self):
        for cause in (FULL, KeyError("column"), GateError("no")):
            with pytest.raises(RayTaskError), _retried(1):
                raise of_a_task(cause)


def test_one_of_ours_says_everything():
    outer = GateError("the split leaks")
    outer.__cause__ = KeyError("patient")
    assert innermost(outer) is outer


class TestRootCause:
    def test_the_innermost_cause_is_one_line(self):
        outer = RuntimeError("a long story\nof frames")
        outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        assert root_cause(outer) == "OSError: [Errno 28] No space left on device"

    def test_a_traceback_from_elsewhere_ends_in_its_error(self):
        remote = RuntimeError("ray::Write()\nTraceback (most recent call last):\nOSError: full")
        assert root_cause(remote) == "OSError: full"

    def test_a_cause_without_words_is_a_mark_and_no_cause(self):
        error = OSError("full")
        error.__cause__ = RuntimeError()
        assert root_cause(error) == "OSError: full"

    def test_rays_remark_in_place_of_a_file_is_left_out(self):
        error = OSError(errno.ENOSPC, "Disk full", "Failed to apply UDF transform after 1/1\nTo")
        assert root_cause(error) == "OSError: [Errno 28] Disk full"


class Executor:
    """Stands for Ray Data's: how its executions were shut down."""

    def __init__(self):
        self.calls = []

    def shutdown(self, force, exception=None):
        self.calls.append((force, exception))


class TestEndedByForce:
    def test_an_error_ends_actors_by_force_and_success_does_not(self):
        executor, error = Executor(), OSError("full")
        EndedByForce().before_execution_starts(executor)
        executor.shutdown(force=False, exception=error)
        executor.shutdown(force=False)
        executor.shutdown(True)
        assert executor.calls == [(True, error), (False, None), (True, None)]
