"""Every view at two widths and in two themes: readable, reachable, and without a fault that axe knows to be serious."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from models.example import chest_phantom, tissue_phantom

VIEWS = ("login", "scan", "result", "worklist", "classes", "objects", "sites", "models", "keys")
LOUD = {"serious", "critical"}


@pytest.fixture(scope="module")
def filled(place: Any, draw: Any) -> Any:
    """A place with something in every view."""
    for seed in range(3):
        place.send(draw(seed), model="chest-0", site="north")
    place.send(tissue_phantom(), model="nuclei-0")
    return place


def show(page: Page, view: str, tmp_path: Any) -> None:
    """Go to a view."""
    if view in {"scan", "sites", "models"}:
        page.goto(page.url.partition("#")[0] + f"#{view}")
        expect(page.locator("h1").first).to_be_visible()
    elif view == "result":
        page.goto(page.url.partition("#")[0] + "#scan")
        (tmp_path / "a.dcm").write_bytes(chest_phantom())
        page.locator("#file").set_input_files(str(tmp_path / "a.dcm"))
        page.locator(".verdict").wait_for()
    elif view in {"worklist", "classes", "objects"}:
        page.goto(page.url.partition("#")[0] + "#worklist")
        if view == "objects":
            page.get_by_label("Model", exact=True).select_option("nuclei-0")
        page.locator(".list").wait_for()
        if view != "worklist":
            page.get_by_role("button", name="Read the first one").click()
            page.locator(".reading:not([aria-busy])").wait_for()
    elif view == "keys":
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
    page.wait_for_timeout(250)


def loud(page: Page) -> list[str]:
    """Return the faults that axe finds serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:120]}" for each in found if each["impact"] in LOUD for node in each["nodes"]]


@pytest.mark.parametrize(("size", "theme"), [("wide", "dark"), ("narrow", "light")])
def test_every_view(
    filled: Any, sign_in: Callable[..., Page], open_page: Callable[..., Page], tmp_path: Any, size: str, theme: str
) -> None:
    faults = {}
    for view in VIEWS:
        if view == "login":
            page = open_page(filled.url, size=size, theme=theme)
            page.get_by_label("Token").wait_for()
        else:
            page = page if view != "scan" else sign_in(filled, "operator", size=size, theme=theme)
            show(page, view, tmp_path)
        faults[view] = loud(page)
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if wide[0] > wide[1]:
            faults[view].append(f"wider than the screen: {wide}")
        if view in {"classes", "objects"}:
            page.keyboard.press("Escape")
            page.locator(".list").wait_for()
    assert {view: found for view, found in faults.items() if found} == {}


def test_a_planted_fault_is_seen(filled: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(filled.url)
    page.get_by_label("Token").wait_for()
    page.evaluate("document.querySelector('label.field').firstChild.remove()")
    page.evaluate("document.querySelector('button.primary').style.color = 'gray'")
    assert {fault.partition(":")[0] for fault in loud(page)} >= {"label", "color-contrast"}


def test_a_broken_rule_of_the_policy_would_be_seen(filled: Any, browser: Any) -> None:
    from tests.page.conftest import Guard, until

    guard = Guard(filled.url)
    page = browser.new_page()
    guard.watch(page)
    page.goto(f"{filled.url}/ui")
    page.evaluate(
        "() => { const e = document.createElement('div'); e.setAttribute('style', 'color: red'); document.body.append(e); }"
    )
    page.evaluate("() => { const i = new Image(); i.src = 'http://127.0.0.2:9/x.png'; document.body.append(i); }")
    for rule in ("style-src", "img-src"):
        until(page, lambda rule=rule: any(rule in fault for fault in guard.faults), rule)  # type: ignore[misc]
    page.close()


def test_the_theme_is_chosen_and_kept(filled: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(filled.url, theme="light")
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.get_by_role("button", name="Dark theme").click()
    dark = page.evaluate(back)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Light theme")).to_be_visible()
    assert page.evaluate(back) == dark


def test_where_the_focus_is_can_be_seen(filled: Any, sign_in: Callable[..., Page]) -> None:
    page = sign_in(filled, "ada", view="models")
    seen = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e === document.body, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        seen.add(tuple(found[1:]))
        assert found[0] is False
        assert found[1] == "solid"
        assert found[2] >= 2, found
    assert seen
