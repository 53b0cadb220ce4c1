"""Drop a scan: the image, its window, what the model says."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Page, expect

from models.example import chest_phantom, draw_chest, tissue_phantom
from tests.page.conftest import until


@pytest.fixture(scope="module")
def lenient(start_server: Any, make_package: Any, make_segmenter: Any) -> Any:
    """An open server with a classifier and a segmenter, at the limits of their cards."""
    return start_server(make_package("tiny"), make_segmenter("nuclei"))


def drop(page: Page, name: str, body: bytes) -> None:
    """Drop a file on the page, as a hand does."""
    transfer = page.evaluate_handle(
        """([name, text]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
          return transfer;
        }""",
        [name, base64.b64encode(body).decode()],
    )
    page.locator(".stage").dispatch_event("drop", {"dataTransfer": transfer})


def shade_at_the_middle(page: Page) -> int:
    """Return the grey, 0 to 255, that is seen in the middle of the image now."""
    with PIL.Image.open(BytesIO(page.locator(".canvas").screenshot())) as seen:
        width, height = seen.size
        return int(np.asarray(seen.convert("L"))[height // 2 - 2 : height // 2 + 3, width // 2 - 2 : width // 2 + 3].mean())


def see(page: Page, grey: float, within: float) -> None:
    """Wait until a grey is seen in the middle of the image."""
    until(page, lambda: abs(shade_at_the_middle(page) - grey) <= within, f"{grey:.0f} is not seen")


def count_green(page: Page) -> int:
    """Count the pixels that have the colour of outlines, which no tissue has."""
    with PIL.Image.open(BytesIO(page.locator(".canvas").screenshot())) as seen:
        red, green, blue = np.moveaxis(np.asarray(seen.convert("RGB")).astype(int), 2, 0)
    return int(((green > red + 60) & (green > blue + 40)).sum())


def test_a_dropped_dicom_is_shown_and_judged(lenient: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(lenient.url)
    drop(page, "any.name", chest_phantom())
    expect(page.get_by_role("region", name="Verdict")).to_contain_text("The model has no say")
    expect(page.get_by_role("region", name="Verdict")).to_contain_text("quality control phantom")
    # The middle of the drawn chest, through the window that shows all values
    expected = draw_chest()[510:515, 510:515].mean() / 4095 * 255
    see(page, expected, 4)
    assert "any.name" not in page.content()


def test_window_and_level(lenient: Any, open_page: Callable[..., Page], draw: Any) -> None:
    page = open_page(lenient.url)
    drop(page, "a.dcm", chest_phantom())
    page.locator(".verdict").wait_for()
    see(page, draw_chest()[510:515, 510:515].mean() / 4095 * 255, 4)
    full = shade_at_the_middle(page)
    page.keyboard.press("i")
    see(page, 255 - full, 2)
    page.keyboard.press("i")
    see(page, full, 0)
    # Width by the slider: half the range around the middle doubles the contrast
    page.get_by_label("Window width").fill("50")
    see(page, min(255, max(0, 2 * (full - 127.5) + 127.5)), 6)
    page.keyboard.press("f")
    see(page, full, 0)
    # The right button: downwards is darker
    box = page.locator(".canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 200, box["y"] + 300, steps=4)
    page.mouse.up(button="right")
    until(page, lambda: shade_at_the_middle(page) < full - 30, "it is not darker")
    expect(page.locator(".readout")).to_contain_text("L 70%")


def test_a_picture_with_heatmap_and_figures(lenient: Any, open_page: Callable[..., Page], draw: Any) -> None:
    page = open_page(lenient.url)
    drop(page, "a.png", draw(1))
    expect(page.get_by_role("region", name="Verdict")).to_be_visible()
    expect(page.locator(".panel")).to_contain_text("Pneumonia", ignore_case=True)
    expect(page.locator(".panel")).to_contain_text("Not for diagnosis")
    expect(page.locator(".panel")).to_contain_text("if this hospital is none of those it was trained on")
    chart = page.get_by_role("img", name="Predicted loss:")
    answer = page.evaluate("""async () => (await (await fetch('/v1/models')).json()).models[0].limits.review_loss_percentile""")
    expect(page.locator(".panel")).to_contain_text(f"review from {answer} of 100 on")
    expect(chart).to_be_visible()


def test_warm_is_where_the_evidence_is(lenient: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(lenient.url)
    painted = page.evaluate(
        """async () => {
          const { warm } = await import('/ui/pixels.js');
          const canvas = warm({ width: 3, height: 1, levels: 256, grey: new Uint8Array([0, 128, 255]) });
          return [...canvas.getContext('2d').getImageData(0, 0, 3, 1).data];
        }"""
    )
    nothing, some, most = painted[:4], painted[4:8], painted[8:]
    assert nothing[3] == 0
    assert 0 < some[3] < most[3] == 255
    assert some[1] > most[1], "the warmest is red"


def test_outlines_of_objects(lenient: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(lenient.url)
    page.get_by_label("Model", exact=True).select_option("nuclei")
    drop(page, "a.png", tissue_phantom())
    expect(page.locator(".panel")).to_contain_text("What was found: nucleus")
    expect(page.locator(".panel")).to_contain_text("per megapixel")
    shown = page.get_by_role("button", name="Overlay")
    expect(shown).to_have_attribute("aria-pressed", "true")
    until(page, lambda: count_green(page) > 200, "no outlines are seen")
    page.wait_for_timeout(300)
    green = count_green(page)
    for pressed, number in (("false", 0), ("true", green)):
        page.keyboard.press("h")
        expect(shown).to_have_attribute("aria-pressed", pressed)
        until(page, lambda number=number: count_green(page) == number, f"{number} are not seen")  # type: ignore[misc]


def test_what_is_no_image_is_refused_in_words(lenient: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(lenient.url, allowed=("Failed to load resource: the server responded with a status of 400",))
    drop(page, "secret-name.txt", b"hello" * 100)
    expect(page.locator(".toast.bad")).to_be_visible()
    expect(page.get_by_role("heading", name="Drop a scan here")).to_be_visible()
    assert "secret-name" not in page.content()


def test_by_keys_alone(lenient: Any, open_page: Callable[..., Page], draw: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(draw(3))
    page = open_page(lenient.url)
    page.on("filechooser", lambda chooser: chooser.set_files(str(file)))
    expect(page.get_by_text("Choose a file")).to_be_visible()
    page.locator("#file").focus()
    page.keyboard.press("Enter")
    page.locator(".verdict").wait_for()
    expect(page.locator(".canvas")).to_be_focused()
    zoomed = page.locator(".canvas").screenshot()
    page.keyboard.press("+")
    until(page, lambda: page.locator(".canvas").screenshot() != zoomed, "it is not larger")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Invert")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
