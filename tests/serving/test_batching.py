"""Whatever waits when the predictor becomes free is predicted together."""

import asyncio
import threading

import pytest

from braintumor_ray.serving.batching import Batcher


def test_a_lone_request_goes_at_once_and_those_that_wait_go_together():
    sizes, free = [], threading.Event()

    def run(items):
        free.wait(5)
        return [item * 2 for item in items]

    async def scene():
        batcher = Batcher(run, max_size=4, observe=sizes.append)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(batcher(i)) for i in range(1, 7)]
        await asyncio.sleep(0.05)
        free.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(scene()) == [0, 2, 4, 6, 8, 10, 12]
    assert sizes == [1, 4, 2]


def test_a_failing_batch_fails_its_members_only():
    def run(items):
        if "bad" in items:
            raise ValueError("bad")
        return list(items)

    async def scene():
        batcher = Batcher(run, max_size=1)
        return await asyncio.gather(batcher("bad"), batcher("good"), return_exceptions=True)

    failed, good = asyncio.run(scene())
    assert isinstance(failed, ValueError)
    assert good == "good"


def test_a_request_that_was_given_up_is_not_predicted():
    seen = []

    def run(items):
        seen.extend(items)
        return list(items)

    async def scene():
        batcher = Batcher(run, max_size=8)
        waiting = asyncio.create_task(batcher("gone"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await batcher("here")

    assert asyncio.run(scene()) == "here"
    assert seen == ["here"]


def test_the_thread_that_predicts_is_the_one_that_was_prepared():
    prepared, predicted = [], []

    def run(items):
        predicted.append(threading.get_ident())
        return list(items)

    batcher = Batcher(run, max_size=2, start=lambda: prepared.append(threading.get_ident()))
    batcher.warm_up([1])
    assert asyncio.run(batcher(1)) == 1
    assert predicted == prepared * 2
    assert prepared[0] != threading.get_ident()
