"""Runs a command in a process that ends by SIGKILL at a chosen step, or some time after it.

A step is what changes a results folder or a table: a file is written under a passing name, gets
its name, or is deleted; a file of the table is made; the table is committed.
"""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyiceberg.io.pyarrow
from pyiceberg.catalog.sql import SqlCatalog

import braintumor_ray.archive.records as records
import braintumor_ray.storage as storage
from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.register import register

PATIENCE_S = 1500.0  # for one call; three hundred generations on a busy machine
PLACES = ("rows", "catalogs", "history", "manifests", "compactions", "registered")


def compacted_registered_expired(root, uri, options):
    """What is done to a folder now and then."""
    compact(root, options)
    register(root, uri)
    compact(root, replace(options, expire=True, grace_hours=0))


def steps_of(root, call, *more):
    """Do it: names of all its steps, in their order, and its seconds."""
    with tempfile.NamedTemporaryFile() as noted:
        started = time.perf_counter()
        process = _start(_note_steps, str(root), noted.name, call, *more)
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        return json.load(noted), time.perf_counter() - started


def kill_at(root, name, nth, call, *more, delay=0.0):
    """SIGKILL before the n-th step of a name, or so many seconds later.

    Returns:
        Whether the process was killed; it was not where it ended before.
    """
    process = _start(_die_at, str(root), name, nth, delay, call, *more)
    process.join(PATIENCE_S)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _start(target, *args):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.archive.killing"])  # each start is a fork: fast
    process = context.Process(target=target, args=args)
    process.start()
    return process


def _note_steps(root, target, call, *more):
    found = []
    _call_at_steps(root, found.append)
    call(root, *more)
    Path(target).write_text(json.dumps(found))


def _die_at(root, name, nth, delay, call, *more):
    left = Counter({name: nth})

    def step(now):
        left[now] -= 1
        if now == name and left[now] < 0:
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            left[now] = 10**9  # only once
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    _call_at_steps(root, step)
    call(root, *more)
    os._exit(0)  # the timer does not outlive its call


def _call_at_steps(root, step):
    """`step` is called with the name of each step before it, and after those that commit."""

    def place(path):
        inner = os.path.relpath(os.path.realpath(path), os.path.realpath(root))
        return inner.split(os.sep, 1)[0]

    def noted(call, kind, place_of, commits=()):
        def made(*args, **options):
            where = place_of(*args)
            if where in (*PLACES, "table"):
                step(f"{kind} {where}")
            found = call(*args, **options)
            if where in commits:
                step(f"after {kind} {where}")
            return found

        return made

    def path_of(number):
        return os.readlink(f"/proc/self/fd/{number}")

    os.fsync = noted(os.fsync, "write", lambda number: place(path_of(number)))
    os.replace = noted(os.replace, "name", lambda _, path: place(path), ["manifests"])
    storage.Folder.delete_file = noted(
        storage.Folder.delete_file, "delete", lambda folder, *parts: parts[0].split("/", 1)[0]
    )
    records._delete_folder = noted(
        records._delete_folder, "delete folder of", lambda folder, path: path.split("/", 1)[0]
    )
    made = pyiceberg.io.pyarrow.PyArrowFile
    made.create = noted(made.create, "make a file of", lambda *_: "table")
    SqlCatalog.commit_table = noted(
        SqlCatalog.commit_table, "commit", lambda *_: "table", ["table"]
    )


class KilledAtRandom:
    """A folder of which a call is killed at random moments; `check` is called after each kill.

    A moment is some time after a step. Each kind of step is as likely, however short its part of
    the whole is. A kill leaves what was done. Where the moment does not come any more, the work
    begins anew from a copy.
    """

    def __init__(self, root, check, call, *more):
        self.root, self._check, self._call, self._more = root, check, call, more
        self._copy = shutil.copytree(root, f"{root}-copy")
        steps, seconds = steps_of(root, call, *more)
        self._counts, self._pause = Counter(steps), seconds / len(steps)
        self.restore()

    def strike(self, kills, seed):
        """So many kills; the name of the step before each of them."""
        random, seen = np.random.default_rng(seed), []
        while len(seen) < kills:
            name = str(random.choice(sorted(self._counts)))
            nth, delay = random.integers(self._counts[name]), random.uniform(0, self._pause)
            if kill_at(self.root, name, int(nth), self._call, *self._more, delay=float(delay)):
                seen.append(name)
            else:
                self.restore()
            self._check()
        return seen

    def restore(self):
        """The folder as it was."""
        shutil.rmtree(self.root)
        shutil.copytree(self._copy, self.root)
