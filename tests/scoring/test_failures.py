"""Errors say in a line what went wrong; what failed gives its CPUs back."""

import errno

from braintumor_ray.scoring.failures import EndedByForce, root_cause


class Executor:
    """Stands for Ray Data's: how its executions were shut down."""

    def __init__(self):
        self.calls = []

    def shutdown(self, force, exception=None):
        self.calls.append((force, exception))


class TestEndedByForce:
    def test_an_error_ends_actors_and_success_lets_them_go(self):
        executor, error = Executor(), OSError("full")
        EndedByForce().before_execution_starts(executor)
        executor.shutdown(force=False, exception=error)
        executor.shutdown(force=False)
        executor.shutdown(True)
        assert executor.calls == [(True, error), (False, None), (True, None)]


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
