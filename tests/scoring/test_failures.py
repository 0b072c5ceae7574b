"""Errors lose what they hold, and say in a line what went wrong."""

import errno
import weakref

import pytest

from braintumor_ray.errors import ResultsError
from braintumor_ray.scoring.failures import release_frames, root_cause


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
        release_frames(error)
        raise ResultsError("stopped") from error


def test_a_kept_error_holds_nothing_of_its_execution():
    watch = []
    with pytest.raises(ResultsError) as refused:
        kept(watch)
    assert isinstance(refused.value.__cause__, OSError)
    assert [held() for held in watch] == [None]


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
