"""Admission: a bounded queue, a deadline, and slots that are always given back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from starlette.types import Message

from models.errors import Refusal
from service.analysis import Site
from service.api import Api
from service.engine import Engine
from service.heads import MAX_UNREAD_BYTES
from service.telemetry import Telemetry


def depth(telemetry: Telemetry) -> float:
    return float(telemetry.exposition()[0].decode().split("\noverread_queue_depth ")[1].split("\n")[0])


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def engine(telemetry: Telemetry) -> Iterator[Engine]:
    engine = Engine(threads=1, queue=2, deadline_seconds=30, telemetry=telemetry)
    yield engine
    engine.close()


def test_work_runs_in_a_thread(engine: Engine) -> None:
    assert asyncio.run(engine.run(threading.get_ident)) != threading.get_ident()


def test_a_full_queue_refuses_at_once(engine: Engine, telemetry: Telemetry) -> None:
    release = threading.Event()

    async def scene() -> None:
        admitted = [asyncio.create_task(engine.run(release.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        assert depth(telemetry) == 2
        for _ in range(50):
            with pytest.raises(Refusal) as caught:
                engine.run(lambda: None).send(None)  # in its first step: it waits for nothing at all
            assert caught.value.code == "overloaded"
        release.set()
        assert await asyncio.gather(*admitted) == [True] * 3
        assert await engine.run(lambda: "again") == "again"

    asyncio.run(scene())
    assert depth(telemetry) == 0


def test_a_queue_of_none_still_works() -> None:
    engine = Engine(threads=1, queue=0, deadline_seconds=30, telemetry=Telemetry())

    async def scene() -> None:
        for number in range(20):
            assert await engine.run(lambda number=number: number) == number  # type: ignore[misc]

    asyncio.run(scene())
    engine.close()


def test_work_that_raises_gives_its_slot_back(engine: Engine) -> None:
    def fail() -> None:
        raise KeyError("planted")

    async def scene() -> None:
        for _ in range(20):
            with pytest.raises(KeyError):
                await engine.run(fail)
        assert await engine.run(lambda: 1) == 1

    asyncio.run(scene())


async def busy(engine: Engine, release: threading.Event) -> asyncio.Task[bool]:
    """Let the engine's one thread begin to wait for an event; return what waits for that."""
    begun = threading.Event()
    first = asyncio.create_task(engine.run(lambda: (begun.set(), release.wait())[1]))  # type: ignore[func-returns-value]
    assert await asyncio.to_thread(begun.wait, 60)
    return first


def test_work_that_waited_too_long_is_not_begun() -> None:
    engine = Engine(threads=1, queue=2, deadline_seconds=60, telemetry=Telemetry())
    release, begun = threading.Event(), []

    async def scene() -> None:
        first = await busy(engine, release)
        engine._deadline = 0.05  # of those alone that find the thread taken: a slow machine must not refuse the others
        with pytest.raises(Refusal) as caught:
            await engine.run(lambda: begun.append(1))
        assert caught.value.code == "deadline_exceeded"
        engine._deadline = 60
        release.set()
        await first
        await engine.run(lambda: begun.append(2))

    asyncio.run(scene())
    engine.close()
    assert begun == [2]


def test_who_waits_is_refused_at_the_deadline_not_when_a_thread_is_free() -> None:
    engine = Engine(threads=1, queue=4, deadline_seconds=60, telemetry=Telemetry())
    release, begun = threading.Event(), []

    async def scene() -> None:
        first = await busy(engine, release)
        engine._deadline = 0.2
        started = time.perf_counter()
        for run in (engine.run(lambda: begun.append(1)), engine.run_and_commit(lambda: begun.append(2), begun.append)):
            with pytest.raises(Refusal) as caught:
                await run
            assert caught.value.code == "deadline_exceeded"
        assert time.perf_counter() - started < 30
        assert not first.done()  # control: the thread was never free, and work that has begun is not given up
        engine._deadline = 60
        release.set()
        assert await first
        assert await engine.run(lambda: "its slots were given back") == "its slots were given back"

    asyncio.run(scene())
    engine.close()
    assert begun == []


def test_a_cancelled_caller_neither_keeps_nor_frees_a_slot_too_early(engine: Engine, telemetry: Telemetry) -> None:
    release = threading.Event()
    begun: list[str] = []

    def work(name: str) -> None:
        begun.append(name)
        release.wait()

    async def scene() -> None:
        tasks = [asyncio.create_task(engine.run(lambda name=name: work(name))) for name in "abc"]  # type: ignore[misc]
        while not begun:
            await asyncio.sleep(0.01)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        # b had not begun, so its slot is free at once; a is still being worked on, so its slot is not.
        assert depth(telemetry) == 1
        more = asyncio.create_task(engine.run(lambda: "more"))
        await asyncio.sleep(0)
        with pytest.raises(Refusal):
            await engine.run(lambda: None)
        release.set()
        assert await more == "more"
        await tasks[2]

    asyncio.run(scene())
    assert begun == ["a", "c"]
    assert depth(telemetry) == 0


def test_close_finishes_what_was_admitted(telemetry: Telemetry) -> None:
    engine = Engine(threads=1, queue=5, deadline_seconds=30, telemetry=telemetry)
    done: list[int] = []

    async def scene() -> None:
        tasks = [asyncio.create_task(engine.run(lambda i=i: (time.sleep(0.02), done.append(i)))) for i in range(5)]  # type: ignore[misc]
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close)
        await asyncio.gather(*tasks)

    asyncio.run(scene())
    assert done == list(range(5))


@pytest.mark.parametrize(("length", "told"), [("1000", True), (str(MAX_UNREAD_BYTES + 1), False), (None, False)])
def test_who_finds_no_place_is_told_before_the_body_is_received(
    make_site: Callable[..., Site], length: str | None, told: bool
) -> None:
    """A body that is longer than what may stay unread, or says nothing of its length, is received first."""
    api = Api()
    api.site = site = make_site(queue=0)
    release, answers = threading.Event(), []
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"image/png")]
    headers += [] if length is None else [(b"content-length", length.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": headers, "scheme": "http"}

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("nothing is ever sent")

    async def send(message: Message) -> None:
        answers.append(message)

    async def scene() -> None:
        admitted = asyncio.create_task(site.engine.run(release.wait))
        await asyncio.sleep(0)
        asked = asyncio.create_task(api(scope | {"server": ("127.0.0.1", 3000)}, receive, send))
        await asyncio.wait([asked], timeout=60 if told else 0.2)
        assert asked.done() is told
        asked.cancel()
        release.set()
        await admitted

    asyncio.run(scene())
    assert [message["status"] for message in answers if "status" in message] == ([503] if told else [])
