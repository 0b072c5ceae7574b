"""The parent's end of one decoding process: its start, its pipes, its end.

`braintumor_ray.data.sandbox` decides what to do when it dies; `sandbox_child` is the other end.
"""

import fcntl
import mmap
import os
import pickle
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from braintumor_ray.data.sandbox_child import COUNTER, FRAME
from braintumor_ray.errors import BrainTumorError

Item = tuple[bytes | None, dict[str, Any]]
_START_TIMEOUT_S = 120.0  # imports on a busy machine; not held against any file
_PIPE_BYTES = 2**20
_LOOK_MS = 1000.0


class SandboxError(BrainTumorError):
    """The sandbox itself cannot run (its worker cannot be imported, or no child starts)."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one item: the worker's `value`, or the `reason` why there is none."""

    value: Any = None
    reason: str | None = None


class ChildGone(Exception):
    """The child is dead or was ended; `cause` says how."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Child:
    """One child process and the frames to and from it.

    Writing never blocks and is done while waiting for replies: were both ends to wait for the
    other to read, neither would go on.
    """

    def __init__(self, worker: str, memory_bytes: int, fuse_s: float) -> None:
        command = [sys.executable, "-m", "braintumor_ray.data.sandbox_child"]
        with tempfile.TemporaryFile() as shared:
            shared.write(bytes(COUNTER.size))
            shared.flush()
            self._counter = mmap.mmap(shared.fileno(), COUNTER.size)
            self._process = subprocess.Popen(
                [*command, worker, str(memory_bytes), str(fuse_s), str(shared.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(),
                pass_fds=(shared.fileno(),),
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        for fd in (self._stdin, self._stdout):
            os.set_blocking(fd, False)
            _widen(fd)
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._unsent: deque[memoryview] = deque()
        self._n_read = 0
        self._ready = False

    def queue(self, item: Item) -> None:
        """Line up one request; sends what the pipe takes at once."""
        data, options = item
        head = pickle.dumps((options, data is None), protocol=5)
        body = data or b""
        self._unsent.append(memoryview(FRAME.pack(len(head), len(body)) + head))
        if body:
            self._unsent.append(memoryview(body))
        self._send_some()

    def wait_ready(self) -> None:
        """Wait until the child has imported the worker.

        Raises:
            SandboxError: if it cannot.
        """
        if self._ready:
            return
        try:
            head, _ = self._receive(_START_TIMEOUT_S)
        except ChildGone as gone:
            raise SandboxError(f"decoder process did not start: it {gone.cause}") from gone
        failure = pickle.loads(head)
        if failure is not None:
            raise SandboxError(f"decoder process cannot import its worker: {failure}")
        self._ready = True

    def reply(self, timeout_s: float) -> Outcome:
        """The next outcome.

        Raises:
            ChildGone: if the child dies, or spends more than `timeout_s` seconds on one item.
        """
        head, body = self._receive(timeout_s)
        self._n_read += 1
        payload, lengths = pickle.loads(head)
        buffers, start = [], 0
        for length in lengths:
            buffers.append(body[start : start + length])
            start += length
        value, reason = pickle.loads(payload, buffers=buffers)
        return Outcome(value, reason)

    def n_unread(self) -> int:
        """Items the child has done whose replies have not been read."""
        return self._n_done() - self._n_read

    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill the process and give its resources back."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._counter.close()

    def _n_done(self) -> int:
        return int(COUNTER.unpack_from(self._counter)[0])

    def _receive(self, timeout_s: float) -> tuple[memoryview, memoryview]:
        n_head, n_body = FRAME.unpack(self._read(FRAME.size, timeout_s))
        frame = self._read(n_head + n_body, timeout_s)
        return frame[:n_head], frame[n_head:]

    def _read(self, n_bytes: int, timeout_s: float) -> memoryview:
        view = memoryview(bytearray(n_bytes))
        done = 0
        while done < n_bytes:
            try:
                count = os.readv(self._stdout, [view[done:]])
            except BlockingIOError:
                self._wait_readable(timeout_s)
                continue
            if not count:
                raise ChildGone(f"died (exit code {self._exit_code()})")
            done += count
        return view

    def _wait_readable(self, timeout_s: float) -> None:
        """Send queued requests until there is something to read."""
        n_done, deadline = self._n_done(), time.monotonic() + timeout_s
        while True:
            events = dict(self._poll.poll(min(timeout_s * 250, _LOOK_MS)))
            if self._stdin in events:
                self._send_some()
            if self._stdout in events:
                return
            if self._n_done() != n_done:  # replies come in batches: look at progress instead
                n_done, deadline = self._n_done(), time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                raise ChildGone(f"took longer than {timeout_s:g} s")

    def _send_some(self) -> None:
        try:
            while self._unsent:
                written = os.write(self._stdin, self._unsent[0])
                self._unsent[0] = self._unsent[0][written:]
                if not self._unsent[0]:
                    self._unsent.popleft()
        except BlockingIOError:
            self._poll.register(self._stdin, select.POLLOUT)
            return
        except BrokenPipeError:
            # Dead; but replies may still lie in the other pipe, so blame nobody until it ends.
            self._unsent.clear()
        self._stop_polling_stdin()

    def _stop_polling_stdin(self) -> None:
        try:
            self._poll.unregister(self._stdin)
        except KeyError:
            return  # it was not polled

    def _exit_code(self) -> int | None:
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None


def _environment() -> dict[str, str]:
    """The parent's environment and import path, and what suits a process that decodes.

    One thread, as a child is one core's work; and glibc keeps image-sized buffers for the next
    image instead of giving their pages back each time (measured: 4% of the decoding time).
    """
    one_thread = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(one_thread, "1"),
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }


def _widen(fd: int) -> None:
    size = getattr(fcntl, "F_SETPIPE_SZ", None)  # Linux: fewer switches for images
    if size is None:
        return
    try:
        fcntl.fcntl(fd, size, _PIPE_BYTES)
    except OSError:
        return  # over the user's share of pipe memory: the default size works as well
