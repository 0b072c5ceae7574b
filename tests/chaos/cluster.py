"""Handles of the processes that the chaos tests start, and kill."""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[2]


class Spoken:
    """A child process that is spoken to in lines; its stderr goes to a file."""

    def __init__(self, module, *arguments, env=None):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read until the end
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT), **(env or {})},
        )
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, timeout=300):
        """The next answer; None if it ended without one."""
        line = self._lines.get(timeout=timeout)
        return None if line is None else json.loads(line)

    def complaints(self):
        self.log.seek(0)
        return self.log.read()[-3000:]

    def end(self, timeout=60):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            self.process.poll()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)


class ClusterOfNodes:
    """Several raylets on this machine, with a temporary folder and ports of their own."""

    def __init__(self, nodes, cpus=1, dashboard=0, env=None):
        self.folder = tempfile.mkdtemp(prefix="bt", dir="/tmp")  # short: sockets have long names
        self.env = {"RAY_TMPDIR": self.folder, **(env or {})}
        host = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_TRAIN_V2_ENABLED": "1"}
        self._host = Spoken("tests.chaos.host", nodes, cpus, dashboard, env={**self.env, **host})
        started = self._host.hear()
        assert started, self._host.complaints()
        self.address, self.raylets = started["address"], started["raylets"]
        self.env["RAY_ADDRESS"] = self.address

    def replace(self, index):
        """Kill a worker node and add another."""
        self._host.tell(f"replace {index}")
        self.raylets = self._host.hear()["raylets"]

    def processes(self, *words):
        """Ray's processes whose title has one of the words."""
        found = []
        for child in psutil.Process(self._host.process.pid).children(recursive=True):
            try:
                title = " ".join(child.cmdline())
            except psutil.NoSuchProcess:
                continue
            if "ray::" in title and any(word in title for word in words):
                found.append(child)
        return found

    def node_of(self, process):
        """Index of the worker node that a process belongs to; None for the head."""
        parents = {parent.pid for parent in process.parents()}
        return next((i for i, raylet in enumerate(self.raylets) if raylet in parents), None)

    def close(self):
        self._host.tell("quit")
        self._host.end()
        shutil.rmtree(self.folder, ignore_errors=True)
