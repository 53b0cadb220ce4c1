"""The page's part of the OpenAPI document."""

from __future__ import annotations

from service.openapi_parts import ALWAYS, BODY, Json, answer, body, problems, text

_STORE = ("storage_unavailable", "storage_full")


def page_operations() -> dict[tuple[str, str], Json]:
    """Return (method, route) -> its operation."""
    file = {
        "name": "file",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[a-z0-9-]+[.](css|js|svg)$"},
    }
    unchanged = {"304": {"description": "As the browser has it."}}
    return {
        ("GET", "/ui"): {
            "summary": "The page for people",
            "responses": text("text/html", "It loads nothing from elsewhere.") | unchanged | problems(ALWAYS),
        },
        ("GET", "/ui/{file}"): {
            "summary": "A file of the page",
            "parameters": [file],
            "responses": text("text/javascript", "Or text/css, or image/svg+xml.") | unchanged | problems(("not_found", *ALWAYS)),
        },
        ("POST", "/v1/session"): {
            "summary": "Sign in to the page",
            "description": "Gives a cookie that stands for the token. Needs the header X-Overread-Request.",
            "requestBody": body("Login"),
            "responses": answer("SessionAnswer", "Signed in.") | problems((*BODY, *_STORE, *ALWAYS)),
        },
        ("GET", "/v1/session"): {
            "summary": "Who is signed in",
            "responses": answer("SessionAnswer", "Or nobody.") | problems((*_STORE, *ALWAYS)),
        },
        ("DELETE", "/v1/session"): {
            "summary": "Sign out",
            "responses": answer("SessionAnswer", "The cookie opens nothing any more.") | problems((*_STORE, *ALWAYS)),
        },
    }
