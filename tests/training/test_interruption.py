"""Ctrl-C during Ray Train, whose own handler would end the program with exit code 0."""

import signal

import pytest

from braintumor_ray.training.trainer import _interruptible


@pytest.fixture(autouse=True)
def pythons_handler():
    """Other tests of this process may have left one that Python cannot tell."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found or signal.default_int_handler)


def rays_handler(_number, _frame):
    raise SystemExit(0)


def interrupted_run():
    with _interruptible():
        signal.signal(signal.SIGINT, rays_handler)  # as Ray Train does when a run starts
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_a_keyboard_interrupt_and_its_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_ends_leaves_the_handler_of_before():
    before = signal.getsignal(signal.SIGINT)
    with _interruptible():
        signal.signal(signal.SIGINT, rays_handler)
    assert signal.getsignal(signal.SIGINT) is before
