"""Metrics are bounded, and right under several workers (row 18 of docs/reliability.md)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.triage import REASONS
from service.access import ACCESS
from service.arrivals import STATES
from service.items import STATES as ITEM_STATES
from service.openapi import document
from service.origins import MORE_STATIONS, STATIONS_A_SITE
from service.telemetry import METRICS, MISSED, RESCORED, SECONDS, SITE_PERCENTILES, TIMED, counted
from service.wall import IMAGE_TYPES as MEDIA_TYPES
from tests.conftest import ROOT
from tests.killed import kill_worker

MOST, MOST_OF_A_SITE = 300, 40
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "PROPFIND", "TRACE"]


def roam(url: str, requests: int) -> None:
    """Send random paths, methods, models and headers, seeded."""
    rng = random.Random(18)

    def word() -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randint(1, 20)))

    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(requests):
            path = rng.choice(
                [f"/{word()}", f"/v1/{word()}/{word()}", f"/v1/results/{word()}", f"/v1/predict?model={word()}", "/v1/predict"]
            )
            headers = {"content-type": rng.choice(["image/png", f"image/{word()}"]), "user-agent": word(), f"x-{word()}": word()}
            client.request(rng.choice(METHODS), path, headers=headers, content=word().encode())


def visit_everything(server: Any, draw: Any) -> None:
    """Meet every route with every kind of answer that ``roam`` can meet."""
    image = {"content-type": "image/png"}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for method in METHODS:
            for path in ("/nowhere", "/v1/predict"):
                client.request(method, path)
        client.post("/v1/predict", content=draw(1), headers=image)
        client.post("/v1/predict?model=x", content=draw(1), headers=image)
        client.post("/v1/predict", content=b"x", headers=image)
        client.post("/v1/predict", content=b"x", headers={"content-type": "a/b"})


def test_no_request_adds_a_series(server: Any, draw: Any, metrics: Any) -> None:
    visit_everything(server, draw)
    end = time.monotonic() + 60
    while not total(metrics(server), "overread_site_") and time.monotonic() < end:  # what was sent is counted a moment later
        time.sleep(0.2)
    before = set(metrics(server))
    roam(server.url, 1000)
    assert set(metrics(server)) == before
    assert len(before) <= MOST
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert "user-agent" not in text.lower()


def test_even_everything_at_once_stays_below_the_bound() -> None:
    """The most that a site with one model can ever have: each route with each code, each media type, each reason."""
    answers = {counted("none", 404, "not_found")}
    for route, operations in document()["paths"].items():
        for operation in operations.values():
            for status, item in operation["responses"].items():
                told = item["description"]
                codes = told.removeprefix("One of the codes ").rstrip(".").split(", ") if told.startswith("One of") else ["ok"]
                answers |= {counted(route, int(status), code) for code in codes}
    seconds = len(SECONDS) + 3  # and the bucket +Inf, the sum, the count
    kinds = {
        "overread_requests_total": len(answers),
        "overread_request_duration_seconds": len(TIMED) * seconds,
        "overread_stow_instances_total": 2,
        "overread_pacs_instances": len(STATES),
        "overread_items": len(ITEM_STATES),
        "overread_items_missed_total": len(MISSED),
        "overread_items_rescored_total": len(RESCORED),
        "overread_labels_total": 4,
        "overread_decode_seconds": len(MEDIA_TYPES) * seconds,
        "overread_inference_seconds": seconds,
        "overread_store_seconds": seconds,
        "overread_model_info": 2,  # and the one before the last promotion
        "overread_candidate_verdicts_total": 9,
        "overread_candidate_findings_total": 2,
        "overread_candidate_missed_total": 3,
        "overread_verdicts_total": 2 * len(REASONS),  # a reason may stand under review and under refuse
    }
    of_sites = {name for name, (_, labels) in METRICS.items() if "site" in labels}
    single = set(METRICS) - set(kinds) - of_sites
    assert {labels for name, (_, labels) in METRICS.items() if name in single} <= {(), ("model",)}
    assert {route for _, route in ACCESS} >= TIMED
    of_stations = {name for name in of_sites if "station" in METRICS[name][1]}
    of_sites -= of_stations
    # Of the families of a site, two are histograms, one has the verdicts and one the bounds of an estimate
    assert {METRICS[name][1][2:] for name in of_sites} == {(), ("verdict",), ("bound",)}
    a_site = 2 * (len(SITE_PERCENTILES) + 3) + 3 + 3 + len(of_sites) - 4
    # Of those of a station, one has the verdicts and two the scores
    assert {METRICS[name][1][3:] for name in of_stations} == {(), ("verdict",), ("score",)}
    a_station = 3 + 2 * 2 + len(of_stations) - 3
    without = sum(kinds.values()) + len(single) + a_site + MORE_STATIONS * a_station  # scans without a site are always there
    assert without <= MOST
    assert a_site + STATIONS_A_SITE * a_station <= MOST_OF_A_SITE
    # What the page says of it
    of_model = {name for name in single if METRICS[name][1] == ("model",)}
    a_model = len(of_model) + sum(number for name, number in kinds.items() if "model" in METRICS[name][1])
    page = (ROOT / "docs" / "metrics.md").read_text()
    for told in (f": {without - a_site - a_station} that have", f" {a_site} of each site", f" {a_station} of each station"):
        assert told in page
    assert f"sites and stations, and {a_model} that have no site" in page


def total(series: dict[str, float], name: str) -> float:
    return sum(value for key, value in series.items() if key.startswith(name))


@pytest.fixture(scope="module")
def pair(start_server: Callable[..., Any], package: Path) -> Any:
    """A server of two workers, each of one thread."""
    return start_server(package, workers=2, OVERREAD_THREADS="1")


def test_the_comparison_sees_a_new_series(pair: Any, draw: Any, metrics: Any) -> None:
    before = set(metrics(pair))
    httpx.post(f"{pair.url}/v1/predict?x=1", timeout=60)
    httpx.post(f"{pair.url}/v1/predict", content=draw(1, 20), headers={"content-type": "image/png"}, timeout=60)
    assert set(metrics(pair)) > before


def test_counts_are_summed_over_workers(pair: Any, draw: Any, metrics: Any, predict: Any) -> None:
    assert len(pair.workers()) == 2
    before = total(metrics(pair), 'overread_requests_total{code="ok",route="/v1/predict"')
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: predict(pair, draw(seed)), range(60)))
    assert {answer.status_code for answer in answers} == {200}
    for _ in range(10):  # whichever worker answers
        series = metrics(pair)
        assert total(series, 'overread_requests_total{code="ok",route="/v1/predict"') - before == 60
        assert total(series, "overread_inference_seconds_count") == 60
        assert total(series, "overread_verdicts_total") >= 60
        assert total(series, "overread_model_info") == 1
        assert series["overread_queue_depth"] == 0


def test_the_same_image_at_once_is_one_row(pair: Any, draw: Any, predict: Any, ask: Any) -> None:
    before = ask(pair.state, "SELECT count(*) FROM results")[0][0]
    with ThreadPoolExecutor(20) as pool:
        answers = [answer.json() for answer in pool.map(lambda _: predict(pair, draw(999)), range(20))]
    assert all(answer == answers[0] for answer in answers)
    assert ask(pair.state, "SELECT count(*) FROM results")[0][0] == before + 1
    key = answers[0]["result_id"]
    assert ask(pair.state, f"SELECT count(*) FROM verdicts WHERE result_id = '{key}'") == [(1,)]


def test_gauges_of_a_killed_worker_vanish(pair: Any, draw: Any, metrics: Any, predict: Any) -> None:
    counted = total(metrics(pair), "overread_inference_seconds_count")
    of = {pid: sorted(Path(pair.state).rglob(f"gauge_live*_{pid}.db")) for pid in pair.workers()}
    assert all(of.values()), "each worker keeps its gauges in files of its own"
    files = of[kill_worker(pair)]
    end = time.monotonic() + 60
    while len(pair.workers()) < 2:
        assert time.monotonic() < end, "no other worker starts"
        time.sleep(0.1)
    pair.wait_ready(60)
    series = metrics(pair)
    assert series["overread_queue_depth"] == 0
    assert total(series, "overread_model_info") == 1
    assert not any(file.exists() for file in files)
    # What it had counted stays counted.
    assert total(series, "overread_inference_seconds_count") == counted
    assert predict(pair, draw(5)).status_code == 200
