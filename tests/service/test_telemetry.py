"""Metrics and log lines: closed sets only."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.analysis import Site
from service.telemetry import METRICS, Telemetry, logger
from tests.service.packages import settled, write
from tests.service.scans import scan

CANARY = "CANARY^PATIENT"


def test_the_metrics_are_those_of_the_table(
    make_site: Callable[..., Site], connect: Callable[..., Any], draw: Any, desk: Any, tmp_path: Path
) -> None:
    desk.try_beside(write(tmp_path / "second", "1.1.0"), "")
    site = make_site(stations=("CT1",))
    caller = connect(site)
    caller.predict(draw(1))
    caller.predict(draw(1))
    caller.predict(scan(1, StationName="CT1"), "application/dicom")
    caller.get("/nowhere")
    study = 'multipart/related; type="application/dicom"; boundary=edge'
    headers = {"content-type": study}
    caller.request("POST", "/v1/dicomweb/studies", content=b"--edge\r\n\r\nx\r\n--edge--\r\n", headers=headers)
    settled(site, 2)
    site.health.advance()
    text = caller.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    # prometheus_client adds the time of creation where there is one process only; a server never has that.
    families = {name: family for name, family in families.items() if not name.endswith("_created")}
    expected = {name.removesuffix("_total"): name for name in METRICS}
    assert set(families) == set(expected)
    for short, family in families.items():
        help_text, labels = METRICS[expected[short]]
        assert family.documentation == help_text
        assert family.samples, f"{short} has never been set"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels)


def test_names_follow_the_convention() -> None:
    telemetry = Telemetry()
    for family in text_string_to_metric_families(telemetry.exposition()[0].decode()):
        if family.name.endswith("_created"):
            continue
        assert family.name.startswith("overread_")
        assert (family.type == "counter") == (family.name + "_total" in METRICS)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that gives the log lines written so far."""
    stream = io.StringIO()
    handler = logger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line_of_known_fields(client: Any, draw: Any, lines: Callable[[], list[dict[str, Any]]]) -> None:
    client.predict(draw(2), query=f"?model={CANARY}")
    client.get(f"/v1/results/{CANARY}?x={CANARY}", headers={"user-agent": CANARY, "x-request-id": CANARY})
    client.predict(CANARY.encode(), "image/png", "", **{"content-disposition": f"attachment; filename={CANARY}"})
    found = lines()
    assert len(found) == 3
    for line in found:
        assert set(line) == {"time", "level", "event", "route", "status", "code", "ms"}
        assert CANARY not in json.dumps(line)


def test_a_fault_is_logged_by_place_and_never_by_message(
    make_site: Callable[..., Site],
    connect: Callable[..., Any],
    draw: Any,
    monkeypatch: pytest.MonkeyPatch,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    site = make_site()

    def fail(*_: object) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr(site, "analyse", fail)
    answer = connect(site).predict(draw(3))
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert CANARY not in answer.text
    fault = next(line for line in lines() if line["event"] == "fault")
    assert fault["level"] == "ERROR"
    assert fault["type"] == "ValueError"
    assert any(place.startswith("test_telemetry.py:") for place in fault["where"])
    assert CANARY not in json.dumps(fault)
    assert (
        'overread_requests_total{code="internal_error",route="/v1/predict",status="500"} 1.0'
        in connect(site).get("/metrics").text
    )


def test_the_check_sees_a_planted_message(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logger().info(f"read {CANARY}")
    assert CANARY in json.dumps(lines())
