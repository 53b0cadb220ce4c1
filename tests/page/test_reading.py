"""The worklist in the page: read one after another, label with keys, undo, skip, correct."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.loop_schemas import Candidates
from tests.page.conftest import until

CONFLICT = ("Failed to load resource: the server responded with a status of 409",)


MODELS = (11, 1)
_models = (f"chest-{n}" for n in count())


@dataclass
class Filled:
    """A model's worklist at a place: three scans wait for a reader."""

    place: Any
    model: str

    def list(self) -> Any:
        return self.place.get(f"/v1/worklist?model={self.model}")

    def labels(self, ask: Any) -> Any:
        sql = (
            "SELECT l.reader, l.document, l.model_was_right, l.source, l.replaces FROM labels l JOIN models m"
            f" ON m.sha256 = l.model_sha256 WHERE m.name = '{self.model}' ORDER BY l.id"
        )
        return ask(self.place.server.state, sql)


@pytest.fixture
def filled(place: Any, draw: Any) -> Filled:
    model = next(_models)
    for seed in range(3):
        place.send(draw(seed), site="north" if seed % 2 else "south", model=model)
    return Filled(place, model)


def ready(page: Page) -> None:
    """Wait until a scan is there to be read."""
    page.locator(".reading:not([aria-busy])").wait_for()


def choose(page: Page, filled: Filled) -> None:
    """Look at the model's worklist."""
    with page.expect_response(lambda response: f"model={filled.model}" in response.url):
        page.get_by_label("Model", exact=True).select_option(filled.model)
    expect(page.locator(".list tbody tr").first).to_be_visible()


def begin(page: Page, filled: Filled) -> None:
    """Read the first of the list."""
    choose(page, filled)
    page.locator("body").focus()
    page.get_by_role("button", name="Read the first one").focus()
    page.keyboard.press("Enter")
    ready(page)


def save(page: Page, key: str = "Enter") -> None:
    """Save by a key, and wait for the next scan."""
    with page.expect_response("**/v1/labels") as saved:
        page.keyboard.press(key)
    assert saved.value.status == 201


def test_three_scans_by_keys_alone(filled: Filled, sign_in: Callable[..., Page], ask: Any) -> None:
    page = sign_in(filled.place, "ada", allowed=("Failed to load resource: the server responded with a status of 404",))
    choose(page, filled)
    expect(page.locator(".list tbody tr")).to_have_count(3)
    expect(page.locator(".list")).to_contain_text("Let an expert read it")
    begin(page, filled)
    button = page.get_by_role("button", name="Save and next")
    expect(button).to_be_disabled()
    page.keyboard.press("Enter")  # nothing is said yet, so nothing is saved
    page.keyboard.press("2")
    expect(page.get_by_role("radio", name="pneumonia")).to_be_checked()
    page.keyboard.press("1")
    page.keyboard.press("u")
    expect(page.get_by_role("radio", name="pneumonia")).to_be_checked()
    page.keyboard.press("Control+z")
    expect(button).to_be_disabled()
    page.keyboard.press("Control+y")
    save(page)
    ready(page)
    save(page, "m")
    ready(page)
    page.keyboard.press("s")
    expect(page.get_by_role("dialog")).to_be_visible()
    with page.expect_response("**/skip") as skipped:
        page.keyboard.press("3")
    assert skipped.value.status == 200
    expect(page.get_by_role("heading", name="Nothing is waiting")).to_be_visible()
    first, second = filled.labels(ask)
    assert (first[0], json.loads(first[1]), first[3], first[4]) == ("ada", {"normal": False, "pneumonia": True}, "page", None)
    assert (second[2], second[3]) == (1, "page")
    assert filled.list()["done"] == 2
    assert ask(filled.place.server.state, "SELECT reader, reason FROM skips") == [("ada", "unsure")]


def test_a_label_is_corrected_and_the_first_one_stays(filled: Filled, sign_in: Callable[..., Page], ask: Any) -> None:
    page = sign_in(filled.place, "ada")
    begin(page, filled)
    page.keyboard.press("1")
    save(page)
    ready(page)
    page.keyboard.press("c")
    expect(page.get_by_text("You are correcting a label")).to_be_visible()
    ready(page)
    expect(page.get_by_role("radio", name="normal")).to_be_checked()
    page.keyboard.press("2")
    save(page)
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    first, second = filled.labels(ask)
    assert (json.loads(first[1])["normal"], json.loads(second[1])["pneumonia"]) == (True, True)
    assert second[4] is not None
    assert filled.list()["leased"] == 0, "what was being read is given back"


def test_two_readers_never_have_the_same_one(filled: Filled, sign_in: Callable[..., Page], ask: Any) -> None:
    ada, ben = sign_in(filled.place, "ada"), sign_in(filled.place, "ben")
    begin(ada, filled)
    begin(ben, filled)
    of_model = f"item_id IN (SELECT id FROM items WHERE model_name = '{filled.model}')"
    held = ask(filled.place.server.state, f"SELECT reader, item_id FROM leases WHERE {of_model}")
    assert {reader for reader, _ in held} == {"ada", "ben"}
    assert len({item for _, item in held}) == 2
    ada.keyboard.press("Escape")
    expect(ada.locator(".list tbody tr")).to_have_count(2)
    ben.goto("about:blank")  # a window that is closed gives its scan back too
    until(ada, lambda: filled.list()["leased"] == 0, "it is given back")
    ada.get_by_role("button", name="Refresh").click()
    expect(ada.locator(".list tbody tr")).to_have_count(3)


def test_what_was_marked_survives_a_reload(filled: Filled, sign_in: Callable[..., Page]) -> None:
    page = sign_in(filled.place, "ada")
    begin(page, filled)
    page.keyboard.press("2")
    page.reload()
    begin(page, filled)
    expect(page.get_by_role("radio", name="pneumonia")).to_be_checked()


def test_what_was_marked_is_not_for_the_next_reader_at_this_window(filled: Filled, sign_in: Callable[..., Page]) -> None:
    page = sign_in(filled.place, "ada")
    begin(page, filled)
    page.keyboard.press("1")
    with page.expect_response("**/v1/worklist/lease") as hers:
        save(page)
    ready(page)
    page.keyboard.press("2")
    expect(page.get_by_role("radio", name="pneumonia")).to_be_checked()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").fill(filled.place.tokens["ben"])
    page.keyboard.press("Enter")
    page.locator("#tabs a").first.wait_for()
    with page.expect_response("**/v1/worklist/lease") as his:
        begin(page, filled)
    assert his.value.json()["item"]["item_id"] == hers.value.json()["item"]["item_id"]
    expect(page.get_by_role("radio", checked=True)).to_have_count(0)
    expect(page.get_by_role("button", name="Correct the last one")).to_have_count(0)


def test_a_lease_that_was_lost_is_said(filled: Filled, sign_in: Callable[..., Page], ask: Any) -> None:
    page = sign_in(filled.place, "ada", allowed=CONFLICT)
    begin(page, filled)
    page.keyboard.press("1")
    connection = sqlite3.connect(filled.place.server.state / "overread.sqlite3", timeout=30)
    with connection:  # another reader has it now, until the end of time
        connection.execute("UPDATE leases SET reader = 'ben', until = 9e9 WHERE reader = 'ada'")
    connection.close()
    with page.expect_response("**/v1/labels") as refused:
        page.keyboard.press("Enter")
    assert refused.value.status == 409
    expect(page.locator(".toast.bad")).to_be_visible()
    expect(page.get_by_role("radio", name="normal")).to_be_checked()
    assert filled.labels(ask) == []


def test_a_save_whose_answer_is_lost_is_sent_again_as_the_same_one(
    filled: Filled, sign_in: Callable[..., Page], ask: Any
) -> None:
    page = sign_in(filled.place, "ada", allowed=("Failed to load resource: net::ERR_FAILED",))
    keys: list[str | None] = []

    def lose_the_first(route: Any) -> None:
        keys.append(route.request.headers.get("idempotency-key"))
        if len(keys) > 1:
            route.continue_()
            return
        route.fetch()  # it arrives, and the answer is lost
        route.abort()

    # Long before the first label: a browser lets requests pass for a moment after it was told to stop them
    page.route("**/v1/labels", lose_the_first)
    begin(page, filled)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The service does not answer.")).to_be_visible()
    save(page)
    assert len(keys) > 1
    assert len(set(keys)) == 1
    assert len(filled.labels(ask)) == 1


def test_what_is_too_large_to_be_kept_in_the_window_is_saved_all_the_same(
    filled: Filled, sign_in: Callable[..., Page], ask: Any
) -> None:
    page = sign_in(filled.place, "ada")
    begin(page, filled)
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }")
    page.keyboard.press("2")
    save(page)
    assert [json.loads(row[1])["pneumonia"] for row in filled.labels(ask)] == [True]


def test_a_scan_that_was_scored_again_is_given_back(filled: Filled, sign_in: Callable[..., Page]) -> None:
    page = sign_in(filled.place, "ada", allowed=CONFLICT)
    stale = {"type": "about:blank", "title": "stale", "status": 409, "detail": "stale", "code": "stale_result"}
    page.route("**/v1/labels", lambda route: route.fulfill(status=409, json=stale, content_type="application/problem+json"))
    begin(page, filled)
    page.keyboard.press("1")
    assert filled.list()["leased"] == 1
    page.keyboard.press("Enter")
    expect(page.get_by_text("answer has changed since you opened this")).to_be_visible()
    expect(page.locator(".list tbody tr")).to_have_count(3)
    assert filled.list()["leased"] == 0, "nobody reads it: it must not be renewed for ever"


def test_keys_of_one_letter_can_be_turned_off(filled: Filled, sign_in: Callable[..., Page]) -> None:
    page = sign_in(filled.place, "ada")
    begin(page, filled)
    page.keyboard.press("?")
    page.get_by_label("Listen to keys of one letter").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    expect(page.get_by_role("radio", name="pneumonia")).not_to_be_checked()
    page.get_by_role("radio", name="pneumonia").press("Enter")
    expect(page.get_by_role("radio", name="pneumonia")).to_be_checked()


def test_sites_tell_what_came_in(filled: Filled, sign_in: Callable[..., Page]) -> None:
    page = sign_in(filled.place, "operator", view="sites")
    page.get_by_label("Model", exact=True).select_option(filled.model)
    row = page.get_by_role("row").filter(has_text="south")
    expect(row.locator("td").nth(1)).to_have_text("2")
    days = {day["site"]: day for day in filled.place.get(f"/v1/sites?model={filled.model}")["days"]}
    number = "(v) => new Intl.NumberFormat('en', {maximumSignificantDigits: 3}).format(v)"
    expect(row.locator("td").nth(2)).to_have_text(page.evaluate(number, days["south"]["mean_predicted_loss"]))
    expect(page.get_by_role("img", name="Mean predicted loss")).to_be_visible()


def test_the_card_is_readable(place: Any, sign_in: Callable[..., Page]) -> None:
    page = sign_in(place, "ada", view="models")
    expect(page.get_by_role("heading", name="chest-0 1.0.0")).to_be_visible()
    expect(page.get_by_role("region", name="Main figures of chest-0")).to_contain_text("0.4 to 0.6")
    page.get_by_text("Where it comes from").first.click()
    expect(page.get_by_role("region", name="Data of chest-0")).to_contain_text("CC0")


def test_a_candidate_is_compared_in_words(place: Any, sign_in: Callable[..., Page]) -> None:
    model = {"name": "chest-0", "version": "1.0.0", "sha256": "0" * 64}
    scans = {"compared": 40, "same_verdict": 30, "same_findings": 36}
    losses = {"current_mean_predicted_loss": 0.5, "candidate_mean_predicted_loss": 0.25}
    shadow = {
        "total": scans | losses | {"site": ""},
        "by_site": [scans | losses | {"site": "north"}],
        "verdicts": [{"verdict": "review", "candidate_verdict": "accept", "scans": 10}],
        "errors": None,
    }
    one = {
        "name": "chest-0",
        "task": "classification",
        "current": model,
        "candidate": model | {"version": "1.1.0"},
        "shadow": shadow,
    }
    answer = Candidates.model_validate({"models": [one]}).model_dump_json()
    page = sign_in(place, "ada", view="worklist")
    page.route("**/v1/candidates", lambda route: route.fulfill(body=answer, content_type="application/json"))
    page.reload()  # a page that is loaded now is stopped from its first request on
    page.get_by_role("link", name="Models").click()
    told = page.get_by_role("region", name="Candidate", exact=True)
    expect(told).to_contain_text("Candidate 1.1.0 beside 1.0.0")
    expect(told.get_by_role("row").nth(1)).to_have_text("All4090%75%0.50.25")
    expect(told).to_contain_text("10 from !Let an expert read it to ✓Within limits")
