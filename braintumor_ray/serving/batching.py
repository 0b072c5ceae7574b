"""Dynamic batching: whatever waits when the predictor becomes free is predicted together.

Nothing ever waits for a batch to fill: alone, a request goes at once; under load, requests pile up
while the predictor works and so batches grow by themselves. (`ray.serve.batch` forms its batches
before the predictor is free: without a wait they hold one request each, whatever the load.)

On CPU, two batches at a time with half of the cores each cost less than one with all of them, whose
threads wait for each other after every layer; a lone batch still gets all cores, for its latency.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs a batch function in threads, as large a batch as waits; used from one event loop.

    Args:
        run: a batch in, one result each out, in order; the second argument tells whether the batch
            is alone: nothing else is running or waits, and it may use every core.
        max_size: largest batch.
        observe: told the size of each batch.
        lanes: most batches at a time.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], bool], Sequence[Result]],
        max_size: int,
        observe: Callable[[int], None] = lambda size: None,
        lanes: int = 1,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._observe = observe
        # The same threads for ever: OpenMP keeps a team for each thread that computes.
        self._free = [ThreadPoolExecutor(1, "predict") for _ in range(lanes)]
        self._lanes = lanes
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._working: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Item) -> Result:
        """The result for one item.

        Raises:
            Exception: whatever the batch function raised, to every member of its batch.
        """
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._free:
            thread = self._free.pop()
            task = asyncio.create_task(self._work(thread))
            self._working.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._working.discard)
        return await result

    def warm_up(self, items: Sequence[Item]) -> None:
        """Run a batch in each thread that will do the work, in both ways, and wait for it."""
        for thread in self._free:
            for alone in (True, False):
                thread.submit(self._run, items, alone).result()

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        try:
            while self._waiting:
                batch = self._waiting[: self._max_size]
                del self._waiting[: self._max_size]
                batch = [(item, result) for item, result in batch if not result.cancelled()]
                if batch:
                    await self._one_batch(thread, batch)
        finally:
            self._free.append(thread)

    async def _one_batch(
        self, thread: ThreadPoolExecutor, batch: "list[tuple[Item, asyncio.Future[Result]]]"
    ) -> None:
        self._observe(len(batch))
        alone = len(self._free) == self._lanes - 1 and not self._waiting
        items = [item for item, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(thread, self._run, items, alone)
            assert len(found) == len(batch)
        except Exception as error:  # each caller gets it; the next batch must still run
            for _, result in batch:
                if not result.cancelled():
                    result.set_exception(error)
            return
        for (_, result), value in zip(batch, found, strict=True):
            if not result.cancelled():
                result.set_result(value)
