"""The thread that commits: a core goes on computing meanwhile, and a slot is taken until the commit has ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from models.errors import Refusal
from service.engine import Engine
from service.telemetry import Telemetry


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(threads=1, queue=1, deadline_seconds=30, telemetry=Telemetry())
    yield engine
    engine.close()


def test_commit_gets_the_work_s_result_in_another_thread(engine: Engine) -> None:
    worked, committed = asyncio.run(engine.run_and_commit(threading.get_ident, lambda ident: (ident, threading.get_ident())))
    assert len({worked, committed, threading.get_ident()}) == 3


def test_the_next_image_is_computed_while_one_is_committed(engine: Engine) -> None:
    computed = threading.Event()

    async def two() -> list[bool]:
        first = asyncio.create_task(engine.run_and_commit(lambda: None, lambda _: computed.wait(60)))
        second = asyncio.create_task(engine.run_and_commit(lambda: computed.set(), lambda _: True))
        return await asyncio.gather(first, second)

    assert asyncio.run(two()) == [True, True]


def test_commits_do_not_overlap(engine: Engine) -> None:
    inside, most = 0, 0

    def commit(_: None) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1

    async def two() -> None:
        await asyncio.gather(*(engine.run_and_commit(lambda: None, commit) for _ in range(2)))

    asyncio.run(two())
    assert most == 1


def test_a_slot_is_taken_until_the_commit_has_ended(engine: Engine) -> None:
    release = threading.Event()

    async def three() -> None:
        tasks = [asyncio.create_task(engine.run_and_commit(lambda: None, lambda _: release.wait(60))) for _ in range(2)]
        await asyncio.sleep(0.1)  # the work of both has ended
        with pytest.raises(Refusal) as refused:
            await engine.run(lambda: None)
        assert refused.value.code == "overloaded"
        release.set()
        await asyncio.gather(*tasks)
        assert await engine.run(lambda: "again") == "again"

    asyncio.run(three())


@pytest.mark.parametrize("where", ["work", "commit"])
def test_a_failure_reaches_the_caller_and_gives_its_slot_back(engine: Engine, where: str) -> None:
    def work() -> None:
        if where == "work":
            raise Refusal("not_decodable")

    def commit(_: None) -> None:
        raise Refusal("storage_full")

    async def four() -> None:
        for _ in range(4):  # twice as many as there are slots
            with pytest.raises(Refusal) as refused:
                await engine.run_and_commit(work, commit)
            assert refused.value.code == ("not_decodable" if where == "work" else "storage_full")

    asyncio.run(four())


def test_a_caller_that_stops_waiting_does_not_stop_its_commit(engine: Engine) -> None:
    begun, release, committed = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(60)

    async def vanish() -> None:
        task = asyncio.create_task(engine.run_and_commit(work, lambda _: committed.set()))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert await asyncio.to_thread(committed.wait, 60)
        while engine._admitted:  # the slot is given back a moment after the commit
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(vanish(), 120))


def test_close_finishes_commits() -> None:
    engine = Engine(threads=1, queue=5, deadline_seconds=30, telemetry=Telemetry())
    done: list[int] = []

    def commit(number: int) -> None:
        time.sleep(0.02)
        done.append(number)

    async def submit_and_close() -> None:
        tasks = [asyncio.create_task(engine.run_and_commit(lambda i=i: i, commit)) for i in range(5)]  # type: ignore[misc]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(engine.close)
        assert done == [0, 1, 2, 3, 4]
        await asyncio.gather(*tasks)

    asyncio.run(submit_and_close())
