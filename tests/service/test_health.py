"""The health of sites: counted once, in order, whoever wrote; drift by site; errors from labels of the random share."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from models.drift import REFERENCE, replay
from models.predictor import Predictor
from models.triage import Judgement
from service import health as module
from service.audit import Audit
from service.health import Health, main
from service.origins import Origin
from service.store import Store
from tests.service.scans import ALL, NONE, Reader, ask, scan

ACCEPT, REFUSE = Judgement("accept", ("within_limits",)), Judgement("refuse", ("out_of_domain",))


@pytest.fixture
def put(store: Store, row: Any) -> Any:
    """Return a function that commits scans of these raw scores: ``put(scores, site, start)``."""
    pattern = row(1)

    def put(
        scores: Any, site: str = "", start: int = 0, judgement: Judgement = ACCEPT, *, station: str = "", **more: Any
    ) -> None:
        for number, (loss, domain) in enumerate(scores, start):
            values = {"loss_score": float(loss), "domain_distance": float(domain)}
            values |= {"loss_percentile": 100.0 * min(1.0, float(loss) / 4), "domain_percentile": 100.0 * min(1.0, float(domain))}
            key = hashlib.sha256(f"{site}:{number}".encode()).hexdigest()
            store.record(pattern | values | {"id": key}, None, "1" * 64, lambda _: judgement, Origin(site, station), **more)

    return put


def scores(seed: int, number: int, shift: float = 0.0) -> Any:
    return np.random.default_rng(seed).uniform(0, 1, (number, 2)) * (2, 0.5) + (shift, shift / 4)


@pytest.mark.dialects
def test_each_scan_counts_once_in_the_row_of_its_site(store: Store, put: Any) -> None:
    health = Health(store)
    put([(0.4, 0.1), (1.6, 0.6), (3.96, 0.97)], "east")
    put([(4.0, 2.0)], "west", judgement=REFUSE)
    put([(1.0, 0.25)], "west", 7, scored_again=True)
    put([(0.4, 0.1)], "east")  # the same result again
    store.record(_stored(store), None, "2" * 64, lambda _: REFUSE, Origin("east"))  # and under other limits
    assert health.advance() == 4
    assert health.advance() == 0
    east, west = health.rows()
    assert (east.site, east.loss, east.domain) == ("east", [1, 2, 2, 2, 3], [1, 1, 2, 2, 3])
    assert east.loss_sum == pytest.approx(10 + 40 + 99)
    assert east.verdicts == {"accept": 3, "review": 0, "refuse": 0}
    assert (west.site, west.loss[-2:], west.verdicts["refuse"], west.drift.seen) == ("west", [0, 1], 1, 1)


def _stored(store: Store) -> dict[str, Any]:
    with store.reading() as connection:
        key = connection.exec_driver_sql("SELECT result_id FROM verdicts ORDER BY id LIMIT 1").scalar_one()
    found = store.find(key)
    assert found is not None
    return found.result


def test_batches_and_a_new_start_change_nothing(store: Store, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(scores(0, 50), "east")
    put(scores(1, 50), "west")
    whole = Health(store)
    while whole.advance():
        pass
    before = whole.rows()
    with store.writing() as connection:
        connection.exec_driver_sql("DELETE FROM site_health")
    monkeypatch.setattr(module, "BATCH", 7)
    while Health(store).advance():
        pass
    for one, other in zip(before, Health(store).rows(), strict=True):
        assert one.drift.statistic == other.drift.statistic
        assert [counts.tolist() for counts in one.drift.counts] == [counts.tolist() for counts in other.drift.counts]
        same = {"drift": None, "began_at": None, "loss_sum": 0, "domain_sum": 0}
        assert dataclasses.replace(one, **same) == dataclasses.replace(other, **same)  # type: ignore[arg-type]


@pytest.mark.dialects
def test_a_crash_in_between_counts_nothing_twice(store: Store, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(scores(0, 5), "east")
    put(scores(0, 5), "west")
    take, calls = Health._take, []

    def fail(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError
        take(*arguments)

    monkeypatch.setattr(Health, "_take", staticmethod(fail))
    with pytest.raises(RuntimeError):
        Health(store).advance()
    assert Health(store).rows() == []
    while Health(store).advance():
        pass
    assert [row.drift.seen for row in Health(store).rows()] == [5, 5]


def test_a_site_alarms_alone_and_begins_anew(
    store: Store, put: Any, predictor: Predictor, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(scores(0, REFERENCE + 50), "east")
    put(scores(1, REFERENCE + 50), "west")
    put(scores(2, 100, shift=1.5), "east", REFERENCE + 50)
    health = Health(store)
    while health.advance():
        pass
    east, west = health.rows()
    assert east.drift.alarm_at is not None
    assert west.drift.alarm_at is None
    assert replay(predictor.card.calibration, scores(1, REFERENCE + 50), 0).alarm_at is None
    assert main([]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "ALARM at scan" in told[0]
    assert "no alarm" in told[1]
    assert main(["--restart", "east", "--model", "tiny"]) == 0
    assert main([]) == 0
    east = health.rows()[0]
    assert (east.drift.seen, east.drift.alarm_at, east.drift.statistic) == (0, None, 0)
    assert sum(east.verdicts.values()) == REFERENCE + 150, "the counts go on"
    put(scores(3, 60, shift=1.5), "east", 9000)
    health.advance()
    assert health.rows()[0].drift.seen == 60
    with pytest.raises(module.Refusal, match="No scan"):
        main(["--restart", "north", "--model", "tiny"])
    noted = [row.split("\t")[2:5] for row in Audit(store).rows()]
    assert noted == [["command", "drift_restarted", predictor.sha256]]  # once: what was refused is not noted


@pytest.mark.dialects
def test_a_station_is_counted_beside_its_site(store: Store, put: Any) -> None:
    health = Health(store)
    put([(0.4, 0.1), (3.96, 0.97)], "east", station="CT 1")
    put([(1.6, 0.6)], "east", 2)
    put([(1.6, 0.6)], "west", station="CT 1", judgement=REFUSE)
    while health.advance():
        pass
    found = {(row.site, row.station): row for row in health.rows()}
    assert list(found) == [("east", ""), ("east", "CT 1"), ("west", ""), ("west", "CT 1")]
    assert [row.drift.seen for row in found.values()] == [3, 2, 1, 1]
    assert found["east", "CT 1"].loss == [1, 1, 1, 1, 2]
    assert found["east", "CT 1"].loss_sum == pytest.approx(10 + 99)
    assert found["west", "CT 1"].verdicts == {"accept": 0, "review": 0, "refuse": 1}


@pytest.mark.dialects
def test_one_station_alarms_and_begins_anew_alone(store: Store, put: Any, environment: pytest.MonkeyPatch) -> None:
    """One scanner of two changes: its own test sees it, the other's does not."""
    for number, station in enumerate(("CT1", "CT2")):
        put(scores(number, REFERENCE + 50), "east", 1000 * number, station=station)
    put(scores(2, 60, shift=1.5), "east", 2000, station="CT1")
    health = Health(store)
    while health.advance():
        pass
    assert [row.drift.alarm_at is None for row in health.rows() if row.station] == [False, True]
    assert main([]) == 1
    restart = ["--restart", "east", "--model", "tiny"]
    assert main([*restart, "--station", "CT1"]) == 0
    assert [row.drift.seen for row in health.rows()] == [2 * (REFERENCE + 50) + 60, 0, REFERENCE + 50]
    with pytest.raises(module.Refusal, match="No scan"):
        main([*restart, "--station", "CT3"])
    assert main(restart) == 0
    assert [row.drift.seen for row in health.rows()] == [0, 0, 0], "the site with its stations"
    with pytest.raises(SystemExit):
        main(["--station", "CT1"])


GIVEN = [(1, False, None), (1, True, "l0"), (2, False, None), (3, True, None), (6, False, None)]
"""Item, whether the model was right, and the label that this one replaces."""


@pytest.mark.dialects
def test_errors_are_estimated_from_labels_of_the_random_share_alone(make_site: Any, connect: Any) -> None:
    site = make_site(**NONE | {"keep_random_share": 1.0}, sites=("east",))
    reader = Reader(connect(site))
    for seed in range(1, 7):
        assert reader.send(scan(seed), "?site=east").status_code == 200
    sha256 = site.served(None).predictor.sha256
    assert site.health.confirmed([sha256]) == {}
    ask(site, "UPDATE items SET origin = 'doubt' WHERE id = 6")
    for number, (item, right, replaces) in enumerate(GIVEN):
        ask(
            site,
            "INSERT INTO labels (label_id, item_id, result_id, image_sha256, model_sha256, reader, standing, kind, document,"
            " model_was_right, source, replaces, created_at) SELECT ?, id, result_id, image_sha256, model_sha256, 'anna',"
            " 'reader', 'classes', '{}', ?, 'api', ?, '2026-01-01 00:00:00' FROM items WHERE id = ?",
            f"l{number}",
            right,
            replaces,
            item,
        )
    found = site.health.confirmed([sha256])["east", sha256]
    assert (found.labelled, found.wrong) == (3, 1)
    assert (found.low, found.high) == pytest.approx((0.0615, 0.7923), abs=1e-4)  # Wilson's, of 1 in 3
    site.health.advance()
    text = connect(site).get("/metrics").text
    assert 'overread_accepted_labels{model="tiny",site="east"} 3.0' in text
    assert 'overread_accepted_error_ratio{bound="estimate",model="tiny",site="east"} 0.333' in text
    assert site.health.confirmed(["0" * 64]) == {}


@pytest.mark.dialects
def test_the_metrics_of_a_site(make_site: Any, connect: Any) -> None:
    site = make_site(**ALL, sites=("east",))
    caller = connect(site)
    reader = Reader(caller)
    assert reader.send(scan(1), "?site=east").status_code == 200
    assert reader.send(scan(2)).status_code == 200
    assert "overread_site_scans_total{" not in caller.get("/metrics").text
    site.health.advance()
    lines = [line for line in caller.get("/metrics").text.splitlines() if 'site="east"' in line]
    assert 'overread_site_scans_total{model="tiny",site="east",verdict="review"} 1.0' in lines
    assert 'overread_site_loss_percentile_bucket{le="+Inf",model="tiny",site="east"} 1.0' in lines
    assert 'overread_drift_alarm{model="tiny",site="east"} 0.0' in lines
    assert 'overread_accepted_error_ratio{bound="high",model="tiny",site="east"} 1.0' in lines
    assert len(lines) <= 40
    assert 'overread_drift_scans{model="tiny",site=""} 1.0' in caller.get("/metrics").text
