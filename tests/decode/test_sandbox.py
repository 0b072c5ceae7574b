"""A file that kills or stalls its decoder costs only itself."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.sandbox import DecodeSandbox, SandboxError
from tests.decode.mutations import MAY_DECODE, intact_images, mutated_images

HOSTILE = "tests.decode.sandbox_workers:hostile"


def outcomes(sandbox, contents, options=None):
    return list(sandbox.map((data, options or {}) for data in contents))


@pytest.fixture(scope="module")
def sandbox():
    with DecodeSandbox(HOSTILE, timeout_s=1.0) as shared:
        yield shared


def test_results_come_in_order_with_their_options(sandbox):
    items = [(bytes([65]) * k, {"k": k}) for k in range(200)]
    assert [o.value for o in sandbox.map(items)] == [(k, {"k": k}) for k in range(200)]


def test_missing_data_reaches_the_worker_as_none(sandbox):
    assert [o.value[0] for o in outcomes(sandbox, [None, b"", b"ab"])] == [None, 0, 2]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (b"!", "decoder died twice (exit code 7)"),
        (b"#", "decoder died twice (exit code -11)"),
        (b"z", "decoder took longer than 1 s, twice"),
        (b"m", "decoder ran out of memory"),
        (b"e", "decoder raised ValueError"),
        (b"u", "decoder raised TypeError"),
    ],
)
@pytest.mark.parametrize("where", [0, 13, 39])
def test_only_the_poisoned_item_fails(sandbox, poison, reason, where):
    contents = [b"A" * (k + 1) for k in range(40)]
    contents[where] = poison
    result = outcomes(sandbox, contents)
    assert len(result) == 40
    assert result[where].reason == reason
    for k, outcome in enumerate(result):
        if k != where:
            assert outcome.value == (k + 1, {})


@pytest.mark.chaos
def test_every_second_item_may_be_deadly(sandbox):
    result = outcomes(sandbox, [b"!", b"A"] * 8)
    assert [o.reason is None for o in result] == [False, True] * 8


@pytest.mark.chaos
def test_a_child_that_dies_by_chance_costs_nothing(tmp_path):
    contents = [b"a", b"b", b"!", b"c"]
    with DecodeSandbox("tests.decode.sandbox_workers:dies_once") as sandbox:
        result = outcomes(sandbox, contents, {"marker": str(tmp_path / "died")})
    assert [o.value for o in result] == contents
    assert (tmp_path / "died").exists()


@pytest.mark.chaos
def test_mixed_failures_are_both_told():
    from braintumor_ray.decode.sandbox import _failure

    assert _failure(["died (exit code -9)", "took longer than 30 s"]) == (
        "decoder failed twice: died (exit code -9), then took longer than 30 s"
    )
    assert _failure(["died (exit code 1)"] * 3) == "decoder died 3 times (exit code 1)"


@pytest.mark.chaos
def test_a_child_killed_while_idle_is_replaced_without_blame():
    with DecodeSandbox("tests.decode.sandbox_workers:pid", tries=1) as sandbox:
        first = sandbox.run(b"").value
        os.kill(first, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(first)] if psutil.pid_exists(first) else [], timeout=5)
        time.sleep(0.1)
        assert sandbox.run(b"").value != first


def test_the_timeout_is_for_one_item_not_for_a_batch():
    with DecodeSandbox("tests.decode.sandbox_workers:slow", timeout_s=0.5) as sandbox:
        assert all(o.reason is None for o in outcomes(sandbox, [b"x"] * 20))


def test_a_slow_reader_is_no_stall():
    with DecodeSandbox("tests.decode.sandbox_workers:echo", timeout_s=0.5) as sandbox:
        for outcome in sandbox.map([(bytes(2**20), {})] * 6):
            time.sleep(0.7)
            assert outcome.value.nbytes == 2**20


def test_large_requests_and_replies_do_not_deadlock():
    contents = [bytes([k]) * (5 * 2**20 + k) for k in range(6)]
    with DecodeSandbox("tests.decode.sandbox_workers:echo", timeout_s=20) as sandbox:
        for outcome, content in zip(outcomes(sandbox, contents), contents, strict=True):
            assert outcome.value.dtype == np.uint8
            assert outcome.value.tobytes() == content


def test_noise_on_stdout_does_not_disturb_the_replies(sandbox, capfd):
    assert [o.value[0] for o in outcomes(sandbox, [b"p", b"pp", b"A"])] == [1, 2, 1]
    assert "noise" not in capfd.readouterr().out


def test_each_item_runs_once(tmp_path):
    contents = [b"%d" % k for k in range(100)]
    with DecodeSandbox("tests.decode.sandbox_workers:logged") as sandbox:
        outcomes(sandbox, contents, {"log": str(tmp_path / "log")})
    assert (tmp_path / "log").read_bytes().split() == contents


def test_leaving_early_does_not_mix_two_runs(sandbox):
    results = sandbox.map([(b"A" * 5, {})] * 50)
    next(results)
    results.close()
    assert sandbox.run(b"A" * 9).value[0] == 9


def test_an_error_in_the_source_of_items_reaches_the_caller(sandbox):
    def source():
        yield b"A", {}
        raise OSError("source broke")

    with pytest.raises(OSError, match="source broke"):
        list(sandbox.map(source()))
    assert sandbox.run(b"AA").value[0] == 2


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        ("no_such_module_here:f", "no_such_module_here"),
        ("tests.decode.sandbox_workers:absent", "absent"),
    ],
)
def test_a_worker_that_cannot_be_imported_is_the_callers_error(worker, said):
    with DecodeSandbox(worker) as sandbox, pytest.raises(SandboxError, match=said):
        sandbox.run(b"")


def test_the_child_is_light_and_quick():
    started = time.monotonic()
    with DecodeSandbox("tests.decode.sandbox_workers:loaded") as sandbox:
        assert sandbox.run(b"").value == []
    assert time.monotonic() - started < 5  # 0.2 s where nothing else runs


def test_closing_ends_the_child():
    sandbox = DecodeSandbox("tests.decode.sandbox_workers:pid")
    pid = sandbox.run(b"").value
    sandbox.close()
    assert not psutil.pid_exists(pid)


ORPHAN = """
import sys, time
from braintumor_ray.decode.sandbox import DecodeSandbox
sandbox = DecodeSandbox("tests.decode.sandbox_workers:pid")
print(sandbox.run(b"").value, flush=True)
time.sleep(60)
"""


@pytest.mark.chaos
def test_no_orphan_is_left_when_the_parent_is_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(timeout=10)


@pytest.mark.chaos
def test_a_stalled_orphan_ends_itself():
    stalled = ORPHAN.replace("time.sleep(60)", "sandbox.run(b'')").replace(
        ":pid", ":pid_then_stall"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", stalled.replace('stall")', 'stall", timeout_s=1.0)')],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)  # the second item is at work and will never end
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert child.is_running()
    child.wait(timeout=15)  # its own alarm, 1.5 times the timeout and 5 s


@pytest.mark.chaos
def test_mutated_files_in_the_sandbox_fare_as_in_the_open_and_memory_stays_bounded():
    files = mutated_images(seed=0, n=300)
    files[100:100] = intact_images(seed=99, n=50)
    with DecodeSandbox("tests.decode.sandbox_workers:status", memory_bytes=512 * 2**20) as sandbox:
        result = outcomes(sandbox, [data for _, data, _ in files])
    for (name, data, kind), outcome in zip(files, result, strict=True):
        status, reason, _ = outcome.value
        here = decode(data)
        assert (status, reason) == (here.status, here.reason), name
        if kind not in MAY_DECODE:
            assert (status == "ok") == (kind == "intact"), name
    peak_kib = [outcome.value[2] for outcome in result]
    assert peak_kib[-1] - peak_kib[0] < 100 * 2**10


@pytest.mark.real
def test_real_scans_come_through_unchanged(real_data):
    files = sorted((real_data / "mri4" / "Testing").rglob("*.jpg"))[:40]
    contents = [path.read_bytes() for path in files]
    with DecodeSandbox("tests.decode.sandbox_workers:echo") as sandbox:
        for outcome, content in zip(outcomes(sandbox, contents), contents, strict=True):
            assert outcome.value.tobytes() == content
