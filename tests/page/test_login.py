"""Signing in to the page, and what a browser can do with the cookie (row 19 of docs/reliability.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import WAIT


@pytest.fixture(scope="module")
def shared(tmp_path_factory: Any, start_server: Any, make_package: Any, make_segmenter: Any) -> Any:
    """A place that these tests share; none may stop it."""
    from service.tokens import add_token
    from tests.page.conftest import Place

    state = tmp_path_factory.mktemp("login")
    tokens = {
        name: add_token(state / "tokens.json", name, role) for name, role in {"ada": "annotator", "operator": "operator"}.items()
    }
    return Place(start_server(make_package("tiny"), make_segmenter("nuclei"), state=state), tokens)


REFUSED = (
    "Failed to load resource: the server responded with a status of 401",
    "Failed to load resource: the server responded with a status of 403",
)


def test_in_and_out_by_keys_alone(shared: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(shared.url, allowed=REFUSED)
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type("ovr_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This token is not known here.")
    page.get_by_label("Token").fill("")
    page.keyboard.type(shared.tokens["ada"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    expect(page.locator("#who")).to_contain_text("ada")
    page.reload()
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    out = page.get_by_role("button", name="Sign out")
    for _ in range(20):
        page.keyboard.press("Tab")
        if out.evaluate("(e) => e === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.context.cookies() == []


def test_scripts_cannot_read_the_cookie(shared: Any, sign_in: Callable[..., Page]) -> None:
    page = sign_in(shared, "operator")
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("overread_session", True, "Strict")
    assert page.evaluate("document.cookie") == ""
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert shared.tokens["operator"] not in stored
    assert cookie["value"] not in stored


def test_a_session_that_ends_is_said_and_begins_again(shared: Any, sign_in: Callable[..., Page], ask: Any) -> None:
    import sqlite3

    page = sign_in(shared, "ada", allowed=REFUSED)
    connection = sqlite3.connect(shared.server.state / "overread.sqlite3", timeout=30)
    with connection:
        connection.execute("UPDATE sessions SET expires_at = 1")
    connection.close()
    page.get_by_role("link", name="Sites").click()
    expect(page.get_by_text("You were signed out after a while.")).to_be_visible()
    page.get_by_label("Token").fill(shared.tokens["ada"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sites")).to_be_visible()


def test_a_reader_sends_no_scans(shared: Any, sign_in: Callable[..., Page]) -> None:
    page = sign_in(shared, "ada", view="scan")
    expect(page.get_by_text("sends no scans")).to_be_visible()
    assert page.locator("input[type=file]").count() == 0


def test_an_open_service_asks_nobody(server: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    expect(page.get_by_role("heading", name="Drop a scan here")).to_be_visible()
    assert page.get_by_role("button", name="Sign out").count() == 0


@pytest.fixture
def evil() -> Iterator[str]:
    """Another site of this machine: to a browser it is the same site as the service, at another origin."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>evil</title>")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ATTACK = """async ([target, headers]) => {
  const sent = [];
  const asked = [["POST", "/v1/predict", "x"], ["DELETE", "/v1/session", null], ["POST", "/v1/session", "{}"]];
  for (const [method, path, body] of asked) {
    try {
      const options = { method, body, credentials: "include", headers, mode: Object.keys(headers).length ? "cors" : "no-cors" };
      await fetch(target + path, options);
      sent.push("sent");
    } catch { sent.push("blocked"); }
  }
  return sent;
}"""


def test_a_page_of_another_origin_changes_nothing(shared: Any, sign_in: Callable[..., Page], evil: str, ask: Any) -> None:
    # The cookie goes with these requests, since 127.0.0.1 is one site whatever the port: SameSite alone would not do
    page = sign_in(shared, "operator")
    sessions = ask(shared.server.state, "SELECT count(*) FROM sessions")
    other = page.context.new_page()
    other.goto(evil)
    assert other.evaluate(ATTACK, [shared.url, {}]) == ["sent", "blocked", "sent"]
    # With the header the browser asks first, and is not allowed
    assert other.evaluate(ATTACK, [shared.url, {"x-overread-request": "page"}]) == ["blocked"] * 3
    assert ask(shared.server.state, "SELECT count(*) FROM results") == [(0,)]
    assert ask(shared.server.state, "SELECT count(*) FROM sessions") == sessions
    assert page.evaluate("async () => (await fetch('/v1/models')).status") == 200, "still signed in"


def test_the_page_cannot_be_framed(shared: Any, open_page: Callable[..., Page], evil: str) -> None:
    page = open_page(shared.url)
    other = page.context.new_page()
    other.goto(evil)
    with other.expect_console_message(lambda message: "frame-ancestors" in message.text, timeout=WAIT):
        other.evaluate(
            "(url) => { const f = document.createElement('iframe'); f.src = url; document.body.append(f); }", shared.url + "/ui"
        )
