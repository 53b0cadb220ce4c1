"""A real browser before a real server: Debian's chromium, driven by Playwright.

Whatever a test does, its pages may write no error to the console, break no rule of the content security policy, and send no
request to another host; each is checked when the test ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from service.tokens import add_token
from tests.conftest import Server, require

SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 844}}
WAIT = 60_000
"""Milliseconds that anything on a page may take; the machine is shared, and may stand still for a while."""


def until(page: Page, done: Callable[[], bool], what: str) -> None:
    """Wait until something is true that a page brings about, while the page goes on."""
    end = time.monotonic() + WAIT / 1000
    while not done():
        assert time.monotonic() < end, what
        page.wait_for_timeout(50)


@dataclass
class Guard:
    """What pages did that none may do. ``allowed`` are beginnings of console messages that a test expects."""

    own: str
    faults: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()

    def watch(self, page: Page) -> None:
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("request", lambda request: self._see(request.url))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`))"
        )

    def _hear(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and not text.startswith(self.allowed or ("\0",)):
            self.faults.append(f"{kind}: {text}")

    def _see(self, url: str) -> None:
        if not url.startswith((self.own + "/", "data:", "blob:")):
            self.faults.append(f"request: {url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser. For a module: while Playwright runs, nothing else in this process may use asyncio."""
    require("chromium")
    with sync_playwright() as playwright:
        expect.set_options(timeout=WAIT)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"], timeout=2 * WAIT)
        yield browser
        browser.close()


@dataclass
class Place:
    """A server with tokens, one of each kind, and two readers."""

    server: Server
    tokens: dict[str, str]

    @property
    def url(self) -> str:
        return self.server.url

    def send(self, body: bytes, media_type: str = "image/png", **query: str) -> dict[str, Any]:
        """Send an image as a device does, and return the answer."""
        headers = {"content-type": media_type, "authorization": f"Bearer {self.tokens['device']}"}
        response = httpx.post(f"{self.url}/v1/predict", params=query, content=body, headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def get(self, path: str, name: str = "operator") -> Any:
        """Ask as the holder of a token does."""
        response = httpx.get(self.url + path, headers={"authorization": f"Bearer {self.tokens[name]}"}, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, start_server: Any, make_package: Any, make_segmenter: Any, tmp_path_factory: Any
) -> Place:
    """A place where every image is for review.

    A module says by ``MODELS`` how many classifiers and segmenters it needs, so that each test has a worklist of its own.
    """
    chests, nuclei = getattr(request.module, "MODELS", (1, 1))
    state = tmp_path_factory.mktemp("place")
    roles = {"device": "device", "ada": "annotator", "ben": "annotator", "operator": "operator"}
    tokens = {name: add_token(state / "tokens.json", name, role) for name, role in roles.items()}
    models = [*(make_package(f"chest-{n}") for n in range(chests)), *(make_segmenter(f"nuclei-{n}") for n in range(nuclei))]
    settings = {"OVERREAD_REVIEW_LOSS_PERCENTILE": "0", "OVERREAD_SITES": "north,south", "OVERREAD_THREADS": "1"}
    return Place(start_server(*models, state=state, **settings), tokens)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a server's page in a browser of its own: ``open_page(url, size, theme, view)``."""
    guards: list[Guard] = []
    contexts = []

    def open_page(
        url: str, size: str = "wide", theme: str = "dark", view: str = "", allowed: tuple[str, ...] = (), **options: Any
    ) -> Page:
        guards.append(Guard(url, allowed=allowed))
        context = browser.new_context(viewport=SIZES[size], color_scheme=theme, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        guards[-1].watch(page)
        page.goto(f"{url}/ui{view and '#' + view}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for guard in guards for fault in guard.faults] == []


@pytest.fixture
def sign_in(open_page: Callable[..., Page]) -> Callable[..., Page]:
    """Return a function that opens the page and signs in: ``sign_in(place, "ada", **options of open_page)``."""

    def sign_in(place: Place, name: str, **options: Any) -> Page:
        page = open_page(place.url, **options)
        page.get_by_label("Token").fill(place.tokens[name])
        page.keyboard.press("Enter")
        page.locator("#tabs a").first.wait_for()
        return page

    return sign_in


@pytest.fixture
def ask_labels(ask: Callable[..., Any]) -> Callable[[Place], list[tuple[Any, ...]]]:
    """Return a function that reads the stored labels: (reader, document, model_was_right, source, replaces)."""

    def labels(place: Place) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = ask(
            place.server.state, "SELECT reader, document, model_was_right, source, replaces FROM labels ORDER BY id"
        )
        return rows

    return labels


@pytest.fixture(scope="session")
def ask() -> Callable[[Path, str], list[tuple[Any, ...]]]:
    """Return a function that asks a site's database: ``ask(state, sql)``."""
    import sqlite3

    def query(state: Path, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(state / "overread.sqlite3", timeout=30)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    return query
