"""Scans of catalog rows: files opened once and ahead of their turn, results in the rows' order."""

import os
import threading
import time

import cv2
import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.decode import files
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import binary_column, decode_scans, run_on_scans, scan_columns
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.types import DecodeLimits, DecodeOptions
from braintumor_ray.storage import at_nanoseconds

SQUARE = Preprocessing(16, "area", (0.5,) * 3, (0.25,) * 3)


def png(value):
    image = np.full((20, 20), value, np.uint8)
    image[5:9, 5:9] = np.arange(0, 256, 16).reshape(4, 4)  # more than a handful of levels
    return cv2.imencode(".png", image)[1].tobytes()


def rows_of(paths, frames=None):
    return pa.table({"uri": [str(path) for path in paths], "frame": frames or [0] * len(paths)})


@pytest.fixture
def archive(tmp_path):
    """Forty pictures, of which three are gone and one is too large."""
    paths = [tmp_path / f"{number:02d}.png" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(png(5 * number))
    for number in (0, 17, 39):
        paths[number].unlink()
    paths[1].write_bytes(bytes(9000))
    return paths


def test_every_row_has_its_own_result_in_order(archive):
    scans = list(decode_scans(rows_of(archive), SQUARE, limits=DecodeLimits(max_bytes=8000)))
    reasons = {number: scan.reason for number, scan in enumerate(scans) if scan.reason}
    gone = "file not found (deleted or moved since it was catalogued)"
    assert reasons == {0: gone, 1: "9000 bytes is over the limit of 8000", 17: gone, 39: gone}
    assert {scans[number].status for number in reasons} == {"quarantined"}
    corners = [int(scan.image[0, 0]) for scan in scans if scan.image is not None]
    assert corners == [5 * number for number in range(40) if number not in reasons]


def test_a_file_that_kills_its_decoder_costs_all_its_frames_and_no_others(tmp_path):
    poison, good = tmp_path / "poison.png", tmp_path / "good.png"
    poison.write_bytes(b"\x89PNG poison")
    good.write_bytes(png(40))
    rows = rows_of([good, poison, poison, tmp_path / "gone.png", good], [0, 0, 1, 0, 0])
    with DecodeSandbox("tests.scoring.workers:deadly") as sandbox:
        scans = list(decode_scans(rows, SQUARE, sandbox=sandbox))
    assert [scan.status for scan in scans] == ["ok", *["quarantined"] * 3, "ok"]
    assert scans[1].reason == scans[2].reason == "decoder died twice (exit code 7)"


def test_without_rows_no_process_starts(monkeypatch):
    monkeypatch.setattr("braintumor_ray.decode.reading.DecodeSandbox", None)
    assert list(decode_scans(rows_of([]), SQUARE)) == []


def test_files_are_read_while_others_wait_for_the_store(archive, monkeypatch):
    reading = set()
    most = 0
    lock, read_file = threading.Lock(), files.read_file

    def slow(location, limits):
        nonlocal most
        with lock:
            reading.add(location)
            most = max(most, len(reading))
        time.sleep(0.02)
        with lock:
            reading.discard(location)
        return read_file(location, limits)

    monkeypatch.setattr(files, "read_file", slow)
    assert len(list(decode_scans(rows_of(archive), SQUARE))) == 40
    assert most >= 4  # at a time


def test_not_all_files_are_read_before_the_first_result(archive, monkeypatch):
    opened, read_file = [], files.read_file
    monkeypatch.setattr(
        files, "read_file", lambda uri, limits: opened.append(uri) or read_file(uri, limits)
    )
    uris = [archive[2 + number % 10] for number in range(200)]
    scans = decode_scans(rows_of(uris), SQUARE)
    next(scans)
    assert len(opened) < 60
    assert len(list(scans)) == 199
    assert len(opened) == 200


def test_a_sandbox_is_good_for_further_rows_after_some_were_left(archive):
    failed = []
    with DecodeSandbox("braintumor_ray.decode.decode:decode_frames") as sandbox:
        first = run_on_scans(rows_of(archive[2:]), sandbox, DecodeOptions(), failed.append)
        next(first)
        first.close()
        (decoded,) = run_on_scans(rows_of([archive[20]]), sandbox, DecodeOptions(), failed.append)
    assert decoded.gray[0, 0] == 100
    assert not failed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "file not readable: OSError"),
        ("gone.png", "file not found (deleted or moved since it was catalogued)"),
        ("large.png", "101 bytes is over the limit of 100"),
    ],
)
def test_a_local_file_that_cannot_be_read_has_a_reason(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "large.png").write_bytes(bytes(101))
    found = files.read_file(str(tmp_path / name), DecodeLimits(max_bytes=100))
    assert (found.data, found.reason) == (None, reason)


def test_a_binary_column_holds_each_array_row_by_row():
    square = np.arange(6, dtype=np.uint8).reshape(2, 3)
    column = binary_column([square.T, None, np.ones((1, 2), np.float32), square[:0]])
    column.validate(full=True)
    expected = [square.T.tobytes(), None, np.ones(2, np.float32).tobytes(), b""]
    assert column.to_pylist() == expected
    assert binary_column([]).to_pylist() == []
    assert binary_column([None]).to_pylist() == [None]


def test_the_content_of_rows_without_a_picture_is_null(archive):
    rows = rows_of([archive[2], archive[0]])
    columns = scan_columns(list(decode_scans(rows, SQUARE)), ("status", "image"))
    assert columns["status"].to_pylist() == ["ok", "quarantined"]
    assert [value and len(value) for value in columns["image"].to_pylist()] == [16 * 16, None]


def test_a_device_or_a_pipe_is_no_file(tmp_path):
    """Reading the one never ends, and opening the other waits for somebody who writes."""
    os.mkfifo(tmp_path / "pipe.png")
    for odd in ("/dev/zero", str(tmp_path / "pipe.png")):
        content = files.read_file(odd, DecodeLimits())
        assert content.data is None
        assert "no regular file" in content.reason


@pytest.mark.parametrize(("time_ns", "year"), [(3 * 10**20, 9999), (-(10**20), 1), (10**18, 2001)])
def test_times_that_no_calendar_has_are_its_ends(time_ns, year):
    assert at_nanoseconds(time_ns).year == year
