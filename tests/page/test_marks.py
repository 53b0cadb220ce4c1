"""Marking objects: a click is a point at that pixel, in the image's own pixels; and all of it by keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from models.example import TISSUE_COLUMNS, TISSUE_ROWS, tissue_phantom

MODELS = (1, 8)
_models = (f"nuclei-{n}" for n in count())


class Marking:
    """A page in which a drawn piece of tissue waits for its marks."""

    def __init__(self, page: Page, place: Any, model: str, ask: Any) -> None:
        self.page, self.place, self.model, self._ask = page, place, model, ask
        self.canvas = page.locator(".canvas")

    def at(self, x: float, y: float) -> dict[str, float]:
        """Return where a pixel of the image is seen in the canvas: the image is fitted into it, with a margin of 8."""
        box = self.canvas.bounding_box()
        assert box is not None
        scale = min((box["width"] - 16) / TISSUE_COLUMNS, (box["height"] - 16) / TISSUE_ROWS)
        across, down = (x - TISSUE_COLUMNS / 2) * scale, (y - TISSUE_ROWS / 2) * scale
        return {"x": box["width"] / 2 + across, "y": box["height"] / 2 + down}

    def click(self, x: float, y: float) -> None:
        self.canvas.click(position=self.at(x, y))  # type: ignore[arg-type]
        self.page.wait_for_timeout(350)  # two clicks in a quarter of a second are a double click

    def drag(self, *corners: tuple[float, float]) -> None:
        box = self.canvas.bounding_box()
        assert box is not None
        for i, corner in enumerate(corners):
            at = self.at(*corner)
            self.page.mouse.move(box["x"] + at["x"], box["y"] + at["y"], steps=5)
            if i == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def save(self) -> dict[str, Any]:
        """Save, and return what is stored."""
        with self.page.expect_response("**/v1/labels") as saved:
            self.page.keyboard.press("Enter")
        assert saved.value.status == 201, saved.value.text()
        sql = f"SELECT document FROM labels l JOIN models m ON m.sha256 = l.model_sha256 WHERE m.name = '{self.model}'"
        ((document,),) = self._ask(self.place.server.state, sql)
        return dict(json.loads(document))


@pytest.fixture
def marking(place: Any, sign_in: Callable[..., Page], ask: Any) -> Marking:
    model = next(_models)
    place.send(tissue_phantom(), model=model)
    page = sign_in(place, "ada", allowed=("Failed to load resource: the server responded with a status of 404",))
    with page.expect_response(lambda response: f"model={model}" in response.url):
        page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_role("button", name="Read number 1").click()
    page.locator(".reading:not([aria-busy])").wait_for()
    page.wait_for_timeout(200)
    return Marking(page, place, model, ask)


def geometries(document: dict[str, Any]) -> list[tuple[str, Any, str | None]]:
    """Return (kind, coordinates, class) of each feature."""
    return [
        (each["geometry"]["type"], each["geometry"]["coordinates"], each["properties"].get("classification", {}).get("name"))
        for each in document["features"]
    ]


def points(document: dict[str, Any]) -> list[list[float]]:
    found: list[list[float]] = []
    for kind, coordinates, _ in geometries(document):
        found += [coordinates] if kind == "Point" else coordinates if kind == "MultiPoint" else []
    return found


def close(found: Any, expected: Any, within: float = 1.0) -> bool:
    return len(found) == len(expected) and all(
        abs(a - b) <= within for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_a_click_is_a_point_there(marking: Marking) -> None:
    wanted = [(20.5, 30.5), (400.0, 100.0), (255.0, 500.0)]
    marking.page.keyboard.press("p")
    for x, y in [*wanted, (300, 300)]:
        marking.click(x, y)
    expect(marking.page.get_by_text("4 marks.")).to_be_visible()
    marking.page.keyboard.press("u")
    expect(marking.page.get_by_text("3 marks.")).to_be_visible()
    assert close(points(marking.save()), wanted)


def test_positions_hold_after_zoom_and_a_wrong_one_would_be_seen(marking: Marking) -> None:
    marking.page.keyboard.press("p")
    for _ in range(3):
        marking.page.keyboard.press("+")
        marking.page.wait_for_timeout(300)
    marking.click(256, 256)  # the middle stays where it is
    found = points(marking.save())
    assert close(found, [(256, 256)])
    assert not close(found, [(256, 258)])


def test_an_outline_a_stroke_and_the_marked_part(marking: Marking) -> None:
    page = marking.page
    page.keyboard.press("r")
    marking.click(10, 20)
    marking.click(500, 480)
    page.keyboard.press("o")
    corners = [(100, 100), (140, 100), (140, 150), (100, 150)]
    for corner in corners:
        marking.click(*corner)
    marking.click(*corners[0])
    page.keyboard.press("n")
    marking.drag((200, 200), (210, 205), (215, 212))
    page.keyboard.press("b")
    marking.drag((300, 50), (340, 52))
    expect(page.get_by_text("4 marks.")).to_be_visible()
    found = geometries(marking.save())
    assert sorted(kind for kind, _, _ in found) == ["LineString", "LineString", "Polygon", "Polygon"]
    assert {name for kind, _, name in found if kind == "LineString"} == {"Foreground", "Background"}
    (region,) = [ring for kind, ring, name in found if name and name.startswith("Region")]
    (outline,) = [ring for kind, ring, name in found if kind == "Polygon" and not (name and name.startswith("Region"))]
    drawn = sorted({(round(x), round(y)) for x, y in outline[0]})
    assert close(drawn, sorted(corners))
    across, down = zip(*region[0], strict=True)
    assert (min(across), min(down), max(across), max(down)) == pytest.approx((10, 20, 500, 480), abs=1)


def test_erase_undo_and_redo(marking: Marking) -> None:
    page = marking.page
    page.keyboard.press("p")
    for x, y in [(50, 50), (100, 100), (150, 150)]:
        marking.click(x, y)
    page.keyboard.press("e")
    marking.click(101, 101)
    expect(page.get_by_text("2 marks.")).to_be_visible()
    marking.click(300, 400)  # nothing lies there
    expect(page.get_by_text("2 marks.")).to_be_visible()
    page.keyboard.press("u")
    expect(page.get_by_text("3 marks.")).to_be_visible()
    page.keyboard.press("Control+Shift+z")
    expect(page.get_by_text("2 marks.")).to_be_visible()
    assert close(sorted(points(marking.save())), [(50, 50), (150, 150)])


def test_the_models_outlines_corrected(marking: Marking) -> None:
    page = marking.page
    item = marking.place.get(f"/v1/worklist?model={marking.model}")["items"]
    assert item == [], "it is being read"
    page.get_by_role("button", name="Correct the model’s outlines").click()
    expect(page.locator(".panel")).to_contain_text("marks.")
    number = int(page.locator(".panel [role=status]").inner_text().split()[0])
    document = marking.save()
    assert sum(kind == "Polygon" for kind, _, _ in geometries(document)) == number > 10


def test_marks_by_keys_alone(marking: Marking) -> None:
    page = marking.page
    expect(marking.canvas).to_be_focused()
    page.keyboard.press("p")
    page.keyboard.press("ArrowRight")  # the cross begins in the middle, and an arrow moves it by four pixels of the screen
    page.keyboard.press("Space")
    page.keyboard.press("o")
    for key in ("Space", "Shift+ArrowRight", "Space", "Shift+ArrowDown", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("u")  # takes the last corner back
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 marks.")).to_be_visible()
    box = marking.canvas.bounding_box()
    assert box is not None
    step = 4 * TISSUE_ROWS / (box["height"] - 16)
    document = marking.save()
    assert close(points(document), [(256 + step, 256)], 0.6)
    (outline,) = [coordinates for kind, coordinates, _ in geometries(document) if kind == "Polygon"]
    across, down = zip(*outline[0], strict=True)
    assert max(across) - min(across) == pytest.approx(8 * step, abs=0.6)
    assert max(down) - min(down) == pytest.approx(8 * step, abs=0.6)


def test_escape_leads_out_step_by_step(marking: Marking) -> None:
    page = marking.page
    page.keyboard.press("o")
    marking.click(100, 100)
    marking.click(200, 100)
    for _ in range(2):
        page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Move", exact=True)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
