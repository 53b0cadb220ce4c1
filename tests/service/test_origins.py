"""Sites and stations: from the configured sets alone, so that no name of a scanner reaches a metric, a log or the database."""

from __future__ import annotations

import io
from typing import Any

import pytest

from models.errors import Refusal
from models.imaging import read_image
from service.origins import LONGEST, Origin, Origins
from service.settings import Settings, read_settings
from service.telemetry import logger
from tests.service.scans import NONE, Reader, ask, scan

CANARY = "CANARY-STATION"


def origins(stations: str, sites: str = "east,west") -> Origins:
    return Origins(read_settings({"OVERREAD_SITES": sites, "OVERREAD_STATIONS": stations}))


def of_station(seed: int, name: Any) -> bytes:
    return scan(seed, **({} if name is None else {"StationName": name}))


def stated(name: Any) -> Any:
    return read_image(of_station(1, name))


def test_a_station_is_matched_exactly_and_at_its_site_alone() -> None:
    found = origins("east=CT 1, west=CT 2, MOBILE")
    assert found.stations == {Origin("east", "CT 1"), Origin("west", "CT 2"), Origin("", "MOBILE")}
    assert found.of("east", stated("CT 1")) == ("east", "CT 1")
    assert found.of("east", stated(" CT 1 ")) == ("east", "CT 1"), "outer spaces say nothing (PS3.5, 6.2)"
    assert found.of("", stated("MOBILE")) == ("", "MOBILE")
    for site, name in [("west", "CT 1"), ("east", "ct 1"), ("east", "CT 12"), ("east", "CT 2"), ("east", None), ("", "CT 1")]:
        assert found.of(site, stated(name)) == (site, "")
    assert found.of("east", stated(["CT 1", "CT 2"])) == ("east", "")
    assert Origins(Settings()).of("", stated("CT 1")) == ("", "")


def test_a_name_may_hold_an_equals_sign_and_other_scripts() -> None:
    assert origins("=A=B,east=영상실", "east").stations == {Origin("", "A=B"), Origin("east", "영상실")}


@pytest.mark.parametrize(
    ("stations", "told"),
    [
        ("north=CT1", "OVERREAD_SITES"),
        ("east=", "StationName"),
        ("east=" + "x" * (LONGEST + 1), "StationName"),
        (r"east=A\B", "StationName"),
        ("east=A\tB", "StationName"),
        ("east=CT1,east=CT1", "twice"),
        ("east=A,east=B,west=A,west=B,C,D", "there may be 5"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(stations: str, told: str) -> None:
    with pytest.raises(Refusal, match=told) as refused:
        origins(stations)
    assert refused.value.code == "config_invalid"
    origins("east=A,east=B,west=A,west=B,C")


def test_the_metrics_of_a_station_and_of_nothing_else(make_site: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(logger().handlers[0], "stream", log)
    site = make_site(**NONE, sites=("east",), stations=("east=CT1", "east=CT2"))
    caller = connect(site)
    reader = Reader(caller)
    for seed, name in enumerate(["CT1", "CT1", CANARY, None]):
        assert reader.send(of_station(seed, name), "?site=east").status_code == 200
    assert reader.send(scan(5, StationName="CT1")).status_code == 200, "without a site: not the station of east"
    site.health.advance()
    text = caller.get("/metrics").text
    lines = [line for line in text.splitlines() if "station=" in line and not line.startswith("#")]
    assert len(lines) == 8
    assert all('model="tiny"' in line and 'site="east",station="CT1"' in line for line in lines)
    assert 'overread_station_scans_total{model="tiny",site="east",station="CT1",verdict="accept"} 2.0' in lines
    assert 'overread_station_drift_alarm{model="tiny",site="east",station="CT1"} 0.0' in lines
    assert 'overread_drift_scans{model="tiny",site="east"} 4.0' in text
    assert 'overread_drift_scans{model="tiny",site=""} 1.0' in text
    rows = ask(site, "SELECT site, station FROM verdicts ORDER BY id")
    assert rows == [("east", "CT1"), ("east", "CT1"), ("east", ""), ("east", ""), ("", "")]
    assert len(log.getvalue().splitlines()) == 5
    for name in (CANARY, "CT1"):
        assert name not in log.getvalue()
    assert CANARY not in text


def test_points_and_tail_of_a_station(make_site: Any, connect: Any) -> None:
    site = make_site(**NONE, stations=("CT1",))
    caller = connect(site)
    for seed in range(4):
        assert caller.predict(scan(seed, StationName="CT1"), "application/dicom").status_code == 200
    site.health.advance()
    (((points, tail),)) = ask(site, "SELECT sum(domain_percentile), sum(domain_percentile > 95) FROM results")
    series = dict(
        line.rsplit(" ", 1) for line in caller.get("/metrics").text.splitlines() if "_station_" in line and line[0] != "#"
    )
    key = '{model="tiny",score="domain",site="",station="CT1"}'
    assert float(series[f"overread_station_percentile_points_total{key}"]) == pytest.approx(points)
    assert float(series[f"overread_station_beyond_total{key}"]) == tail


def test_what_is_not_configured_any_more_is_not_shown(make_site: Any, connect: Any) -> None:
    before = make_site(**NONE, sites=("east", "west"), stations=("east=CT1",))
    for seed, name in enumerate(("east", "west")):
        assert Reader(connect(before)).send(scan(seed, StationName="CT1"), f"?site={name}").status_code == 200
    before.health.advance()
    assert 'station="CT1"' in connect(before).get("/metrics").text
    after = make_site(**NONE, sites=("east",))
    text = connect(after).get("/metrics").text
    assert 'overread_drift_scans{model="tiny",site="east"}' in text
    assert "west" not in text
    assert 'station="' not in text
    assert len(after.health.rows()) == 3, "the database keeps it"
