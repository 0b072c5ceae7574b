"""The file of labels: on the disk when `add` returns, whole after a crash, shared by writers."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from braintumor_ray.catalog.reviewed import newest, read_events, read_reviewed
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.review.log import LabelLog


def event(number, path="a.png", **said):
    return {"id": f"event-{number:04d}", "path": path, "frame": 0, "reviewer": "R", **said}


@pytest.fixture
def log(tmp_path):
    made = LabelLog(str(tmp_path / "new" / "labels.jsonl"))
    yield made
    made.close()


def test_the_newest_of_each_kind_is_valid_and_all_are_kept(log):
    log.add(event(1, verdict="wrong", label="b"))
    log.add(event(2, boxes=[[0.1, 0.2, 0.3, 0.4]]))
    log.add(event(3, note="odd", reviewer="S"))
    after, before = log.add(event(4, verdict="right", label="a"))
    assert (before.label, after.label, after.verdict) == ("b", "a", "right")
    assert (after.boxes, after.note, after.reviewer) == (((0.1, 0.2, 0.3, 0.4),), "odd", "R")
    assert after.time.endswith("+00:00")
    assert len(read_events(str(log.path))) == 4
    assert read_reviewed(str(log.path)) == log.states()


def test_an_event_that_is_sent_twice_is_written_once(log):
    log.add(event(1, note="x"))
    log.add(event(2, note="y"))
    state, _ = log.add(event(1, note="x"))
    assert (log.count, state.note) == (2, "y")


def test_a_line_that_a_crash_cut_off_is_removed_and_what_was_confirmed_stays(log):
    log.add(event(1, note="kept"))
    log.close()
    whole = log.path.read_bytes()
    for cut in (1, len(whole) // 2):
        log.path.write_bytes(whole + whole.replace(b"0001", b"0002")[:cut])
        assert len(read_events(str(log.path))) == 1  # a reader is not stopped by it
        again = LabelLog(str(log.path))
        again.add(event(3, note="next"))
        assert [e["id"] for e in read_events(str(log.path))] == ["event-0001", "event-0003"]
        again.close()
    log._file = os.open(log.path, os.O_RDONLY)


def test_a_last_line_without_a_newline_is_a_label_and_stays(tmp_path):
    file = tmp_path / "of another tool.jsonl"
    told = [event(1, label="a"), event(2, "b.png", label="b")]
    file.write_text("\n".join(map(json.dumps, told)))
    assert [seen.label for seen in read_reviewed(str(file)).values()] == ["a", "b"]
    made = LabelLog(str(file))
    made.add(event(3, "c.png", label="c"))
    made.close()
    assert [e["id"] for e in read_events(str(file))] == ["event-0001", "event-0002", "event-0003"]


def test_the_table_replaces_no_other_table(tmp_path):
    own, other = LabelLog(str(tmp_path / "a.jsonl")), tmp_path / "labels.csv"
    other.write_text("path,label\na.png,x\n")
    with pytest.raises(UsageError, match=r"labels\.csv' is another table"):
        LabelLog(str(tmp_path / "labels.jsonl"))
    assert other.read_text() == "path,label\na.png,x\n"
    own.add(event(1, note="x"))
    own.write_table()
    LabelLog(str(own.path)).close()  # its own one, of an earlier review
    own.close()


def test_two_writers_see_each_other(log):
    other = LabelLog(str(log.path))
    log.add(event(1, label="a", verdict="wrong"))
    other.add(event(2, label="b", verdict="wrong"))
    log.refresh()
    assert log.state(("a.png", 0)).label == other.state(("a.png", 0)).label == "b"
    other.close()


def write_many(path, start):
    log = LabelLog(path)
    for number in range(start, start + 50):
        log.add(event(number, path=f"{number}.png", label="a", verdict="wrong"))


@pytest.mark.parametrize("replaced", [True, False])
def test_nothing_is_confirmed_where_another_file_took_its_place(log, replaced):
    log.add(event(1, note="kept"))
    copy = log.path.with_name("copy")
    copy.write_bytes(log.path.read_bytes())
    copy.replace(log.path) if replaced else log.path.unlink()
    with pytest.raises(UsageError, match="was replaced; start again"):
        log.add(event(2, note="lost"))


def test_lines_of_two_processes_never_mix(tmp_path):
    path = str(tmp_path / "labels.jsonl")
    spawned = multiprocessing.get_context("fork")
    writers = [spawned.Process(target=write_many, args=(path, start)) for start in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(newest(read_events(path))) == 100


def test_what_was_confirmed_before_sigkill_is_there(tmp_path):
    path = tmp_path / "labels.jsonl"
    code = (
        "import sys, itertools\n"
        "from braintumor_ray.review.log import LabelLog\n"
        "log = LabelLog(sys.argv[1])\n"
        "for n in itertools.count():\n"
        "    log.add({'id': f'event-{n}', 'path': f'{n}.png', 'frame': 0, 'note': 'x' * 500})\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline() for _ in range(20)]
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    confirmed = [int(line) for line in lines if line.endswith("\n") and line.strip()]
    found = {e["path"] for e in read_events(str(path))}
    assert len(confirmed) >= 20
    assert {f"{n}.png" for n in confirmed} <= found


def test_a_full_disk_keeps_no_half_line(log, monkeypatch):
    log.add(event(1, note="kept"))
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:10]))
    with pytest.raises(OSError, match="no space"):
        log.add(event(2, note="lost"))
    monkeypatch.undo()
    log.add(event(3, note="after"))
    assert [e["id"] for e in read_events(str(log.path))] == ["event-0001", "event-0003"]


def test_a_damaged_line_and_a_wrong_place_are_refused(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"path": "a.png", "frame": 0}\nnonsense\n')
    with pytest.raises(CatalogError, match="line 2"):
        LabelLog(str(path))
    with pytest.raises(UsageError, match="appended"):
        LabelLog("s3://bucket/labels.jsonl")
    with pytest.raises(UsageError, match="jsonl"):
        LabelLog(str(tmp_path / "labels.csv"))


def test_the_table_is_read_as_the_file_is(log):
    log.add(event(1, path="=a,b.png", label="c", verdict="wrong", boxes=[[0, 0, 0.5, 0.5]]))
    log.add(event(2, path="b.png", note="=cmd()", reviewer="R"))
    table = log.write_table()
    found = read_reviewed(str(table))
    assert found["=a,b.png", 0].label == "c"
    assert found["=a,b.png", 0].boxes == ((0, 0, 0.5, 0.5),)
    assert ("b.png", 0) not in found
    assert "'=cmd()" in table.read_text()
    assert json.loads(log.path.read_text().splitlines()[1])["note"] == "=cmd()"
