"""Dynamic batching: whatever waits when the predictor becomes free is predicted together.

A single request is run at once; under load, requests collect while the predictor works, and so
batches grow. (`ray.serve.batch` forms its batches before the predictor is free: without a wait
they hold one request each, whatever the load.)

On CPU, two batches at a time with half of the cores each cost less than one with all of them, whose
threads wait for each other after every layer; a lone batch still gets all cores, for its latency.
While another batch runs, a small one waits a moment to grow, and none takes more than its share:
else most requests are in one large batch, and the others run one by one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

WORTHWHILE_BATCH = 4
"""Scans that make a batch worth running at the same time as another: one costs twice as much."""
PAUSE_S = 0.005
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
        first: the thread of the first lane, where there is one already.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], bool], Sequence[Result]],
        max_size: int,
        observe: Callable[[int], None] = lambda size: None,
        lanes: int = 1,
        first: ThreadPoolExecutor | None = None,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._observe = observe
        # The same threads throughout: OpenMP keeps a team for each thread that computes. Only the
        # first lane is ever alone: with more than one team on its cores, OpenMP puts threads to
        # sleep after every layer, and a lone prediction takes twice as long.
        self._threads = [first or ThreadPoolExecutor(1, "predict")]
        self._threads += [ThreadPoolExecutor(1, "predict") for _ in range(lanes - 1)]
        self._free = list(reversed(range(lanes)))
        self._share = max(1, max_size // lanes)
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._working: set[asyncio.Task[None]] = set()
        self._pausing = False

    async def __call__(self, item: Item) -> Result:
        """The result for one item.

        Raises:
            Exception: whatever the batch function raised, to every member of its batch.
        """
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        self._start_lane()
        return await result

    def warm_up(self, items: Sequence[Item]) -> None:
        """Run a batch in each thread that will do the work, as it will, and wait for it."""
        for lane, thread in enumerate(self._threads):
            for alone in (True, False) if lane == 0 else (False,):
                thread.submit(self._run, items, alone).result()

    def _start_lane(self) -> None:
        if self._free and self._waiting:
            task = asyncio.create_task(self._work(self._free.pop()))
            self._working.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._working.discard)

    async def _work(self, lane: int) -> None:
        try:
            while self._waiting:
                if self._others_work and len(self._waiting) < WORTHWHILE_BATCH:
                    if self._pausing:
                        return  # that lane takes what waits; a second would count as work beside it
                    self._pausing = True
                    await asyncio.sleep(PAUSE_S)
                    self._pausing = False
                most = self._share if self._others_work else self._max_size
                batch, self._waiting = self._waiting[:most], self._waiting[most:]
                self._start_lane()  # for what is left
                batch = [(item, result) for item, result in batch if not result.cancelled()]
                if batch:
                    await self._one_batch(lane, batch)
        finally:
            self._free = sorted([*self._free, lane], reverse=True)  # the first one is taken first

    @property
    def _others_work(self) -> bool:
        """Whether the lane that asks is not the only one at work."""
        return len(self._free) < len(self._threads) - 1

    async def _one_batch(
        self, lane: int, batch: "list[tuple[Item, asyncio.Future[Result]]]"
    ) -> None:
        self._observe(len(batch))
        alone = lane == 0 and not self._others_work and not self._waiting
        items = [item for item, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads[lane], self._run, items, alone)
            assert len(found) == len(batch)
        except Exception as error:  # each caller gets it; the next batch must still run
            _fail(batch, error)
            return
        _deliver(batch, found)


class Gatherer(Generic[Item, Result]):
    """Sends items that wait together in one call; used from one event loop.

    A call to another process costs as much for one item as for ten. A lone item goes at once. While
    others are known to be on their way (`coming`), or all calls are taken, items wait for them.

    Args:
        send: items in, one result each out, in order.
        enough: items that are sent without waiting for those that come.
        most: items in one call.
        calls: most calls at a time.

    Attributes:
        n_coming: items that are known to be on their way.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        enough: int,
        most: int,
        calls: int,
    ) -> None:
        self._send, self._enough, self._most, self._calls = send, max(1, enough), most, calls
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._working: set[asyncio.Task[None]] = set()
        self.n_coming = 0
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = self._scheduled = False

    async def __call__(self, item: Item) -> Result:
        """The result for one item.

        Raises:
            Exception: whatever `send` raised, to every member of its call.
        """
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        self._schedule_dispatch()
        return await result

    @contextmanager
    def coming(self, count: int) -> Iterator[None]:
        """While it lasts, so many items are on their way: they come right after it, or not."""
        self.n_coming += count
        try:
            yield
        finally:
            self.n_coming -= count
            self._schedule_dispatch()

    def _schedule_dispatch(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            # After whatever this turn of the loop starts: items of one moment go together.
            loop.call_soon(loop.call_soon, self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._working) < self._calls:
            if self.n_coming and len(self._waiting) < self._enough and not self._overdue:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._stop_waiting)
                return
            self._start_call()

    def _stop_waiting(self) -> None:
        self._timer, self._overdue = None, True
        self._dispatch()

    def _start_call(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        self._overdue = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [(item, result) for item, result in batch if not result.cancelled()]
        if batch:
            task = asyncio.create_task(self._one_call(batch))
            self._working.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._dispatch()

    async def _one_call(self, batch: "list[tuple[Item, asyncio.Future[Result]]]") -> None:
        try:
            found = await self._send([item for item, _ in batch])
            assert len(found) == len(batch)
        except Exception as error:  # each caller gets it; the next call must still be made
            _fail(batch, error)
            return
        _deliver(batch, found)


def _deliver(batch: "list[tuple[Item, asyncio.Future[Result]]]", found: Sequence[Result]) -> None:
    for (_, result), value in zip(batch, found, strict=True):
        if not result.done():  # its caller may have given up
            result.set_result(value)


def _fail(batch: "list[tuple[Item, asyncio.Future[Result]]]", error: Exception) -> None:
    for _, result in batch:
        if not result.done():
            result.set_exception(error)
