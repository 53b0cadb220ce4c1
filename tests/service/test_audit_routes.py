"""Every route there is, asked once: which rows the audit has of it afterwards. A new route has to say so here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.access import ACCESS
from service.audit import Audit
from service.openapi import document
from tests.routes import URLS
from tests.service.label_desk import Desk
from tests.service.scans import LEASE, ask, scan
from tests.service.studio import URL, choice, event, task

Route = tuple[str, str]

NOTED: dict[Route, str | None] = {
    ("POST", "/v1/predict"): None,  # whoever sends an image has it (docs/adr/0009-trust.md)
    ("POST", "/v1/dicomweb/studies"): None,
    ("GET", "/v1/results/{result_id}"): "result_read",
    ("GET", "/v1/models"): None,
    ("GET", "/v1/candidates"): None,
    ("GET", "/v1/worklist"): "item_read",
    ("POST", "/v1/worklist/lease"): "item_read",
    ("POST", "/v1/worklist/lease/{lease_id}/renew"): "item_read",
    ("POST", "/v1/worklist/lease/{lease_id}/return"): "item_read",
    ("POST", "/v1/worklist/lease/{lease_id}/skip"): "item_read",
    ("GET", "/v1/items/{item_id}"): "item_read",
    ("GET", "/v1/images/{image_sha256}"): "image_read",
    ("GET", "/v1/sites"): None,
    ("POST", "/v1/labels"): "label_added",
    ("GET", "/v1/labels"): "labels_read",
    ("GET", "/v1/label-studio/health"): None,
    ("POST", "/v1/label-studio/setup"): None,
    ("POST", "/v1/label-studio/predict"): "result_read",
    ("POST", "/v1/label-studio/webhook"): "label_added",
    ("GET", "/metrics"): None,
    ("GET", "/v1/openapi.json"): None,
    ("GET", "/"): None,
    ("GET", "/ui"): None,
    ("GET", "/ui/{file}"): None,
    ("POST", "/v1/session"): "signed_in",
    ("GET", "/v1/session"): None,
    ("DELETE", "/v1/session"): None,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
}
"""Route -> what the audit says of a call that was answered."""
SENDERS = {("POST", "/v1/predict"), ("POST", "/v1/dicomweb/studies")}
OF_AN_IMAGE = {"image_sha256", "result_id", "label_id", "item_id", "probabilities", "polygon"}
"""Members of a document that speaks of one image."""


def shows(route: Route) -> bool:
    """Tell whether the OpenAPI document has a route answer something of an image."""
    schemas = document()["components"]["schemas"]

    def speaks(part: Any) -> bool:
        if isinstance(part, list):
            return any(map(speaks, part))
        if not isinstance(part, dict):
            return False
        if "$ref" in part:
            return speaks(schemas[part["$ref"].rpartition("/")[2]])
        return bool(OF_AN_IMAGE & set(part.get("properties", ()))) or any(map(speaks, part.values()))

    method, path = route
    responses = document()["paths"][path][method.lower()]["responses"]
    good = [answer.get("content", {}) for status, answer in responses.items() if status < "300"]
    return any("image/png" in content or any(map(speaks, content.values())) for content in good)


def calls(desk: Desk) -> dict[Route, Callable[[], Any]]:
    """Return a call of each route that shows or changes what there is; the others are asked without anything."""
    items = [desk.item(number) for number in range(6)]
    first, asked = items[0], LEASE + "/{lease_id}/"
    held = {
        what: desk.ask("otto", "POST", LEASE, json={"item_id": item["item_id"]}).json()["lease_id"]
        for what, item in zip(("renew", "return", "skip"), items[1:4], strict=True)
    }
    desk.label("anna", first, "normal")
    body, kind = scan(1), {"content-type": "application/dicom"}
    own = {"x-overread-request": "page"}
    given: dict[Route, tuple[str, dict[str, Any]]] = {
        ("POST", "/v1/predict"): ("/v1/predict", {"content": body, "headers": kind}),
        ("POST", "/v1/dicomweb/studies"): (
            "/v1/dicomweb/studies",
            {
                "content": b"--bb\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n--bb--\r\n",
                "headers": {"content-type": 'multipart/related; type="application/dicom"; boundary=bb'},
            },
        ),
        ("GET", "/v1/results/{result_id}"): (f"/v1/results/{first['result_id']}", {}),
        ("POST", LEASE): (LEASE, {"json": {}}),
        ("POST", asked + "renew"): (f"{LEASE}/{held['renew']}/renew", {}),
        ("POST", asked + "return"): (f"{LEASE}/{held['return']}/return", {}),
        ("POST", asked + "skip"): (f"{LEASE}/{held['skip']}/skip", {"json": {"reason": "unsure"}}),
        ("GET", "/v1/items/{item_id}"): (f"/v1/items/{first['item_id']}?heatmap=true", {}),
        ("GET", "/v1/images/{image_sha256}"): (f"/v1/images/{first['image_sha256']}", {}),
        ("GET", "/v1/labels"): (f"/v1/labels?item_id={first['item_id']}", {}),
        ("POST", "/v1/label-studio/setup"): (f"{URL}/setup", {"json": {"project": "1"}}),
        ("POST", "/v1/label-studio/predict"): (f"{URL}/predict", {"json": {"tasks": [task(first)]}}),
        ("POST", "/v1/label-studio/webhook"): (f"{URL}/webhook", {"json": event(items[4], choice("normal"))}),
        ("POST", "/v1/session"): ("/v1/session", {"json": {"token": desk.tokens["anna"]}, "headers": own}),
        ("GET", "/ui/{file}"): ("/ui/main.js", {}),
        ("DELETE", "/v1/session"): ("/v1/session", {"headers": own}),
    }
    found = {
        (method, route): lambda method=method, route=route: desk.ask(  # type: ignore[misc]
            "otto", method, given.get((method, route), (URLS[route], {}))[0], **given.get((method, route), ("", {}))[1]
        )
        for method, route in ACCESS
    }
    return found | {("POST", "/v1/labels"): lambda: desk.label("otto", items[5], "pneumonia")}


def observed(desk: Desk) -> dict[Route, str | None]:
    """Call every route, and return what was noted: None where nothing was."""
    rows = "SELECT action, subject FROM audit WHERE id > ? ORDER BY id"
    found: dict[Route, str | None] = {}
    for route, call in calls(desk).items():
        ((before,),) = ask(desk.site, "SELECT coalesce(max(id), 0) FROM audit")
        answer = call()
        assert answer.status_code < 300, (route, answer.text)
        noted = ask(desk.site, rows, before)
        assert all(len(subject) == 64 for _, subject in noted)
        assert len({action for action, _ in noted}) < 2, route
        found[route] = noted[0][0] if noted else None
    return found


def test_every_route_is_noted_as_it_should_be(open_desk: Callable[..., Desk]) -> None:
    assert observed(open_desk()) == NOTED


def test_whatever_shows_something_of_an_image_is_noted() -> None:
    shown = {route for route in ACCESS if shows(route)}
    assert shown >= {("GET", "/v1/images/{image_sha256}"), ("GET", "/v1/results/{result_id}"), ("GET", "/v1/labels")}
    assert not shown & {("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/readyz")}
    assert {route for route in shown if NOTED[route] is None} <= SENDERS


def test_reads_that_are_not_noted_are_seen(open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the first test."""
    monkeypatch.setattr(Audit, "read", lambda *_: None)
    found = observed(open_desk())
    assert {route for route in ACCESS if found[route] != NOTED[route]} == {
        route for route, action in NOTED.items() if (action or "").endswith("_read")
    }
