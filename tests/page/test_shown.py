"""What the page shows of the model beside an item, what it hides of it, and of which site a dropped scan is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Page, expect

from service.tokens import add_token
from tests.page.conftest import Place, until
from tests.service.packages import vivid


def count_warm(page: Page) -> int:
    """Count the pixels of the image that have a colour, which no radiograph has."""
    with PIL.Image.open(BytesIO(page.locator(".canvas").screenshot())) as seen:
        red, _, blue = np.moveaxis(np.asarray(seen.convert("RGB")).astype(int), 2, 0)
    return int((red > blue + 40).sum())


@pytest.fixture(scope="module")
def shown(start_server: Any, make_segmenter: Any, tmp_path_factory: Any) -> Place:
    """A place that accepts every scan and draws all for the random share, but for those that go to ``doubted``."""
    state, folder = tmp_path_factory.mktemp("shown"), tmp_path_factory.mktemp("packages")
    names = {"device": "device", "ada": "annotator", "operator": "operator"}
    tokens = {name: add_token(state / "tokens.json", name, role) for name, role in names.items()}
    tokens["north-desk"] = add_token(state / "tokens.json", "north-desk", "operator", "north")
    models = (vivid(folder / "drawn", "drawn"), make_segmenter("nuclei"))
    settings = {"OVERREAD_KEEP_RANDOM_SHARE": "1", "OVERREAD_SITES": "north,south", "OVERREAD_REVIEW_LOSS_PERCENTILE": "100"}
    settings |= {"OVERREAD_REVIEW_DOMAIN_PERCENTILE": "100"}
    return Place(start_server(*models, state=state, **settings), tokens)


@pytest.fixture(scope="module")
def doubted(start_server: Any, tmp_path_factory: Any) -> Place:
    """A place where every image is for review."""
    state, folder = tmp_path_factory.mktemp("doubted"), tmp_path_factory.mktemp("packages")
    tokens = {
        name: add_token(state / "tokens.json", name, role) for name, role in {"device": "device", "ada": "annotator"}.items()
    }
    return Place(start_server(vivid(folder / "chest", "chest"), state=state, OVERREAD_REVIEW_LOSS_PERCENTILE="0"), tokens)


def read_first(page: Page) -> None:
    page.get_by_role("button", name="Read the first one").click()
    page.locator(".reading:not([aria-busy])").wait_for()


def test_the_evidence_lies_over_an_item(doubted: Place, sign_in: Callable[..., Page], draw: Any, ask: Any) -> None:
    doubted.send(draw(1))
    page = sign_in(doubted, "ada")
    read_first(page)
    expect(page.locator(".panel")).to_contain_text("Warm colours: where the evidence for pneumonia lies.")
    overlay = page.get_by_role("button", name="Overlay")
    expect(overlay).to_have_attribute("aria-pressed", "true")
    until(page, lambda: count_warm(page) > 1000, "the evidence is not seen")
    page.keyboard.press("h")
    expect(overlay).to_have_attribute("aria-pressed", "false")
    until(page, lambda: count_warm(page) == 0, "the scan itself has no colour")
    page.keyboard.press("h")
    until(page, lambda: count_warm(page) > 1000, "the evidence is not seen again")
    assert ("ada", "item_read") in ask(doubted.server.state, "SELECT actor, action FROM audit")


def last_site(place: Place, ask: Any) -> str:
    """Return the site that the last scan was stored with."""
    ((site,),) = ask(place.server.state, "SELECT site FROM verdicts ORDER BY id DESC LIMIT 1")
    return str(site)


@pytest.fixture
def drawn_item(shown: Place, draw: Any) -> Iterator[dict[str, Any]]:
    """An item of the random share, alone in its list."""
    answer = shown.send(draw(7), model="drawn")
    assert answer["verdict"] == "accept"
    return answer


def test_a_scan_of_the_random_share_is_read_without_the_model(
    shown: Place, drawn_item: dict[str, Any], sign_in: Callable[..., Page], ask_labels: Any
) -> None:
    asked: list[str] = []
    page = sign_in(shown, "ada", allowed=("Failed to load resource: the server responded with a status of 404",))
    page.on("request", lambda request: asked.append(request.url))
    row = page.locator(".list tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("drawn at random")
    assert row.get_by_role("cell").nth(2).inner_text() == row.get_by_role("cell").nth(3).inner_text() == "not shown"
    read_first(page)
    expect(page.get_by_role("heading", name="Read without the model")).to_be_visible()
    assert page.locator(".says").count() == 0
    for told in ("Within limits", "Expected error", "Findings", "The model is right"):
        expect(page.locator(".panel")).not_to_contain_text(told)
    page.wait_for_timeout(300)
    assert count_warm(page) == 0
    assert not [url for url in asked if "heatmap" in url]
    page.keyboard.press("m")  # there is nothing that could be confirmed
    called = drawn_item["findings"][0]["positive"]
    page.keyboard.press("1" if called else "2")
    with page.expect_response("**/v1/labels") as saved:
        page.keyboard.press("Enter")
    assert saved.value.status == 201
    ((reader, _, right, source, _),) = ask_labels(shown)
    assert (reader, bool(right), source) == ("ada", False, "page"), "what the model said is compared all the same"


def test_a_dropped_scan_is_of_the_chosen_site(
    shown: Place, sign_in: Callable[..., Page], draw: Any, tmp_path: Path, ask: Any
) -> None:
    page = sign_in(shown, "operator", view="scan")
    names = page.get_by_label("Site").locator("option").all_inner_texts()
    assert names == ["not stated", "north", "south"]

    def drop(seed: int) -> str:
        (tmp_path / f"{seed}.png").write_bytes(draw(seed))
        with page.expect_response("**/v1/predict?**") as answered:
            page.locator("#file").set_input_files(str(tmp_path / f"{seed}.png"))
        assert answered.value.status == 200
        return last_site(shown, ask)

    assert drop(20) == ""
    page.get_by_label("Site").select_option("south")
    assert drop(21) == "south"
    assert drop(22) == "south", "the next one too"
    page.reload()
    expect(page.get_by_label("Site")).to_have_value("south")
    page.get_by_label("Site").select_option("north")
    assert drop(23) == "north"


def test_a_token_of_a_site_needs_no_choice(
    shown: Place, sign_in: Callable[..., Page], draw: Any, tmp_path: Path, ask: Any
) -> None:
    page = sign_in(shown, "north-desk", view="scan")
    expect(page.locator(".drop")).to_contain_text("Site north")
    assert page.get_by_label("Site").count() == 0
    (tmp_path / "a.png").write_bytes(draw(30))
    with page.expect_response("**/v1/predict?**") as answered:
        page.locator("#file").set_input_files(str(tmp_path / "a.png"))
    assert answered.value.status == 200
    assert last_site(shown, ask) == "north"
