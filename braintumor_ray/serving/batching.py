"""Dynamic batching: whatever waits when the predictor becomes free is predicted together.

Nothing ever waits for a batch to fill: alone, a request goes at once; under load, requests pile up
while the predictor works and so batches grow by themselves. (`ray.serve.batch` forms its batches
before the predictor is free: without a wait they hold one request each, whatever the load.)
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs a batch function in one thread, as large a batch as waits; used from one event loop.

    Args:
        run: a batch in, one result each out, in order.
        max_size: largest batch.
        observe: told the size of each batch.
        start: called once in that thread before the first batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        max_size: int,
        observe: Callable[[int], None] = lambda size: None,
        start: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._observe = observe
        # One thread for ever: OpenMP keeps a team of threads for each thread that computes.
        self._thread = ThreadPoolExecutor(1, "predict", initializer=start)
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._working: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result for one item.

        Raises:
            Exception: whatever the batch function raised, to every member of its batch.
        """
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await result

    def warm_up(self, items: Sequence[Item]) -> None:
        """Run a batch in the thread that will do the work, and wait for it."""
        self._thread.submit(self._run, items).result()

    async def _work(self) -> None:
        while self._waiting:
            batch = self._waiting[: self._max_size]
            del self._waiting[: self._max_size]
            batch = [(item, result) for item, result in batch if not result.cancelled()]
            if batch:
                await self._one_batch(batch)

    async def _one_batch(self, batch: "list[tuple[Item, asyncio.Future[Result]]]") -> None:
        self._observe(len(batch))
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._run, [item for item, _ in batch])
            assert len(found) == len(batch)
        except Exception as error:  # each caller gets it; the next batch must still run
            for _, result in batch:
                if not result.cancelled():
                    result.set_exception(error)
            return
        for (_, result), value in zip(batch, found, strict=True):
            if not result.cancelled():
                result.set_result(value)
