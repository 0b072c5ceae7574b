"""Whatever waits when the predictor becomes free is predicted together."""

import asyncio
import threading

import pytest

from braintumor_ray.serving.batching import Batcher, Gatherer


def test_a_lone_request_goes_at_once_and_those_that_wait_go_together():
    sizes, free = [], threading.Event()

    def run(items, alone):
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
    def run(items, alone):
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

    def run(items, alone):
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


def test_one_batch_alone_may_use_every_core_and_two_at_a_time_share():
    """A lone request: alone. The rest start beside it, in a thread of their own."""
    seen, free = [], threading.Event()

    def run(items, alone):
        seen.append((list(items), alone, threading.get_ident()))
        free.wait(5)
        return list(items)

    async def scene():
        batcher = Batcher(run, max_size=4, lanes=2)
        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(batcher(number)))
            while len(seen) < min(number + 1, 2):  # the others wait
                await asyncio.sleep(0.01)
        free.set()
        await asyncio.gather(*tasks)
        return await batcher(9)

    assert asyncio.run(scene()) == 9
    assert [(items, alone) for items, alone, _ in seen[:2]] == [([0], True), ([1], False)]
    assert seen[2][0] == [2, 3]  # alone or not: whichever thread was free first takes them
    assert [(items, alone) for items, alone, _ in seen[3:]] == [([9], True)]
    assert seen[0][2] != seen[1][2]


def test_threads_are_warmed_up_as_they_will_work():
    """Only the first is ever alone."""
    warmed, predicted = [], set()

    def run(items, alone):
        warmed.append((threading.get_ident(), alone))
        predicted.add((threading.get_ident(), alone))
        return list(items)

    batcher = Batcher(run, max_size=2, lanes=2)
    batcher.warm_up([1])
    first, second = warmed[0][0], warmed[2][0]
    assert first != second
    assert warmed == [(first, True), (first, False), (second, False)]
    predicted.clear()

    async def scene():
        return await asyncio.gather(*(batcher(i) for i in range(6)))

    assert asyncio.run(scene()) == list(range(6))
    assert predicted <= set(warmed)


def test_beside_another_batch_a_small_one_waits_for_company_and_a_large_one_shares():
    sizes, free = [], threading.Event()

    def run(items, alone):
        free.wait(5)
        return list(items)

    async def scene():
        batcher = Batcher(run, max_size=8, observe=sizes.append, lanes=2)
        tasks = [asyncio.create_task(batcher(0))]
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(batcher(1)))
        await asyncio.sleep(0)  # the second lane has seen it, and waits
        tasks += [asyncio.create_task(batcher(i)) for i in range(2, 12)]
        await asyncio.sleep(0.05)
        free.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(scene()) == list(range(12))
    assert sizes[:2] == [1, 4]  # of 11 that wait, half of the largest batch
    assert sum(sizes) == 12


def gathered(scene, **options):
    """Calls as they were made, and what a scene returns.

    A scene gets the gatherer, the calls so far, and an event that lets calls end.
    """
    calls = []

    async def run():
        free = asyncio.Event()

        async def send(items):
            calls.append(list(items))
            await free.wait()
            if "bad" in items:
                raise ValueError("bad")
            return [item * 2 for item in items]

        gatherer = Gatherer(send, **{"enough": 4, "most": 8, "calls": 1} | options)
        return await scene(gatherer, calls, free)

    return calls, asyncio.run(run())


async def ask(gatherer, *items):
    tasks = [asyncio.create_task(gatherer(item)) for item in items]
    await asyncio.sleep(0.002)
    return tasks


def test_items_of_one_moment_and_those_that_wait_for_a_call_go_together():
    async def scene(gatherer, calls, free):
        tasks = await ask(gatherer, 1, 2)
        tasks += await ask(gatherer, 3)
        tasks += await ask(gatherer, 4)
        free.set()
        return await asyncio.gather(*tasks)

    calls, results = gathered(scene)
    assert calls == [[1, 2], [3, 4]]
    assert results == [2, 4, 6, 8]


def test_no_call_has_more_than_it_may_and_no_more_calls_are_made_than_may_be():
    async def scene(gatherer, calls, free):
        tasks = await ask(gatherer, *range(10))
        assert len(calls) == 2
        free.set()
        return await asyncio.gather(*tasks)

    calls, results = gathered(scene, most=3, calls=2)
    assert calls == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert results == [2 * item for item in range(10)]


def test_items_wait_for_those_that_are_coming_but_not_for_long():
    async def scene(gatherer, calls, free):
        free.set()
        with gatherer.coming(2):
            early = (await ask(gatherer, 1))[0]
            assert not early.done()
        both = [early, *(await ask(gatherer, 2))]  # it came right after
        with gatherer.coming(1):
            late = asyncio.create_task(gatherer(3))
            found = await asyncio.wait_for(late, 1)  # though nothing came
        return [*(await asyncio.gather(*both)), found]

    calls, results = gathered(scene)
    assert results == [2, 4, 6]
    assert calls[-1] == [3]
    assert [item for call in calls for item in call] == [1, 2, 3]


def test_enough_items_do_not_wait_for_more():
    async def scene(gatherer, calls, free):
        free.set()
        with gatherer.coming(5):
            return await asyncio.gather(*(gatherer(item) for item in range(4)))

    calls, _ = gathered(scene)
    assert calls == [[0, 1, 2, 3]]


def test_a_call_that_fails_fails_its_items_and_the_next_is_made():
    async def scene(gatherer, calls, free):
        free.set()
        first = await asyncio.gather(gatherer("bad"), gatherer("x"), return_exceptions=True)
        return [*first, await gatherer("y")]

    _, (bad, beside, after) = gathered(scene)
    assert isinstance(bad, ValueError)
    assert isinstance(beside, ValueError)
    assert after == "yy"


def test_an_item_that_was_given_up_is_not_sent():
    async def scene(gatherer, calls, free):
        first = await ask(gatherer, 1)
        gone, kept = await ask(gatherer, 2, 3)
        gone.cancel()
        free.set()
        return await asyncio.gather(*first, kept)

    calls, results = gathered(scene)
    assert calls == [[1], [3]]
    assert results == [2, 6]
