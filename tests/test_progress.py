"""Progress in a log: a line per tenth, with the time that is left."""

import threading

import pytest

from braintumor_ray.progress import TenthLines, duration, repeated


def test_a_log_gets_ten_lines_with_the_time_left():
    now, lines = [0.0], []
    advance = TenthLines("scoring", lines.append, lambda: now[0])
    for done in range(0, 1001):
        now[0] = done / 10
        advance(done, 1000)
    assert len(lines) == 10
    assert lines[0] == "scoring: 100 of 1000 (10%), 1 min 30 s left"
    assert lines[-1] == "scoring: 1000 of 1000 (100%), 1 min 40 s in all"


def test_what_was_done_before_does_not_count_as_speed():
    now, lines = [0.0], []
    advance = TenthLines("scoring", lines.append, lambda: now[0])
    advance(500, 1000)
    now[0] = 10.0
    advance(600, 1000)
    assert lines[-1].endswith("40 s left")


def test_nothing_to_do_says_nothing():
    lines = []
    TenthLines("scoring", lines.append)(0, 0)
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (7800, "2 h 10 min")]
)
def test_durations_are_written_as_people_write_them(seconds, text):
    assert duration(seconds) == text


def test_repeated_calls_until_the_block_ends():
    called = threading.Event()
    with repeated(called.set, 0.01, "test"):
        assert called.wait(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "test"]


def test_repeated_ends_its_thread_where_the_block_fails():
    with pytest.raises(RuntimeError), repeated(lambda: None, 0.01, "test"):
        raise RuntimeError
    assert not [thread for thread in threading.enumerate() if thread.name == "test"]
