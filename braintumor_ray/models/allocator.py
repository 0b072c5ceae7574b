"""The C library's memory allocator, set for networks on CPUs.

By default glibc takes every large block from the kernel and returns it when it is freed. A network
frees and takes such blocks all the time, and the kernel clears each page anew: up to half of the
time of a pass. Here freed memory is kept for the next pass. What was the peak stays reserved while
the process lives. All threads share one arena, as the arenas of other threads than the main one
hold no block above 64 MB.

Where a user has set one of these things (`MALLOC_ARENA_MAX`, `MALLOC_MMAP_MAX_`, ..., or
`GLIBC_TUNABLES`), all are left alone; for Ray's workers the driver's environment counts. Without
glibc nothing happens.
"""

import ctypes
import os
from functools import cache

_SETTINGS = {  # name in the environment: number in glibc's malloc.h, value
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
}
_ALIKE = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def allocator_environment() -> dict[str, str]:
    """Environment of a process that shall keep freed memory from its start, in all its threads."""
    return {} if _is_set() else {name: str(value) for name, (_, value) in _SETTINGS.items()}


@cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory from now on; best called in its main thread.

    Threads that have an arena of their own by then gain less.

    Returns:
        Whether the allocator was set.
    """
    if _is_set():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library: musl, macOS, Windows
        return False
    done = [mallopt(number, value) for number, value in _SETTINGS.values()]
    return all(done)


def _is_set() -> bool:
    return any(name in os.environ for name in (*_SETTINGS, *_ALIKE))
