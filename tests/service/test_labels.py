"""Labels over HTTP: what is taken and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from models.card import read_package
from models.errors import Refusal
from models.imaging import read_image
from service.label_schemas import LabelIn
from tests.service.label_desk import COUNT, READERS, Desk, code
from tests.service.scans import NONE, ask, scan, take

pytestmark = pytest.mark.dialects

THERE = "SELECT (SELECT count(*) FROM labels), (SELECT count(*) FROM leases), state FROM items"


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


def test_a_label_is_stored_with_who_said_it_of_what(desk: Desk) -> None:
    item = desk.item()
    answer = desk.label("anna", item, "pneumonia", seconds=7.5)
    assert answer.status_code == 201
    expected = {"item_state": "done", "standing": "reader", "lease": "none", "agreement": None}
    assert answer.json() == expected | {"label_id": answer.json()["label_id"], "item_id": item["item_id"]}
    (record,) = desk.listed("anna", item)
    assert record["label_id"] == answer.json()["label_id"]
    assert record["document"] == {"normal": False, "pneumonia": True}
    assert (record["reader"], record["kind"], record["source"], record["seconds"]) == ("anna", "classes", "api", 7.5)
    assert (record["standing"], record["replaces"], record["in_force"]) == ("reader", None, True)
    assert {name: record[name] for name in ("item_id", "result_id", "image_sha256", "model_sha256")} == item
    assert record["created_at"].endswith("Z")
    assert desk.state(item) == "done"


@pytest.mark.parametrize(
    ("classes", "means"),
    [
        ({"pneumonia": True}, "pneumonia"),
        ({"pneumonia": True, "normal": False}, "pneumonia"),
        ({"pneumonia": False}, "normal"),
        ({"normal": False}, "pneumonia"),
        ({"pneumonia": True, "normal": True}, None),
        ({"pneumonia": False, "normal": False}, None),
        ({"covid": True}, None),
        ({"covid": False, "pneumonia": True}, None),
    ],
)
def test_exactly_one_class_holds(desk: Desk, classes: dict[str, bool], means: str | None) -> None:
    item = desk.item()
    answer = desk.label("anna", item, classes=classes)
    if means is None:
        assert (answer.status_code, code(answer)) == (422, "label_invalid")
        assert ask(desk.site, COUNT) == [(0,)]
        assert desk.state(item) == "open"
    else:
        assert desk.listed("anna", item)[0]["document"] == {"normal": means == "normal", "pneumonia": means == "pneumonia"}


def test_the_model_was_right_means_what_it_showed(desk: Desk) -> None:
    item = desk.item()
    found = desk.ask("anna", "GET", f"/v1/results/{item['result_id']}").json()["findings"]
    called = "pneumonia" if found[0]["positive"] else "normal"
    other = "normal" if called == "pneumonia" else "pneumonia"
    answer = desk.label("anna", item, other, model_was_right=True)
    assert (answer.status_code, code(answer)) == (422, "label_invalid")
    assert desk.label("anna", item, model_was_right=True).status_code == 201
    assert desk.label("ben", item, called).status_code == 201
    assert desk.label("carla", item, other).status_code == 201
    found = desk.listed("otto", item)
    assert [row["document"][called] for row in found] == [True, True, False]
    assert [row["model_was_right"] for row in found] == [True, True, False]


def test_nothing_is_confirmed_where_nothing_was_said(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(refuse_domain_distance=1e-6)
    item = desk.item()
    answer = desk.label("anna", item, model_was_right=True)
    assert (answer.status_code, code(answer)) == (422, "label_invalid")
    assert desk.label("anna", item, "normal").status_code == 201
    assert not desk.listed("anna", item)[0]["model_was_right"]


@pytest.mark.parametrize(
    ("change", "status", "expected"),
    [
        ({"image_sha256": "0" * 64}, 422, "label_invalid"),
        ({"model_sha256": "0" * 64}, 422, "label_invalid"),
        ({"result_id": "0" * 64}, 404, "not_found"),
        ({"item_id": 99}, 404, "not_found"),
        ({"item_id": None, "result_id": None}, 400, "bad_request"),
        ({"annotation": {"type": "FeatureCollection", "features": []}}, 400, "bad_request"),
        ({"classes": None, "annotation": {"type": "FeatureCollection", "features": []}}, 422, "label_invalid"),
        ({"classes": None}, 400, "bad_request"),
        ({"classes": {}}, 400, "bad_request"),
        ({"replaces": "0" * 64}, 409, "label_conflict"),
        ({"lease_id": "x"}, 400, "bad_request"),
        ({"seconds": -1}, 400, "bad_request"),
        ({"source": "import"}, 400, "bad_request"),
        ({"surprise": 1}, 400, "bad_request"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_stored(desk: Desk, change: dict[str, Any], status: int, expected: str) -> None:
    item = desk.item()
    if "model_sha256" in change:
        desk.item(2)
    answer = desk.label("anna", item, "normal", **change)
    assert (answer.status_code, code(answer)) == (status, expected)
    assert ask(desk.site, COUNT) == [(0,)]
    assert desk.state(item) == "open"


def test_sent_again_is_given_once(desk: Desk) -> None:
    item = desk.item()
    first = desk.label("anna", item, "normal", key="k1").json()
    again = desk.label("anna", item, "normal", key="k1", seconds=3)
    assert (again.status_code, again.json()) == (201, first | {"lease": None})
    assert desk.label("anna", item, "normal", key="k2").status_code == 409
    other = desk.label("anna", item, "pneumonia", key="k1")
    assert (other.status_code, code(other)) == (409, "label_conflict")
    # Without a key the label itself is one
    second = desk.item(2)
    for _ in range(2):
        assert desk.label("anna", second, "normal").status_code == 201
    # Of another reader, the same key is another label
    assert desk.label("ben", item, "normal", key="k1").json()["label_id"] != first["label_id"]
    assert ask(desk.site, COUNT) == [(3,)]
    for bad in ("", "a b", "k" * 129, "ä"):
        answer = desk.ask("anna", "POST", "/v1/labels", json=item, headers={"idempotency-key": bad.encode()})  # type: ignore[dict-item]
        assert code(answer) == "bad_request"


def test_a_correction_names_what_it_replaces_and_nothing_is_overwritten(desk: Desk) -> None:
    item = desk.item()
    first = desk.label("anna", item, "normal").json()["label_id"]
    conflict = desk.label("anna", item, "pneumonia")
    assert (conflict.status_code, code(conflict)) == (409, "label_conflict")
    stranger = desk.label("ben", item, "pneumonia", replaces=first)
    assert (stranger.status_code, code(stranger)) == (409, "label_conflict")
    second = desk.label("anna", item, "pneumonia", replaces=first).json()["label_id"]
    late = desk.label("anna", item, "normal", replaces=first)
    assert (late.status_code, code(late)) == (409, "label_conflict")
    third = desk.label("anna", item, "normal", replaces=second)
    assert third.json()["item_state"] == "done"
    back = desk.label("anna", item, "pneumonia")  # what it says once more was replaced since
    assert (back.status_code, code(back)) == (409, "label_conflict")
    found = desk.listed("anna", item)
    assert [(row["document"]["normal"], row["in_force"]) for row in found] == [(True, False), (False, False), (True, True)]


def test_what_was_not_flagged_can_be_labelled_too(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(**NONE)
    item = desk.item()
    assert item["item_id"] is None
    first = desk.label("anna", item, "normal").json()
    assert (first["item_id"], first["item_state"], first["lease"]) == (None, None, None)
    assert code(desk.label("anna", item, "pneumonia")) == "label_conflict"
    assert desk.label("anna", item, "pneumonia", replaces=first["label_id"]).status_code == 201
    found = desk.ask("anna", "GET", f"/v1/labels?result_id={item['result_id']}").json()["labels"]
    assert [row["in_force"] for row in found] == [False, True]


def test_a_label_of_an_item_that_expired_is_kept(desk: Desk) -> None:
    item = desk.item()
    ask(desk.site, "UPDATE items SET state = 'expired'")
    assert desk.label("anna", item, "normal").json()["item_state"] == "expired"
    assert ask(desk.site, COUNT) == [(1,)]


@pytest.mark.parametrize(
    "query", ["", "?item_id=1&result_id=" + "0" * 64, "?item_id=x", "?item_id=0", "?result_id=abc", "?reader=anna"]
)
def test_labels_are_asked_for_by_item_or_result(desk: Desk, query: str) -> None:
    assert code(desk.ask("otto", "GET", f"/v1/labels{query}")) == "bad_request"


def test_labels_of_what_there_is_not(desk: Desk) -> None:
    assert desk.ask("otto", "GET", "/v1/labels?item_id=7").status_code == 404
    assert desk.ask("otto", "GET", "/v1/labels?result_id=" + "0" * 64).status_code == 404


def test_who_may(desk: Desk) -> None:
    item = desk.item()
    assert desk.label("ct", item, "normal").status_code == 403
    assert desk.ask("ct", "GET", "/v1/labels?item_id=1").status_code == 403
    assert desk.client.request("POST", "/v1/labels", json=item).status_code == 401


def test_nothing_or_all_of_a_label_is_committed(desk: Desk) -> None:
    item = desk.item()
    lease = desk.ask("anna", "POST", "/v1/worklist/lease", json={}).json()
    given = LabelIn.model_validate(item | {"classes": {"normal": True}, "model_was_right": False, "lease_id": lease["lease_id"]})
    after = left = 0

    def fail(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise sa.exc.OperationalError(statement, {}, Exception("planted"))

    sa.event.listen(desk.site.store._writer, "before_cursor_execute", fail)
    while ask(desk.site, COUNT) == [(0,)]:
        after += 1
        left = after
        with contextlib.suppress(Refusal):
            desk.site.loop.labels.add(given, "anna", "key")
        there = ask(desk.site, THERE)
        assert there in ([(0, 1, "open")], [(1, 0, "done")])
    assert after > 6
    assert there == [(1, 0, "done")]


def test_every_label_can_be_traced(desk: Desk) -> None:
    """From a label to the image's bytes, the model package and its card, the verdict's reason, and the reader: all of them."""
    bodies = {read_image(body).sha256: body for body in (scan(seed) for seed in range(1, 11))}
    for number, body in enumerate(bodies.values()):
        given = take(desk.site, body).stored.result
        named = {name: given[name] for name in ("image_sha256", "model_sha256")} | {"result_id": given["id"]}
        assert desk.label(READERS[number % 4], named, "normal").status_code == 201
    card, _, sha256 = read_package(desk.site.settings.models[0])
    rows = ask(desk.site, "SELECT label_id, item_id, reader, created_at FROM labels")
    assert len(rows) == 10
    for label_id, item_id, reader, created_at in rows:
        (record,) = desk.listed("otto", {"item_id": item_id})
        assert (record["label_id"], record["reader"]) == (label_id, reader)
        assert reader in READERS
        assert record["image_sha256"] in bodies
        assert record["model_sha256"] == sha256
        ((stored,),) = ask(desk.site, "SELECT card FROM models WHERE sha256 = ?", record["model_sha256"])
        assert (stored if isinstance(stored, dict) else json.loads(stored)) == card.model_dump(mode="json")
        result = desk.ask("otto", "GET", f"/v1/results/{record['result_id']}").json()
        assert (result["image_sha256"], result["model"]["sha256"]) == (record["image_sha256"], sha256)
        assert result["reasons"]
        assert created_at
