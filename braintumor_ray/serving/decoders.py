"""A small pool of decoding processes, used from an event loop.

A sandbox takes one item at a time and is not thread-safe: a request waits for an idle one.
Hostile bytes can kill or stall only the process that decodes them.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from braintumor_ray.decode.sandbox import DecodeSandbox, Outcome, SandboxError
from braintumor_ray.serving.problems import ProblemError
from braintumor_ray.serving.upload import WORKER, Task, Upload, UploadOptions

_MOST = 4


class DecoderPool:
    """Sandboxes that decode uploads, as many at a time as there are sandboxes.

    Args:
        count: processes; default one per core, at most 4.
        timeout_s: longest time for one file, seconds.
        memory_bytes: private memory that one process may hold.
        worker: `module:function` that decodes, see `serving.upload.decode_upload`.
    """

    def __init__(
        self,
        count: int | None = None,
        timeout_s: float = 10.0,
        memory_bytes: int = 2 * 2**30,
        worker: str = WORKER,
    ) -> None:
        self.count = count or min(_MOST, os.cpu_count() or 1)
        self._sandboxes = [
            # One try: the client may try again, and a second stall would block the decoder twice.
            DecodeSandbox(worker, timeout_s, tries=1, memory_bytes=memory_bytes)
            for _ in range(self.count)
        ]
        # As many threads as sandboxes: a thread that runs always finds an idle one, and a client
        # that disconnects does not free its sandbox before the work is done.
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="decode")
        self._idle: SimpleQueue[DecodeSandbox] = SimpleQueue()
        for sandbox in self._sandboxes:
            self._idle.put(sandbox)

    async def decode_all(self, files: Sequence[Any], options: UploadOptions) -> list[Upload]:
        """Decode uploads in one process, in order; waits for an idle one.

        Raises:
            ProblemError: the decoding process itself cannot run.
        """
        return [
            Upload("quarantined", outcome.reason, kind="unreadable")
            if outcome.reason
            else outcome.value
            for outcome in await self._outcomes(files, options)
        ]

    async def run(self, data: Any, task: Task) -> Any:  # noqa: ANN401 - what the task returns
        """Do another task in a decoding process.

        Raises:
            ProblemError: 'unreadable' where the data stall or kill the process; see `decode_all`.
        """
        (outcome,) = await self._outcomes([data], task)
        if outcome.reason is not None:
            raise ProblemError(
                "unreadable", f"{outcome.reason}; the file is damaged or not what it claims to be"
            )
        return outcome.value

    async def _outcomes(self, files: Sequence[Any], task: UploadOptions | Task) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, files, task)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=True)
        for sandbox in self._sandboxes:
            sandbox.close()

    def _run(self, files: Sequence[Any], task: UploadOptions | Task) -> list[Outcome]:
        sandbox = self._idle.get()
        try:
            return list(sandbox.map((data, task) for data in files))
        except SandboxError as error:
            raise ProblemError(
                "not-ready",
                "the decoding process cannot start; try again later",
                {"Retry-After": "5"},
            ) from error
        finally:
            self._idle.put(sandbox)
