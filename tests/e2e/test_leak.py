"""No request leaves anything behind: memory, descriptors, threads, files (row 8 of docs/reliability.md)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from scipy import stats

LONG = int(os.environ.get("OVERREAD_LEAK_REQUESTS", "0"))
REQUESTS = LONG or 2000
MEGABYTES = 50 if LONG else 20
WARM = LONG // 100 or 500
"""Requests before the count: what is made once, and what allocators keep."""
ROUNDS = 20 if LONG else 5
IMAGE = {"content-type": "image/png"}

PLANT = """
import os, sys, tempfile, threading, time

def plant():
    while not hasattr(sys.modules.get("service.api"), "HANDLERS"):
        time.sleep(0.01)
    api, kept = sys.modules["service.api"].Api, []
    answer = api._answer

    async def leaky(self, request, *rest):
        if request.headers.get("x-leak"):
            kept.append((bytearray(b"x" * 200_000), os.dup(2), tempfile.mkstemp()))
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        return await answer(self, request, *rest)

    api._answer = leaky

threading.Thread(target=plant, daemon=True).start()
"""
"""Put before everything that a server imports: each request that asks for it leaves something of each kind behind."""


@dataclass
class Held:
    """What a server's processes hold."""

    megabytes: float
    descriptors: int
    threads: int
    files: int

    @classmethod
    def by(cls, server: Any, temporary: Path) -> Held:
        processes = [psutil.Process(pid) for pid in (server.process.pid, *server.workers())]
        return cls(
            sum(process.memory_full_info().uss for process in processes) / 1e6,
            sum(process.num_fds() for process in processes),
            sum(process.num_threads() for process in processes),
            sum(path.is_file() for folder in (temporary, server.state) for path in folder.rglob("*")),
        )


def check(before: Held, after: list[Held], requests: int) -> None:
    """Compare what is held before and after requests; raises AssertionError with each thing that has grown."""
    last = after[-1]
    grown = []
    if last.megabytes - before.megabytes > MEGABYTES:
        grown.append(f"memory by {last.megabytes - before.megabytes:.1f} MB")
    # A connection that is being closed, a thread of a pool that was not needed before
    for name, slack in (("descriptors", 4), ("threads", 4), ("files", 2)):
        if getattr(last, name) - getattr(before, name) > slack:
            grown.append(f"{name} by {getattr(last, name) - getattr(before, name)}")
    if LONG:
        half = after[len(after) // 2 :]  # by then the caches are full
        line = stats.linregress(np.arange(len(half)), [held.megabytes for held in half])
        margin = stats.t.ppf(0.975, len(half) - 2) * line.stderr
        if line.slope - margin > 0:
            grown.append(f"memory by {line.slope:.3f} MB every {requests // len(after)} requests")
    assert not grown, "; ".join(grown)


class Mixture:
    """Sends what hospitals send, mixed by a seed, and a tenth that is malformed."""

    def __init__(self, server: Any, draw: Callable[..., bytes], **headers: str) -> None:
        self._client = httpx.Client(base_url=server.url, headers=headers, timeout=60)
        self._rng = np.random.default_rng(8)
        self._draw = draw
        self._images = [draw(seed, 40) for seed in range(30)]
        self._sent = 0
        self._result = ""

    def send(self, count: int) -> None:
        for _ in range(count):
            self._sent += 1
            kind = self._rng.choice(5, p=(0.4, 0.2, 0.2, 0.1, 0.1))
            (self._new, self._again, self._read, self._look, self._malformed)[kind]()

    def _predict(self, body: bytes, **options: Any) -> httpx.Response:
        return self._client.post("/v1/predict", content=body, headers=IMAGE, **options)

    def _new(self) -> None:
        answer = self._predict(self._draw(1000 + self._sent, 40))
        assert answer.status_code == 200
        self._result = answer.json()["result_id"]

    def _again(self) -> None:
        assert self._predict(self._images[self._sent % 30]).status_code == 200

    def _read(self) -> None:
        self._client.get(f"/v1/results/{self._result}")

    def _look(self) -> None:
        paths = ("/metrics", "/v1/models", "/v1/worklist", "/readyz", "/ui")
        assert self._client.get(paths[self._sent % len(paths)]).status_code == 200

    def _malformed(self) -> None:
        image = self._images[self._sent % 30]
        form = {"image": ("x.png", image, "image/png"), "more": ("y", b"y")}
        answer = (
            lambda: self._predict(image[: len(image) // 2]),
            lambda: self._predict(b"\x89PNG" + self._rng.bytes(200)),
            lambda: self._predict(image, params={"model": "nobody"}),
            lambda: self._client.post("/v1/predict", files=form),
            lambda: self._client.post("/v1/dicomweb/studies", content=image, headers=IMAGE),
            lambda: self._client.request("PROPFIND", "/v1/nothing"),
        )[self._sent % 6]()
        assert 400 <= answer.status_code < 500

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def begin(start_server: Any, package: Path, tmp_path: Path, draw: Any) -> Any:
    """Return a function that starts a server, and says what it holds and who sends to it."""

    def start(**settings: str) -> Any:
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        # Nothing becomes an item: kept pixels are held on purpose, for thirty days
        held = {"OVERREAD_KEEP_MAX_BYTES": "0", "OVERREAD_THREADS": "1", "TMPDIR": str(temporary)}
        server = start_server(package, **held | settings)
        return server, lambda: Held.by(server, temporary)

    return start


def test_nothing_grows(begin: Any, draw: Any) -> None:
    server, held = begin()
    mixture = Mixture(server, draw)
    mixture.send(WARM)
    before, after = held(), []
    for _ in range(ROUNDS):
        mixture.send(REQUESTS // ROUNDS)
        after.append(held())
    mixture.close()
    check(before, after, REQUESTS)
    assert "Traceback" not in server.log.read_text()


def test_a_planted_leak_is_seen(begin: Any, draw: Any, tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "sitecustomize.py").write_text(PLANT)
    server, held = begin(PYTHONPATH=str(tmp_path / "planted"))
    mixture, leaky = Mixture(server, draw), Mixture(server, draw, **{"x-leak": "yes"})
    mixture.send(20)
    before = held()
    leaky.send(MEGABYTES * 7)
    after = held()
    mixture.close()
    leaky.close()
    with pytest.raises(AssertionError) as caught:
        check(before, [after] * 6, 6)
    for name in ("memory", "descriptors", "threads", "files"):
        assert f"{name} by" in str(caught.value)
