"""The decoder's process: reads requests from its parent, runs the worker, writes replies.

Started by `decode.sandbox` as ``python -m braintumor_ray.decode.sandbox_child``; light on purpose
(it imports the worker's module and no more), so that a fresh one costs little.

Wire format, both ways: ``<QQ`` lengths of head and body, head (pickle), body (raw bytes). Both ends
are ours and run the same code, which is what makes pickle safe here. A request's head is empty
where its options are those of the request before. A reply's frame holds the answers to several
requests, in one pickle: what their values share is written once. A shared counter of items done
shows the parent which one was at work when the process died, as finished answers may wait.
"""

import importlib
import io
import logging
import mmap
import os
import pickle
import resource
import select
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

FRAME = struct.Struct("<QQ")
COUNTER = struct.Struct("<Q")
MISSING = 2**64 - 1  # length of the body of a request without data
_BATCH = 8
_BATCH_BYTES = 2**19
Worker = Callable[[bytes | None, Any], Any]
Answer = tuple[Any, str | None]  # what the worker gave, or the reason why it gave nothing


def main(arguments: list[str]) -> int:
    """Serve requests until the parent closes the pipe.

    Args:
        arguments: worker (``module:function``), memory limit in bytes, seconds after which one
            item ends this process even if no parent is left to do it, and the file descriptor of
            the progress counter.
    """
    worker_name, memory_bytes, fuse_s = arguments[0], int(arguments[1]), float(arguments[2])
    counter = mmap.mmap(int(arguments[3]), COUNTER.size)
    requests, replies = _take_pipes()
    _limit_memory(memory_bytes)
    warnings.simplefilter("ignore")  # a decoder's remarks on a bad file are not the operator's
    logging.disable(logging.ERROR)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = _Replies(replies, requests)
    try:
        worker = load_worker(worker_name)
    except Exception:  # the parent reports it: it is the caller's mistake, not an item's
        out.send(pickle.dumps(traceback.format_exc(limit=-1).strip().splitlines()[-1]), [])
        return 1
    out.send(pickle.dumps(None), [])
    try:
        _serve(worker, requests, out, fuse_s, counter)
    except BrokenPipeError:
        return 0  # the parent is gone: nobody to answer
    return 0


def load_worker(name: str) -> Worker:
    """The function that ``module:function`` names."""
    module, _, function = name.partition(":")
    worker: Worker = getattr(importlib.import_module(module), function)
    return worker


class _Replies:
    """Answers on their way to the parent.

    Several are sent at a time, as each waking of the parent costs; whatever is ready goes as soon
    as no request is waiting.
    """

    def __init__(self, fd: int, requests: int) -> None:
        self._fd = fd
        self._waiting = select.poll()
        self._waiting.register(requests, select.POLLIN)
        self._begin()

    def _begin(self) -> None:
        self._n_answers = self._n_bytes = 0
        self._stream = io.BytesIO()
        self._buffers: list[memoryview] = []
        # One for all answers of a frame: it writes names of classes and fields once.
        self._pickler = pickle.Pickler(self._stream, 5, buffer_callback=self._keep)

    def _keep(self, buffer: pickle.PickleBuffer) -> None:
        self._buffers.append(buffer.raw())
        self._n_bytes += len(self._buffers[-1])

    def add(self, answer: Answer) -> None:
        """Line up one answer; one that does not pickle becomes a reason."""
        size, n_buffers = self._stream.tell(), len(self._buffers)
        try:
            self._pickler.dump(answer)
        except Exception as error:
            # Half of it is written, and its pickler would refer to what is taken back.
            self._stream.truncate(size)
            del self._buffers[n_buffers:]
            self.flush()
            self._pickler.dump((None, _why(error)))
        self._n_answers += 1

    def flush_if_due(self) -> None:
        """Send if a batch is full or the parent has nothing more for us to do."""
        full = self._n_answers >= _BATCH or self._n_bytes >= _BATCH_BYTES
        if full or not self._waiting.poll(0):
            self.flush()

    def flush(self) -> None:
        """Send all answers; blocks while the parent does not read."""
        if self._n_answers:
            lengths = [len(buffer) for buffer in self._buffers]
            head = pickle.dumps((self._stream.getvalue(), lengths, self._n_answers))
            self.send(head, self._buffers)
        self._begin()

    def send(self, head: bytes, body: list[memoryview]) -> None:
        """Send one frame; `body` is sent without being joined or copied."""
        n_body = sum(map(len, body))
        views = [memoryview(FRAME.pack(len(head), n_body) + head), *filter(len, body)]
        while views:
            written = os.writev(self._fd, views[:1000])  # IOV_MAX is 1024
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views:
                views[0] = views[0][written:]


def _take_pipes() -> tuple[int, int]:
    """Keep the pipes to ourselves: what libraries print goes to stderr, not into the protocol."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return requests, replies


def _limit_memory(n_bytes: int) -> None:
    # DATA counts private writable memory; AS would also count what is only reserved (thread
    # stacks, allocator arenas), which says nothing about the file.
    for kind, limit in ((resource.RLIMIT_DATA, n_bytes), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, hard))


def _serve(worker: Worker, requests: int, out: _Replies, fuse_s: float, counter: mmap.mmap) -> None:
    n_done, options = 0, None
    while (lengths := _read(requests, FRAME.size)) is not None:
        n_head, n_body = FRAME.unpack(lengths)
        head = _read(requests, n_head)
        data = None if n_body == MISSING else _read(requests, n_body)
        if head is None or (data is None and n_body != MISSING):
            return
        options = pickle.loads(head) if head else options
        # SIGALRM's default action ends the process even inside a C loop: no orphan runs forever.
        signal.setitimer(signal.ITIMER_REAL, fuse_s)
        out.add(_answer(worker, data, options))
        signal.setitimer(signal.ITIMER_REAL, 0)  # a parent may take its time to read
        n_done += 1
        COUNTER.pack_into(counter, 0, n_done)
        out.flush_if_due()


def _answer(worker: Worker, data: bytes | None, options: object) -> Answer:
    try:
        return worker(data, options), None
    except Exception as error:  # one bad item must not end the process that serves the others
        return None, _why(error)


def _why(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "decoder ran out of memory"
    traceback.print_exception(error)
    return f"decoder raised {type(error).__name__}"


def _read(fd: int, n_bytes: int) -> bytes | None:
    """Exactly `n_bytes` from a blocking `fd`, or None at its end."""
    chunk = os.read(fd, n_bytes) if n_bytes else b""
    if len(chunk) == n_bytes:
        return chunk
    chunks, missing = [chunk], n_bytes - len(chunk)
    while missing:
        if not chunk:
            return None
        chunk = os.read(fd, missing)
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
