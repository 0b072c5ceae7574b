"""Run a decoder in a process of its own, so that a file can kill or stall only that.

One child per `DecodeSandbox`, fed ahead so that parent and child work at the same time. A child
that dies or stalls is replaced; the item at fault is tried again in the fresh one and then given
up with a true reason; all other items come through, each once and in order.

A subprocess with pipes rather than multiprocessing: it must work inside Ray workers, whose
``__main__`` cannot be imported again.
"""

import fcntl
import io
import mmap
import os
import pickle
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from braintumor_ray.decode.sandbox_child import COUNTER, FRAME, MISSING
from braintumor_ray.errors import BrainTumorError

Item = tuple[bytes | None, Any]
_START_TIMEOUT_S = 120.0  # imports on a busy machine; not held against any file
_PIPE_BYTES = 2**20
_LOOK_MS = 1000.0
_SMALL = 2**16  # bytes that are copied rather than sent by a call of their own


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
        command = [sys.executable, "-m", "braintumor_ray.decode.sandbox_child"]
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
        self._options: Any = self  # of the last item; at first none that can come
        self._unread: deque[Outcome] = deque()  # of a frame whose others were given
        self._n_read = 0
        self._ready = False

    def queue(self, item: Item) -> None:
        """Line up one request; sends what the pipe takes at once."""
        data, options = item
        head = b""  # options that are the last item's are not sent again
        if options is not self._options:
            self._options, head = options, pickle.dumps(options, protocol=5)
        n_body = MISSING if data is None else len(data)
        frame = FRAME.pack(len(head), n_body) + head
        if data and len(data) < _SMALL:
            self._unsent.append(memoryview(frame + data))
        else:
            self._unsent += [memoryview(part) for part in (frame, data) if part]
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
        if not self._unread:
            self._read_answers(timeout_s)
        return self._unread.popleft()

    def _read_answers(self, timeout_s: float) -> None:
        head, body = self._receive(timeout_s)
        payload, lengths, count = pickle.loads(head)
        buffers, start = [], 0
        for length in lengths:
            buffers.append(body[start : start + length])
            start += length
        answers = pickle.Unpickler(io.BytesIO(payload), buffers=buffers)
        self._unread += [Outcome(*answers.load()) for _ in range(count)]
        self._n_read += count

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


_AHEAD = 20  # items in flight: over two batches of replies, few enough to requeue cheaply
_AHEAD_BYTES = 64 * 2**20
_TIMES = {1: "once", 2: "twice"}


@dataclass
class _Job:
    item: Item
    causes: list[str] = field(default_factory=list)


class DecodeSandbox:
    """A worker function in a child process that may crash, stall or run out of memory.

    Not thread-safe, and one `map` at a time.

    Args:
        worker: ``module:function``; takes ``(bytes | None, options)`` and returns anything;
            both pickle. NumPy arrays come back without being copied into a pickle.
        timeout_s: Longest time for one item, in seconds.
        tries: How often an item may kill or stall a child before it is given up.
        memory_bytes: Private memory the child may hold. An item that wants more gets a reason.
    """

    def __init__(
        self,
        worker: str,
        timeout_s: float = 30.0,
        tries: int = 2,
        memory_bytes: int = 4 * 2**30,
    ) -> None:
        if tries < 1 or timeout_s <= 0:
            raise SandboxError(f"tries={tries}, timeout_s={timeout_s}: both must be positive")
        self._worker = worker
        self._timeout_s = timeout_s
        self._tries = tries
        self._memory_bytes = memory_bytes
        self._n_flying_bytes = 0
        self._child: Child | None = self._start()  # it imports while the caller goes on

    def run(self, data: bytes | None, options: object = None) -> Outcome:
        """Run the worker on one item."""
        return next(self.map([(data, options)]))

    def map(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """Run the worker on each item; yields one outcome per item, in order.

        Items are taken a few ahead of the outcomes. Leaving the iterator early ends the child.

        Raises:
            SandboxError: if the worker cannot be imported or no child can be started.
        """
        if self._child is not None and self._child.is_dead():
            self._drop_child()  # it died idle: no item's fault
        source = iter(items)
        flying: deque[_Job] = deque()
        self._n_flying_bytes = 0
        try:
            while self._fill(flying, source):
                outcome = self._first_outcome(flying)
                self._n_flying_bytes -= len(flying.popleft().item[0] or b"")
                yield outcome
        finally:
            if flying:  # replies still to come belong to nobody: never let them meet the next map
                self._drop_child()

    def close(self) -> None:
        """End the child; the sandbox starts a new one if it is used again."""
        self._drop_child()

    def __enter__(self) -> "DecodeSandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> Child:
        # The fuse is longer than the timeout: it matters only when no parent is left.
        return Child(self._worker, self._memory_bytes, self._timeout_s * 1.5 + 5)

    def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _fill(self, flying: deque[_Job], source: Iterator[Item]) -> bool:
        """Top up the items in flight; False when there are none left."""
        while len(flying) < _AHEAD and (not flying or self._n_flying_bytes < _AHEAD_BYTES):
            item = next(source, None)
            if item is None:
                break
            flying.append(_Job(item))
            self._n_flying_bytes += len(item[0] or b"")
            if self._child is not None:
                self._child.queue(item)
        return bool(flying)

    def _first_outcome(self, flying: deque[_Job]) -> Outcome:
        """The outcome of the first item in flight, in as many children as that takes."""
        while len(flying[0].causes) < self._tries:
            child = self._child or self._restart(flying)
            try:
                child.wait_ready()
                return child.reply(self._timeout_s)
            except ChildGone as gone:
                self._assign_failure(flying, child.n_unread(), gone.cause)
                self._drop_child()
        return Outcome(reason=_failure(flying[0].causes))

    def _assign_failure(self, flying: deque[_Job], n_done: int, cause: str) -> None:
        """Note `cause` with the item at work: `n_done` before it were done, but lost unread."""
        sent = [job for job in flying if len(job.causes) < self._tries]
        sent[min(n_done, len(sent) - 1)].causes.append(cause)

    def _restart(self, flying: deque[_Job]) -> Child:
        self._child = self._start()
        for job in flying:
            if len(job.causes) < self._tries:
                self._child.queue(job.item)
        return self._child


def _failure(causes: list[str]) -> str:
    """One sentence: ``decoder died twice (exit code -11)``."""
    times = _TIMES.get(len(causes), f"{len(causes)} times")
    if len(set(causes)) > 1:
        return f"decoder failed {times}: " + ", then ".join(causes)
    verb, _, detail = causes[0].partition(" (")
    if detail:
        return f"decoder {verb} {times} ({detail}"
    return f"decoder {verb}, {times}"
