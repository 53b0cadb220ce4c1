"""A site with readers who label scans over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.analysis import Site
from service.tokens import add_token
from tests.service.scans import ask, scan, take

READERS = ("anna", "ben", "carla", "dora")
COUNT = "SELECT count(*) FROM labels"


class Desk:
    """A site with readers, and scans in it."""

    def __init__(self, site: Site, connect: Callable[..., Any], tokens: dict[str, str]) -> None:
        self.site, self.client, self.tokens = site, connect(site), tokens

    def ask(self, who: str, method: str, url: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tokens[who]}"} | options.pop("headers", {})
        answer: httpx.Response = self.client.request(method, url, headers=headers, **options)
        return answer

    def item(self, seed: int = 1, body: bytes | None = None, **wanted: Any) -> dict[str, Any]:
        """Send a scan, and return what a label names of its item."""
        kind = "image/png" if body is not None and body.startswith(b"\x89PNG") else "application/dicom"
        given = take(self.site, body or scan(seed), kind, **wanted).stored.result
        ((number,),) = ask(self.site, "SELECT id FROM items WHERE result_id = ?", given["id"]) or [(None,)]
        return {"item_id": number, "result_id": given["id"]} | {name: given[name] for name in ("image_sha256", "model_sha256")}

    def label(
        self, who: str, item: dict[str, Any], says: str | None = None, key: str | None = None, **more: Any
    ) -> httpx.Response:
        """Give a class, or what ``more`` says."""
        document = item | {"model_was_right": False} | ({"classes": {says: True}} if says else {}) | more
        headers = {"idempotency-key": key} if key else {}
        return self.ask(who, "POST", "/v1/labels", json=document, headers=headers)

    def state(self, item: dict[str, Any]) -> str:
        ((state,),) = ask(self.site, "SELECT state FROM items WHERE id = ?", item["item_id"])
        return str(state)

    def listed(self, who: str, item: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.ask(who, "GET", f"/v1/labels?item_id={item['item_id']}")
        assert answer.status_code == 200
        found: list[dict[str, Any]] = answer.json()["labels"]
        return found


def code(answer: httpx.Response) -> str:
    """Return the error code of an answer."""
    return str(answer.json()["code"])


def add_readers(file: Path) -> dict[str, str]:
    """Write a tokens file of four annotators, an operator and a device; return the tokens."""
    tokens = {name: add_token(file, name, "annotator") for name in READERS}
    return tokens | {"otto": add_token(file, "otto", "operator"), "ct": add_token(file, "ct", "device")}


def marks(*points: tuple[float, float]) -> dict[str, Any]:
    """Return points as GeoJSON."""
    geometry = {"type": "MultiPoint", "coordinates": [list(point) for point in points]}
    return {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geometry, "properties": {}}]}
