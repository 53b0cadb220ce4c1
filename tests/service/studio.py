"""What Label Studio sends: tasks, requests for predictions, events."""

from __future__ import annotations

from typing import Any

from tests.service.discs import SIDE
from tests.service.label_desk import Desk

URL = "/v1/label-studio"


def task(item: dict[str, Any], **data: Any) -> dict[str, Any]:
    """A task as Label Studio sends it back."""
    return {
        "id": 19,
        "data": {"result_id": item["result_id"], "image": "/data/local-files/?d=x.png"} | data,
        "meta": {},
        "project": 2,
    }


def predict(desk: Desk, *tasks: Any) -> Any:
    """Ask for predictions."""
    body = {"tasks": list(tasks), "project": "2.1629208174", "label_config": "<View/>", "params": {"login": "u", "password": "p"}}
    return desk.ask("anna", "POST", f"{URL}/predict", json=body)


def event(item: dict[str, Any], *parts: dict[str, Any], action: str = "ANNOTATION_CREATED", **annotation: Any) -> dict[str, Any]:
    """What the webhook sends of an annotation."""
    given = {
        "id": 17, "result": list(parts), "was_cancelled": False, "ground_truth": False, "created_at": "2026-08-17T13:52:48.5Z",
        "updated_at": "2026-08-17T13:52:48.5Z", "lead_time": 37.13, "prediction": {}, "task": 19, "completed_by": 7,
    } | annotation  # fmt: skip
    return {"action": action, "annotation": given, "project": {"id": 2, "token": "not ours"}, "task": task(item)}


def choice(name: str) -> dict[str, Any]:
    """A choice of a class."""
    return {"value": {"choices": [name]}, "id": "x", "from_name": "class", "to_name": "image", "type": "choices"}


def part(kind: str, **value: Any) -> dict[str, Any]:
    """A part with positions, in percent."""
    return {"type": kind, "original_width": SIDE, "original_height": SIDE, "image_rotation": 0, "value": value, "id": "x"}


def tell(desk: Desk, document: dict[str, Any], who: str = "anna") -> Any:
    """Send an event."""
    return desk.ask(who, "POST", f"{URL}/webhook", json=document)
