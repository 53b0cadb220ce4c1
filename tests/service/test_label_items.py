"""What a label makes of its item: readers who agree or differ, leases, another package."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from service.tables import results
from tests.service.label_desk import Desk, code
from tests.service.scans import ask

pytestmark = pytest.mark.dialects


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


def test_two_readers_who_agree_are_enough(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(readers=2)
    item = desk.item()
    assert desk.label("anna", item, "normal").json()["item_state"] == "open"
    answer = desk.label("ben", item, "normal").json()
    assert (answer["item_state"], answer["agreement"]) == ("done", {"measure": "same_class", "value": 1.0, "agree": True})


def test_a_third_person_decides_where_two_differ(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(readers=2)
    item = desk.item()
    first = desk.label("anna", item, "normal").json()["label_id"]
    answer = desk.label("ben", item, "pneumonia").json()
    assert (answer["item_state"], answer["agreement"]["agree"]) == ("adjudicate", False)
    # Neither of the two is the third
    assert code(desk.label("anna", item, "pneumonia", key="again")) == "label_conflict"
    # Each sees their own; who is to judge sees both, without names; the operator sees all
    assert [row["reader"] for row in desk.listed("anna", item)] == ["anna"]
    assert [row["reader"] for row in desk.listed("carla", item)] == ["reader 1", "reader 2"]
    assert [row["reader"] for row in desk.listed("otto", item)] == ["anna", "ben"]
    judged = desk.label("carla", item, "pneumonia").json()
    assert (judged["standing"], judged["item_state"]) == ("adjudicator", "done")
    assert [row["reader"] for row in desk.listed("dora", item)] == []
    # Their later change of mind changes nothing; the adjudicator's does not either, but stays an adjudicator's
    assert desk.label("anna", item, "pneumonia", replaces=first).json()["item_state"] == "done"
    corrected = desk.label("carla", item, "normal", replaces=judged["label_id"]).json()
    assert (corrected["standing"], corrected["item_state"]) == ("adjudicator", "done")


def test_two_who_differed_may_come_to_agree(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(readers=2)
    item = desk.item()
    first = desk.label("anna", item, "normal").json()["label_id"]
    desk.label("ben", item, "pneumonia")
    assert desk.label("anna", item, "pneumonia", replaces=first).json()["item_state"] == "done"


def test_a_lease_ends_with_the_label_and_keeps_others_away(desk: Desk) -> None:
    item = desk.item()
    lease = desk.ask("anna", "POST", "/v1/worklist/lease", json={}).json()
    assert lease["item"]["item_id"] == item["item_id"]
    held = {"lease_id": lease["lease_id"]}
    for answer, expected in (
        (desk.label("ben", item, "normal"), "item_taken"),
        (desk.label("ben", item, "normal", **held), "lease_lost"),
        (desk.label("ben", item, "normal", lease_id="0" * 32), "lease_lost"),
    ):
        assert (answer.status_code, code(answer)) == (409, expected)
    assert desk.label("anna", item, "normal", **held).json()["lease"] == "held"
    assert ask(desk.site, "SELECT count(*) FROM leases") == [(0,)]


def test_a_lease_that_ran_out_is_as_good_while_nobody_took_the_item(desk: Desk) -> None:
    first, second = desk.item(1), desk.item(2)
    leases = {}
    for item in (first, second):
        leases[item["item_id"]] = desk.ask("anna", "POST", "/v1/worklist/lease", json={"item_id": item["item_id"]}).json()[
            "lease_id"
        ]
    ask(desk.site, "UPDATE leases SET until = ?", time.time() - 1)
    assert desk.label("anna", first, "normal", lease_id=leases[first["item_id"]]).json()["lease"] == "expired"
    taken = desk.ask("ben", "POST", "/v1/worklist/lease", json={"item_id": second["item_id"]})
    assert taken.status_code == 200
    late = desk.label("anna", second, "normal", lease_id=leases[second["item_id"]])
    assert (late.status_code, code(late)) == (409, "lease_lost")
    assert desk.label("ben", second, "normal", lease_id=taken.json()["lease_id"]).json()["lease"] == "held"


def test_what_another_package_has_scored_since_is_stale(desk: Desk) -> None:
    item = desk.item()
    scored = {"model_sha256": "9" * 64, "result_id": "8" * 64}
    ask(desk.site, "INSERT INTO models SELECT ?, name, '2.0.0', card, first_loaded_at FROM models", scored["model_sha256"])
    columns = [column.name for column in results.c if column.name not in ("id", "model_sha256")]
    names = ", ".join(columns)
    ask(
        desk.site,
        f"INSERT INTO results (id, model_sha256, {names}) SELECT ?, ?, {names} FROM results",
        *reversed(scored.values()),
    )
    ask(desk.site, "UPDATE items SET model_sha256 = ?, result_id = ?", *scored.values())
    answer = desk.label("anna", item, "normal")
    assert (answer.status_code, code(answer)) == (409, "stale_result")
    assert desk.label("anna", item, "normal", shown_earlier=True).status_code == 201
    (record,) = desk.listed("anna", item)
    assert (record["model_sha256"], record["result_id"]) == (item["model_sha256"], item["result_id"])
