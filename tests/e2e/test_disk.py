"""A failing disk loses nothing (row 6 of docs/reliability.md, in its light form: files that may not grow)."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx


def test_a_disk_that_takes_nothing_is_told_and_recovers(
    start_server: Callable[..., Any], package: Path, draw: Any, predict: Any, ask: Any
) -> None:
    server = start_server(package, OVERREAD_THREADS="1")
    (worker,) = server.workers()
    acknowledged = {predict(server, draw(seed)).json()["result_id"] for seed in range(5)}
    unlimited = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    for room in (0, 4096, 50_000):  # nothing fits; a part of a page log fits
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (room, unlimited[1]))
        refused = [predict(server, draw(1000 + room + number)) for number in range(5)]
        assert {response.status_code for response in refused} <= {503, 507}
        for response in refused:
            assert response.json()["code"] in {"storage_full", "storage_unavailable"}
            assert response.headers["retry-after"]
        assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200
        reads = [httpx.get(f"{server.url}/v1/results/{key}", timeout=60) for key in acknowledged]
        assert {response.status_code for response in reads} <= {200, 503, 507}  # what cannot be noted is not shown
        assert all(response.json()["code"] in {"storage_full", "storage_unavailable"} for response in reads if response.is_error)
        # The control: without the limit, the same images are stored.
        resource.prlimit(worker, resource.RLIMIT_FSIZE, unlimited)
        again = [predict(server, draw(1000 + room + number)) for number in range(5)]
        assert {response.status_code for response in again} == {200}
        acknowledged |= {response.json()["result_id"] for response in again}
        assert {httpx.get(f"{server.url}/v1/results/{key}", timeout=60).status_code for key in acknowledged} == {200}
    assert server.workers() == [worker], "no worker died of it"
    assert ask(server.state, "PRAGMA integrity_check") == [("ok",)]
    assert {key for (key,) in ask(server.state, "SELECT id FROM results")} == acknowledged
