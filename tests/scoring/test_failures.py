"""Errors lose what they hold, and say in a line what went wrong."""

import weakref

import pytest

from braintumor_ray.errors import ResultsError
from braintumor_ray.scoring.failures import let_go, root_cause


class Execution:
    """Stands for what holds CPUs."""


def fail():
    raise OSError(28, "No space left on device")


def execute(watch):
    """As Ray Data's thread does: what it hands over has no trace of the execution itself."""
    execution = Execution()
    watch.append(weakref.ref(execution))
    try:
        step()
    except OSError as error:
        return error.with_traceback(None)


def step():
    try:
        end_of_stream()
    except StopIteration:
        fail()


def end_of_stream():
    raise StopIteration


def kept(watch):
    try:
        raise execute(watch)
    except OSError as error:
        let_go(error)
        raise ResultsError("stopped") from error


def test_a_kept_error_holds_nothing_of_its_execution():
    watch = []
    with pytest.raises(ResultsError) as refused:
        kept(watch)
    assert isinstance(refused.value.__cause__, OSError)
    assert [held() for held in watch] == [None]


def test_the_root_cause_is_one_line():
    error = ResultsError("outer")
    error.__cause__ = OSError(28, "No space left on device")
    assert root_cause(error) == "OSError: [Errno 28] No space left on device"
