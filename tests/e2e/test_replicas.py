"""Two replicas on one database behind the documented proxy, while one is killed (rows 5, 7, 10 and 15 of docs/reliability.md)."""

from __future__ import annotations

import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.tokens import add_token
from tests.conftest import Server, require
from tests.e2e.proxies import Proxy
from tests.e2e.test_overload import GOODPUT, HEALTH_SECONDS, REFUSAL_SECONDS, Load, costly, overload, quantile
from tests.postgresql import Cluster

KILLS = max(2, int(os.environ.get("OVERREAD_KILLS", "20")) // 10)
IMAGE = {"content-type": "image/png"}
REPLICA_TIMES = 4
"""Of what the replicas can do: each stranger begins with a handshake, and ten times as many would measure the proxy."""
RETRIED = {429, 502, 503, 504}
"""Answers after which a client sends the same again; the proxy names the seconds after which."""
Results = list[tuple[str, str, str]]


class Replicas:
    """Two servers with one database and one state folder, and the proxy before them."""

    def __init__(self, start: Callable[..., Server], package: Path, folder: Path, cluster: Cluster, **settings: str) -> None:
        self._start, self._package, self._state, self._cluster = start, package, folder / "state", cluster
        self._database = cluster.create()
        # Every image becomes an item, which a reader may take
        self._settings = {"OVERREAD_DATABASE_URL": cluster.url(self._database), "OVERREAD_REVIEW_LOSS_PERCENTILE": "0"}
        self._settings |= {"OVERREAD_THREADS": "1"} | settings
        token = add_token(self._state / "tokens.json", "sender", "operator")  # an open service answers no proxy
        self.servers = [self._begin(), self._begin()]
        for server in self.servers:
            server.wait_ready(180)
        (folder / "nginx").mkdir()
        self.authorization = {"authorization": f"Bearer {token}"}
        self.proxy = Proxy(folder / "nginx", *(server.url for server in self.servers))
        self.proxy.client.headers.update(self.authorization)

    def _begin(self, port: int | None = None) -> Server:
        return self._start(self._package, state=self._state, wait=False, port=port, **self._settings)

    def kill(self, number: int) -> None:
        """End a replica at once, the parent and its workers."""
        os.killpg(self.servers[number].process.pid, signal.SIGKILL)
        self.servers[number].process.wait(60)

    def restart(self, number: int) -> None:
        """Start a killed replica again, at the address that the proxy knows."""
        port = self.servers[number].url.rpartition(":")[2]
        self.servers[number] = self._begin(port=int(port))
        self.servers[number].wait_ready(180)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return self._cluster.ask(sql, self._database)

    def send(self, body: bytes, url: str = "") -> httpx.Response:
        """Send an image until it is answered, as a patient client does."""
        return self.until_answered("POST", f"{url}/v1/predict", content=body, headers=IMAGE)

    def until_answered(self, method: str, url: str, **options: Any) -> httpx.Response:
        end = time.monotonic() + 120
        while True:
            try:
                answer = self.proxy.client.request(method, url, **options)
                if answer.status_code not in RETRIED:
                    return answer
                assert int(answer.headers["retry-after"]) >= 1
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, "no answer in two minutes"
            time.sleep(0.1)

    def close(self) -> None:
        self.proxy.close()
        for server in self.servers:
            server.stop()


@pytest.fixture
def make_replicas(start_server: Any, package: Path, tmp_path: Path, postgresql: Cluster) -> Iterator[Callable[..., Replicas]]:
    require("nginx")
    require("openssl")
    made: list[Replicas] = []

    def make(**settings: str) -> Replicas:
        made.append(Replicas(start_server, package, tmp_path, postgresql, **settings))
        return made[-1]

    yield make
    for replicas in made:
        replicas.close()


def check_stored(rows: Results, verdicts: list[str], acknowledged: dict[int, set[str]]) -> None:
    """Compare what callers were told, image by image, with what is stored; raises AssertionError."""
    assert all(len(told) == 1 for told in acknowledged.values()), "an image had two results"
    told = {key for keys in acknowledged.values() for key in keys}
    assert len(told) == len(acknowledged), "two images had one result"
    lost = told - {key for key, *_ in rows}
    assert not lost, f"{len(lost)} of {len(told)} acknowledged results are lost"
    assert len({tuple(pair) for _, *pair in rows}) == len(rows), "an image is stored twice"
    assert sorted(verdicts) == sorted(key for key, *_ in rows), "each result has its one verdict"


def label(replicas: Replicas, result: dict[str, Any], key: str) -> httpx.Response:
    shown = {"image_sha256": result["image_sha256"], "model_sha256": result["model"]["sha256"], "result_id": result["result_id"]}
    body = shown | {"classes": {"normal": True}, "model_was_right": not result["findings"][0]["positive"]}
    return replicas.until_answered("POST", "/v1/labels", json=body, headers={"idempotency-key": key})


def test_what_is_acknowledged_is_stored_once_while_replicas_are_killed(make_replicas: Any, draw: Any) -> None:
    replicas = make_replicas()
    acknowledged: dict[int, set[str]] = {}
    labels: dict[str, set[str]] = {}
    stop, failed = threading.Event(), []

    def load(first: int) -> None:
        try:
            for seed in range(first, 10_000_000, 2):
                if stop.is_set():
                    return
                body = draw(seed, 40)
                for _ in range(2):  # sent again, perhaps to the other replica, it must not be stored again
                    result = replicas.send(body).json()
                    acknowledged.setdefault(seed, set()).add(result["result_id"])
                if seed % 4 < 2:
                    for _ in range(2):
                        labels.setdefault(result["result_id"], set()).add(
                            label(replicas, result, f"key-{seed}").json()["label_id"]
                        )
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=load, args=(first,), daemon=True) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for number in range(KILLS):
        before, end = len(acknowledged), time.monotonic() + 90
        while len(acknowledged) < before + 6 and not failed:
            assert time.monotonic() < end, "no work goes on"
            time.sleep(0.05)
        replicas.kill(number % 2)
        after, end = len(acknowledged), time.monotonic() + 90
        while len(acknowledged) < after + 6 and not failed:  # the other one goes on alone
            assert time.monotonic() < end, "no work goes on while one is dead"
            time.sleep(0.05)
        if number + 1 < KILLS:
            replicas.restart(number % 2)
    stop.set()
    for thread in threads:
        thread.join(150)
    assert not failed
    rows = replicas.ask("SELECT id, image_sha256, model_sha256 FROM results")
    verdicts = [key for (key,) in replicas.ask("SELECT result_id FROM verdicts")]
    check_stored(rows, verdicts, acknowledged)
    stored = replicas.ask("SELECT result_id, label_id FROM labels")
    assert labels
    assert {key: {name} for key, name in stored} == labels, "a label is lost or doubled"
    for planted in ((rows[1:], verdicts[1:]), ([*rows, ("x", *rows[0][1:])], [*verdicts, "x"]), (rows, verdicts[1:])):
        with pytest.raises(AssertionError):
            check_stored(*planted, {**acknowledged})
    with pytest.raises(AssertionError):
        check_stored(rows, verdicts, acknowledged | {0: {"a", "b"}})


def test_the_same_image_at_once_is_one_row_and_an_orderly_stop_answers_all(make_replicas: Any, draw: Any) -> None:
    replicas = make_replicas()
    with ThreadPoolExecutor(20) as pool:
        same = draw(1, 300)
        told = {answer.json()["result_id"] for answer in pool.map(lambda _: replicas.send(same), range(20))}
        assert len(told) == 1
        assert replicas.ask("SELECT count(*) FROM results") == [(1,)]
        replicas.send(draw(2, 300))
        assert replicas.ask("SELECT count(*) FROM results") == [(2,)]  # the control: another image is another row

        large = [costly(number) for number in range(20)]

        answers = [pool.submit(replicas.send, body) for body in large]
        time.sleep(0.5)
        assert not all(answer.done() for answer in answers), "some must be in flight"
        replicas.servers[0].process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 20
        assert replicas.ask("SELECT count(*) FROM results") == [(22,)]
        assert replicas.servers[0].process.wait(60) == 0


@pytest.mark.long
def test_overload_is_answered_fast_while_one_is_killed(make_replicas: Any) -> None:
    replicas = make_replicas(OVERREAD_QUEUE="4")
    body = costly(3)
    rate_of(replicas, body, 1)  # warm
    able = rate_of(replicas, body, 3)
    known = "".join(f"{name}: {value}\r\n" for name, value in (IMAGE | replicas.authorization).items())
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{known}Content-Length: "
    context = ssl.create_default_context(cafile=str(replicas.proxy.certificate))
    threading.Timer(3, replicas.kill, args=(0,)).start()
    request = f"{head}{len(body)}\r\n\r\n".encode() + body
    check_overload(overload(replicas.proxy.port, [request], REPLICA_TIMES * able, 12.0, context), able)


def rate_of(replicas: Replicas, body: bytes, seconds: float) -> float:
    """Return how many images a second both replicas answer four patient callers."""
    end = time.monotonic() + seconds

    def caller(_: int) -> int:
        done = 0
        while time.monotonic() < end:
            done += replicas.send(body).status_code == 200
        return done

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(caller, range(4))) / seconds


def check_overload(load: Load, able: float) -> None:
    """Compare with what is promised; what was in flight in the killed replica is a 502, which says when to come back."""
    assert {answer.status for answer in load.answers} <= {200, *RETRIED}
    refusals = [answer for answer in load.answers if answer.status in RETRIED]
    assert len(refusals) > len(load.answers) / 2, "there was no overload"
    assert all(answer.retry_after for answer in refusals)
    assert quantile([answer.seconds for answer in refusals], 0.99) < REFUSAL_SECONDS
    assert load.rate() > GOODPUT * able
    assert quantile([answer.seconds for answer in load.health if answer.status == 200], 0.9) < HEALTH_SECONDS
