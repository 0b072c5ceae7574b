"""Runs a compaction in a process that ends by SIGKILL before its n-th change on disk."""

import multiprocessing
import os
import signal

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
