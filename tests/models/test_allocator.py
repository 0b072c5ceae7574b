"""Freed memory is kept, where the C library can and the user did not say otherwise."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from braintumor_ray.models import allocator
from braintumor_ray.models.allocator import allocator_environment

PROBE = """
import resource, torch
from braintumor_ray.models.allocator import keep_freed_memory
print(keep_freed_memory())
network = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU()
)
@torch.no_grad()
def touch():
    for _ in range(6):  # maps of 64 MiB
        network(torch.ones(16, 1, 256, 256))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
{run}
"""
MAIN = "touch(); before = faults(); touch(); print(faults() - before)"
THREAD = """
import threading
def work():
    MAIN
thread = threading.Thread(target=work); thread.start(); thread.join()
""".replace("MAIN", MAIN)


FEW = 20_000  # of 400,000 pages that these passes touch


def probe(run: str, **environment: str) -> tuple[str, int]:
    """What it returned, and page faults of six passes after the first six."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(run=run)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment},
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@glibc
def test_pages_are_not_asked_for_again() -> None:
    kept, faults = probe(MAIN)
    assert kept == "True"
    assert faults < FEW


@glibc
def test_nor_by_any_thread_of_a_process_that_starts_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    for run in (MAIN, THREAD):
        _, faults = probe(run, **allocator_environment())
        assert faults < FEW


@glibc
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_a_users_own_settings_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "2" if name.startswith("MALLOC") else "glibc.malloc.arena_max=2"
    kept, faults = probe(MAIN, **{name: value})
    assert kept == "False"
    if not (HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text()):
        assert faults > 10 * FEW
    monkeypatch.setenv(name, value)
    assert allocator_environment() == {}


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory.__wrapped__() is False
