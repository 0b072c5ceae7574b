"""A small pool of decoding processes, used from an event loop.

A sandbox takes one item at a time and is not thread-safe: a request waits for an idle one.
Hostile bytes can kill or stall only the process that decodes them.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from braintumor_ray.decode.sandbox import DecodeSandbox, SandboxError
from braintumor_ray.serving.problems import ProblemError
from braintumor_ray.serving.upload import WORKER, Upload, UploadOptions

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

    async def decode(self, data: Any, options: UploadOptions) -> Upload:  # noqa: ANN401 - a buffer
        """Decode one upload; waits for an idle process.

        Raises:
            ProblemError: the decoding process itself cannot run.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, data, options)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=True)
        for sandbox in self._sandboxes:
            sandbox.close()

    def _run(self, data: Any, options: UploadOptions) -> Upload:  # noqa: ANN401 - a buffer
        sandbox = self._idle.get()
        try:
            outcome = sandbox.run(data, options)
        except SandboxError as error:
            raise ProblemError(
                "not-ready",
                "the decoding process cannot start; try again later",
                {"Retry-After": "5"},
            ) from error
        finally:
            self._idle.put(sandbox)
        if outcome.reason is not None:
            return Upload("quarantined", outcome.reason, kind="unreadable")
        upload: Upload = outcome.value
        return upload
