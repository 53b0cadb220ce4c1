"""An answered result survives kill -9, and an orderly stop answers all it took (rows 5 and 10 of docs/reliability.md)."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clocks import still_clock
from tests.killed import kill_worker

KILLS = int(os.environ.get("OVERREAD_KILLS", "20"))


def check_stored(database: Path, acknowledged: set[str]) -> None:
    """Compare what callers were told with what is stored; raises AssertionError."""
    connection = sqlite3.connect(database, timeout=30)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute("SELECT id, image_sha256, model_sha256 FROM results").fetchall()
        verdicts = [key for (key,) in connection.execute("SELECT result_id FROM verdicts")]
    finally:
        connection.close()
    lost = acknowledged - {key for key, *_ in rows}
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged results are lost"
    assert len({tuple(pair) for _, *pair in rows}) == len(rows), "an image is stored twice"
    assert sorted(verdicts) == sorted(key for key, *_ in rows), "each result has its one verdict"


class Load:
    """Sends new images without pause from two threads, and keeps the ids of the results that were answered.

    ``settled`` are those whose image is not sent again.
    """

    def __init__(self, draw: Callable[..., bytes]) -> None:
        self.acknowledged: set[str] = set()
        self.settled: set[str] = set()
        self.url = ""
        self._draw = draw
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(first,), daemon=True) for first in (0, 1)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _send(self, first: int) -> None:
        seed = first
        while not self._end.is_set():
            seed += 2
            body = self._draw(seed, 40)
            answered = []
            for _ in range(2):  # every image twice: sent again, it must not be stored again
                try:
                    response = httpx.post(
                        f"{self.url}/v1/predict", content=body, headers={"content-type": "image/png"}, timeout=10
                    )
                except httpx.TransportError:
                    time.sleep(0.05)
                    continue
                if response.status_code == 200:
                    answered.append(response.json()["result_id"])
                    self.acknowledged.add(answered[0])
            if len(answered) == 2:
                self.settled.add(answered[0])

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)


def wait_for(condition: Callable[[], Any], otherwise: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(0.02)


def test_no_acknowledged_result_is_lost(start_server: Callable[..., Any], package: Path, tmp_path: Path, draw: Any) -> None:
    state = tmp_path / "state"
    load = Load(draw)
    server = start_server(package, workers=2, state=state, OVERREAD_THREADS="1")
    load.url = server.url
    load.start()
    for number in range(KILLS):
        answered = len(load.acknowledged)
        wait_for(lambda before=answered: len(load.acknowledged) > before + 2, "no work goes on")  # type: ignore[misc]
        if number % 10 == 9:  # the parent; its workers follow it
            workers = server.workers()
            server.process.kill()
            server.process.wait(60)
            server = start_server(package, workers=2, state=state, OVERREAD_THREADS="1")
            load.url = server.url
            wait_for(lambda gone=workers: not any(Path(f"/proc/{pid}").exists() for pid in gone), "a worker stays behind")  # type: ignore[misc]
        else:
            kill_worker(server)
    server.wait_ready()
    load.stop()
    assert len(load.acknowledged) > 2 * KILLS
    assert server.stop() == 0
    check_stored(state / "overread.sqlite3", load.acknowledged)
    _check_that_losses_are_seen(state / "overread.sqlite3", load.acknowledged)


def _check_that_losses_are_seen(database: Path, acknowledged: set[str]) -> None:
    for plant in (
        "DELETE FROM results WHERE rowid = (SELECT max(rowid) FROM results)",
        "DELETE FROM verdicts WHERE id = (SELECT max(id) FROM verdicts)",
        "CREATE TEMP TABLE one AS SELECT * FROM results LIMIT 1; UPDATE one SET id = 'x'; INSERT INTO results SELECT * FROM one",
    ):
        copy = database.with_name("planted.sqlite3")
        shutil.copy(database, copy)
        connection = sqlite3.connect(copy)
        connection.executescript(plant)
        connection.commit()
        connection.close()
        with pytest.raises(AssertionError):
            check_stored(copy, acknowledged)


def in_flight(server: Any, bodies: list[bytes], end: Callable[[], Any]) -> list[int]:
    """Send all bodies at once, call ``end`` when all were admitted, and return the statuses (0: no answer)."""

    def one(body: bytes) -> int:
        try:
            return httpx.post(
                f"{server.url}/v1/predict", content=body, headers={"content-type": "image/png"}, timeout=60
            ).status_code
        except httpx.TransportError:
            return 0

    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = [pool.submit(one, body) for body in bodies]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            depth = [
                line
                for line in httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
                if line.startswith("overread_queue_depth ")
            ]
            if depth and float(depth[0].split()[1]) + sum(answer.done() for answer in answers) >= len(bodies) - 1:
                break
        assert not all(answer.done() for answer in answers), "some must be in flight"
        end()
        return [answer.result() for answer in answers]


@pytest.fixture(scope="module")
def large(draw: Callable[..., bytes]) -> list[bytes]:
    """Twenty images that take a while; drawing one and ending its file differently is quicker than drawing twenty."""
    image = draw(1, 2500)
    return [image + bytes([number]) for number in range(20)]


def test_an_orderly_stop_answers_what_is_in_flight(start_server: Callable[..., Any], package: Path, large: list[bytes]) -> None:
    server = start_server(package, OVERREAD_THREADS="1")
    started = time.monotonic()
    assert in_flight(server, large, lambda: server.process.send_signal(signal.SIGTERM)) == [200] * 20
    server.process.wait(60)
    assert time.monotonic() - started < 40
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()


def test_an_abrupt_stop_does_not(start_server: Callable[..., Any], package: Path, large: list[bytes]) -> None:
    """The control: the same scene, where the process is killed."""
    server = start_server(package, OVERREAD_THREADS="1")
    (worker,) = server.workers()
    assert 0 in in_flight(server, large, lambda: os.kill(worker, signal.SIGKILL))


def test_a_killed_worker_is_replaced_in_time(start_server: Callable[..., Any], package: Path, draw: Any) -> None:
    server = start_server(package)
    for seed in range(2):
        (before,) = server.workers()
        with still_clock() as clock:
            started = clock()
            victim = kill_worker(server)
            server.wait_ready(60)
            assert clock() - started < 30  # twice what is promised: tests share the machine
        assert victim == before, "the control: the only one was gone"
        assert server.workers() != [victim]
        answer = httpx.post(f"{server.url}/v1/predict", content=draw(seed), headers={"content-type": "image/png"}, timeout=60)
        assert answer.status_code == 200
