"""Routes of the worklist: what they answer, to whom, and what they refuse."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from service.analysis import Site
from service.tokens import add_token
from tests.service.scans import ALL, LEASE, NONE, Reader, code, scan
from tests.service.test_api import check

WORKLIST = "/v1/worklist"


@pytest.fixture
def reader(make_site: Any, connect: Any) -> Reader:
    """The one person of an open site with three items."""
    reader = Reader(connect(make_site(**ALL)))
    for seed in range(3):
        assert reader.send(scan(seed)).status_code == 200
    return reader


@pytest.fixture
def people(make_site: Any, connect: Any, tmp_path: Path) -> Callable[..., dict[str, Reader]]:
    """Return a function that gives two annotators, an operator and a device of one site with three items."""

    def people(**settings: Any) -> dict[str, Reader]:
        roles = {"anna": "annotator", "bert": "annotator", "olga": "operator", "ct": "device"}
        tokens = {name: add_token(tmp_path / "state" / "tokens.json", name, role) for name, role in roles.items()}
        caller = connect(make_site(**ALL, **settings))
        readers = {name: Reader(caller, token) for name, token in tokens.items()}
        for seed in range(3):
            assert readers["ct"].send(scan(seed)).status_code == 200
        return readers

    return people


@pytest.mark.dialects
def test_the_worklist(reader: Reader) -> None:
    response = reader.get(WORKLIST)
    check(response, "GET", WORKLIST)
    answer = response.json()
    counts = ("open", "leased", "adjudicate", "done", "expired", "withdrawn", "waiting_for_scores")
    assert {name: answer[name] for name in counts} == dict.fromkeys(counts, 0) | {"open": 3}
    assert answer["model"] == "tiny"
    assert {item["model"]["sha256"] for item in answer["items"]} == {answer["model_sha256"]}
    assert sorted(item["item_id"] for item in answer["items"]) == [1, 2, 3]
    percentiles = [item["loss_percentile"] for item in answer["items"]]
    assert percentiles[0] == max(percentiles)
    for item in answer["items"]:
        result = reader.get(f"/v1/results/{item['result_id']}").json()
        for name in ("image_sha256", "findings", "predicted_loss", "loss_percentile", "domain_percentile", "verdict", "reasons"):
            assert item[name] == result[name]
        assert [why["code"] for why in item["why"]]
        assert (item["rows"], item["columns"], item["state"], item["leased_until"]) == (80, 80, "open", None)
    assert len(reader.get(WORKLIST + "?budget=2&model=tiny").json()["items"]) == 2
    assert reader.get(WORKLIST).json() == answer, "nothing is leased by looking"


@pytest.mark.parametrize("query", ["budget=0", "budget=201", "budget=-1", "budget=1.0", "budget=", "budget=x", "budget=٣", "x=1"])
def test_budgets_that_are_none(reader: Reader, query: str) -> None:
    assert code(reader.get(f"{WORKLIST}?{query}")) == (400, "bad_request")
    assert code(reader.get(f"/v1/sites?{query.replace('budget=201', 'budget=367').replace('budget', 'days')}")) == (
        400,
        "bad_request",
    )
    assert code(reader.get(f"{WORKLIST}?model=none")) == (404, "unknown_model")


@pytest.mark.dialects
def test_a_lease_from_taking_to_returning(reader: Reader) -> None:
    first = reader.get(WORKLIST).json()["items"][0]
    response = reader.lease()
    check(response, "POST", LEASE)
    lease = response.json()
    assert lease["item"] == first | {"leased_until": lease["until"]}
    until = datetime.fromisoformat(lease["until"]) - datetime.now(UTC)
    assert timedelta(minutes=14) < until <= timedelta(minutes=15)
    answer = reader.get(WORKLIST).json()
    assert answer["leased"] == 1
    assert first["item_id"] not in [item["item_id"] for item in answer["items"]]
    renewed = reader.post(f"{LEASE}/{lease['lease_id']}/renew")
    check(renewed, "POST", LEASE + "/{lease_id}/renew")
    assert renewed.json()["until"] > lease["until"]
    returned = reader.post(f"{LEASE}/{lease['lease_id']}/return")
    check(returned, "POST", LEASE + "/{lease_id}/return")
    assert returned.json() == first | {"why": []}
    assert reader.get(WORKLIST).json()["leased"] == 0
    for step in ("renew", "return"):
        again = reader.post(f"{LEASE}/{lease['lease_id']}/{step}")
        check(again, "POST", LEASE + "/{lease_id}/" + step)
        assert code(again) == (409, "lease_lost")


@pytest.mark.dialects
def test_passing_over(reader: Reader) -> None:
    lease = reader.lease(item_id=2).json()
    url = f"{LEASE}/{lease['lease_id']}/skip"
    for bad in ({"reason": "CANARY"}, {}, {"reason": None}, [], {"reason": "other", "CANARY": 1}):
        refused = reader.post(url, bad)
        assert code(refused) == (400, "bad_request")
        assert "CANARY" not in refused.text
    response = reader.post(url, {"reason": "not_my_field"})
    check(response, "POST", LEASE + "/{lease_id}/skip")
    assert [item["item_id"] for item in reader.get(WORKLIST).json()["items"]].count(2) == 0
    detail = reader.get("/v1/items/2")
    check(detail, "GET", "/v1/items/{item_id}")
    assert detail.json()["labels"] == {
        "given": 0,
        "wanted": 1,
        "mine": False,
        "skipped": [{"reason": "not_my_field", "readers": 1}],
    }
    assert reader.lease(item_id=2).status_code == 200, "asked for by its number, it may be taken after all"


def test_an_item_with_its_result(reader: Reader) -> None:
    listed = {item["item_id"]: item for item in reader.get(WORKLIST).json()["items"]}
    answer = reader.get("/v1/items/1").json()
    assert answer["item"] == listed[1] | {"why": []}
    assert answer["result"] == reader.get(f"/v1/results/{listed[1]['result_id']}").json()
    for number in ("99", "999999999999999"):
        assert code(reader.get(f"/v1/items/{number}")) == (404, "not_found")
    for number in ("0", "01", "-1", "1x", "9" * 16):
        assert code(reader.get(f"/v1/items/{number}")) == (404, "not_found")


def test_an_empty_list(make_site: Any, connect: Any) -> None:
    reader = Reader(connect(make_site(**NONE)))
    assert reader.get(WORKLIST).json()["items"] == []
    response = reader.lease()
    check(response, "POST", LEASE)
    assert code(response) == (404, "worklist_empty")
    assert code(reader.lease(item_id=1)) == (404, "not_found")
    sites = reader.get("/v1/sites")
    check(sites, "GET", "/v1/sites")
    assert sites.json() == {"model": "tiny", "sites": [], "days": []}


@pytest.mark.parametrize(
    "document",
    [{"item_id": "1"}, {"item_id": 0}, {"item_id": 1.5}, {"item_id": 2**60}, {"item_id": True}, {"x": 1}, [], "x", {"model": 1}],
)
def test_leases_of_nothing(reader: Reader, document: Any) -> None:
    response = reader.post(LEASE, document)
    check(response, "POST", LEASE)
    assert code(response) == (400, "bad_request")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"NaN", b'{"item_id": NaN}', b"[" * 100_000, b'{"item_id": 1' + b"0" * 5000 + b"}"]
)
def test_bodies_that_are_no_document(client: Any, body: bytes) -> None:
    response = client.request("POST", LEASE, content=body, headers={"content-type": "application/json"})
    assert code(response) == (400, "bad_request")
    assert code(client.request("POST", LEASE, content=body)) == (415, "unsupported_media_type")


def test_a_body_that_is_too_large(client: Any) -> None:
    response = client.request("POST", LEASE, content=b" " * (1024 * 1024 + 1), headers={"content-type": "application/json"})
    assert code(response) == (413, "too_large")


def test_the_pixels(reader: Reader) -> None:
    item = reader.get(WORKLIST).json()["items"][0]
    response = reader.get(f"/v1/images/{item['image_sha256']}")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert response.headers["cache-control"] == "no-store"
    pixels = np.asarray(PIL.Image.open(io.BytesIO(response.content)))
    assert (pixels.shape, pixels.dtype) == ((80, 80), np.uint16)
    assert code(reader.get(f"/v1/images/{'0' * 64}")) == (404, "not_found")


def test_pixels_whose_time_is_over(make_site: Any, connect: Any) -> None:
    site = make_site(**ALL)
    reader = Reader(connect(site))
    sha256 = reader.send(scan(1)).json()["image_sha256"]
    site.loop.items.expire(datetime.now(UTC) + timedelta(days=31), 9)
    assert code(reader.get(f"/v1/images/{sha256}")) == (404, "not_found")
    assert reader.get(WORKLIST).json()["expired"] == 1
    detail = reader.get("/v1/items/1").json()
    assert detail["item"]["state"] == "expired"
    assert code(reader.lease(item_id=1)) == (409, "item_taken")


def test_two_readers(people: Any) -> None:
    all_ = people()
    anna, bert, olga = (all_[name] for name in ("anna", "bert", "olga"))
    first, second = anna.lease().json(), bert.lease().json()
    assert first["item"]["item_id"] != second["item"]["item_id"]
    assert code(bert.lease(item_id=first["item"]["item_id"])) == (409, "item_taken")
    for step, document in (("renew", None), ("return", None), ("skip", {"reason": "other"})):
        assert code(bert.post(f"{LEASE}/{first['lease_id']}/{step}", document)) == (409, "lease_lost")
        assert code(olga.post(f"{LEASE}/{first['lease_id']}/{step}", document)) == (409, "lease_lost")
    assert anna.post(f"{LEASE}/{first['lease_id']}/renew").status_code == 200
    assert olga.get(WORKLIST).json()["leased"] == 2
    for text in (anna.get("/v1/items/1").text, bert.get(WORKLIST).text):
        assert "anna" not in text, "who reads what is nobody else's concern"


def test_double_reading(people: Any) -> None:
    all_ = people(readers=2)
    leases = [all_[name].lease(item_id=1) for name in ("anna", "bert", "olga")]
    assert [lease.status_code for lease in leases] == [200, 200, 409]
    assert leases[0].json()["lease_id"] != leases[1].json()["lease_id"]


def test_a_reader_who_vanishes(people: Any) -> None:
    """A client that is gone before it hears of its lease keeps the item no longer than the lease lasts."""
    all_ = people(lease_minutes=0.01)
    assert all_["anna"].lease(item_id=1).status_code == 200
    end = time.monotonic() + 60
    while (taken := all_["bert"].lease(item_id=1)).status_code != 200:
        assert code(taken) == (409, "item_taken")
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_device_sees_nothing_of_it(people: Any) -> None:
    device = people()["ct"]
    for url in (WORKLIST, "/v1/items/1", f"/v1/images/{'0' * 64}", "/v1/sites"):
        assert code(device.get(url)) == (403, "forbidden")
    assert code(device.lease()) == (403, "forbidden")


@pytest.mark.dialects
def test_the_metrics_count_them(reader: Reader) -> None:
    reader.lease()
    text = reader.get("/metrics").text
    assert 'overread_items{state="open"} 3.0' in text
    assert 'overread_items{state="done"} 0.0' in text
    assert "overread_leases 1.0" in text
    (kept,) = (float(line.split()[1]) for line in text.splitlines() if line.startswith("overread_kept_bytes "))
    assert kept == sum(len(reader.get(f"/v1/images/{item['image_sha256']}").content) for item in reader_items(reader))


def reader_items(reader: Reader) -> list[dict[str, Any]]:
    return [reader.get(f"/v1/items/{number}").json()["item"] for number in (1, 2, 3)]


@pytest.mark.dialects
def test_items_of_a_model_that_finds_objects(make_site: Any, connect: Any, segmenter: Path) -> None:
    site: Site = make_site(**ALL, models=(segmenter,))
    caller = connect(site)
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(stream, "PNG")
    assert caller.predict(stream.getvalue()).status_code == 200
    (item,) = caller.get(WORKLIST).json()["items"]
    assert (item["findings"], item["facts"]["bits"], item["facts"]["burned_in"]) == ([], 8, "unknown")
    detail = caller.get("/v1/items/1")
    check(detail, "GET", "/v1/items/{item_id}")
    assert detail.json()["result"]["task"] == "segmentation"
    kept = caller.get(f"/v1/images/{item['image_sha256']}").content
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(kept))), np.asarray(PIL.Image.open(io.BytesIO(stream.getvalue()))))
