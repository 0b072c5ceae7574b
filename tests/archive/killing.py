"""Runs a compaction in a process that ends by SIGKILL: before its n-th change, or at any moment."""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time

import numpy as np
import pyiceberg.io.pyarrow  # noqa: F401 - loaded once, before the forks
from pyiceberg.catalog.sql import SqlCatalog

import braintumor_ray.storage as storage
from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.register import register

OPTIONS = CompactOptions(target_mb=0.01, expire=True, grace_hours=0, memory_mb=1)


def compact_until(root, changes):
    """Compact; the process dies when so many files were synced, renamed or deleted."""
    left = [changes]

    def counted(call):
        def made(*args, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return made

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    storage.Folder.delete_file = counted(storage.Folder.delete_file)
    compact(root, OPTIONS)


def register_until(root, changes, uri):
    """Register; the process dies before its n-th step, of which each commit is two."""
    left = [changes]

    def step():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    commit, write = SqlCatalog.commit_table, storage.Folder.write_json

    def committed(*args, **options):
        step()
        done = commit(*args, **options)
        step()
        return done

    def written(*args, **options):
        step()
        return write(*args, **options)

    SqlCatalog.commit_table, storage.Folder.write_json = committed, written
    register(root, uri)


def run_and_kill(root, changes, target=compact_until, *more):
    """The exit code of the process: -9 where it was killed, 0 where it finished before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.archive.killing"])  # each start is a fork: fast
    process = context.Process(target=target, args=(str(root), changes, *more))
    process.start()
    process.join(120)
    return process.exitcode


def compact_from(root, options, begins):
    """Compact; the parent is told when it begins."""
    begins.set()
    compact(root, options)


def kill_after(root, seconds, options):
    """SIGKILL to a compaction so many seconds after it began; its exit code, 0 if it was faster."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.archive.killing"])
    begins = context.Event()
    process = context.Process(target=compact_from, args=(str(root), options, begins))
    process.start()
    begins.wait(60)
    process.join(seconds)
    process.kill()
    process.join(60)
    return process.exitcode


def seconds_to_compact(root, options):
    """How long a compaction takes that nobody kills; of a copy."""
    with tempfile.TemporaryDirectory() as work:
        copy = shutil.copytree(root, f"{work}/copy")
        started = time.perf_counter()
        compact(copy, options)
        return time.perf_counter() - started


class KilledAtRandom:
    """A folder whose compactions are killed at random moments; `check` is called after each kill.

    A kill leaves what was done: the next one strikes later in the work. When all of it is done, it
    begins anew from a copy.
    """

    def __init__(self, root, options, check):
        self.root, self._options, self._check = root, options, check
        self._copy = shutil.copytree(root, f"{root}-copy")
        self._whole = seconds_to_compact(root, options)

    def strike(self, kills, seed):
        """So many kills; how many manifests were there after each of them."""
        random, seen = np.random.default_rng(seed), []
        while len(seen) < kills:
            moment = random.uniform(0, self._whole)
            if kill_after(self.root, moment, self._options) == -signal.SIGKILL:
                seen.append(len(list(self.root.glob("manifests/*.json"))))
            else:
                self.restore()
            self._check()
        return seen

    def restore(self):
        """The folder as it was."""
        shutil.rmtree(self.root)
        shutil.copytree(self._copy, self.root)
