"""The labels' part of the OpenAPI document."""

from __future__ import annotations

from service.label_schemas import LabelAnswer, LabelIn, LabelList
from service.label_studio_api import (
    StudioEvent,
    StudioHealth,
    StudioPredictIn,
    StudioPredictions,
    StudioSetup,
    StudioStored,
)
from service.openapi_parts import ALWAYS, BODY, STORE, Json, answer, body, problems

LABEL_DOCUMENTS = (
    LabelIn,
    LabelAnswer,
    LabelList,
    StudioPredictIn,
    StudioPredictions,
    StudioEvent,
    StudioStored,
    StudioHealth,
    StudioSetup,
)
_LABEL = ("not_found", "label_invalid", "label_conflict", "stale_result", "item_taken", "lease_lost")


def label_operations() -> dict[tuple[str, str], Json]:
    """Return (method, route) -> its operation."""
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
        "description": "The caller's name for this label: sent again, it adds nothing. Without one, the label itself is the key.",
    }
    query = [
        {"name": "item_id", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 10**15 - 1}},
        {"name": "result_id", "in": "query", "schema": digest},
    ]
    return {
        ("POST", "/v1/labels"): {
            "summary": "Give a label",
            "description": "Labels are never changed: a correction is a new one that names what it replaces.",
            "parameters": [key],
            "requestBody": body("LabelIn"),
            "responses": answer("LabelAnswer", "It is stored.", 201) | problems((*_LABEL, *BODY, *STORE, *ALWAYS)),
        },
        ("GET", "/v1/labels"): {
            "summary": "The labels of an item or a result",
            "description": "One of item_id and result_id. Annotators get their own, and those that wait for their adjudication.",
            "parameters": query,
            "responses": answer("LabelList", "In the order in which they were given.") | problems(("not_found", *STORE, *ALWAYS)),
        },
        ("GET", "/v1/label-studio/health"): {
            "summary": "Label Studio asks for health",
            "responses": answer("StudioHealth", "It answers.") | problems(ALWAYS),
        },
        ("POST", "/v1/label-studio/setup"): {
            "summary": "Label Studio connects a project",
            "description": "Nothing of the body is read or kept.",
            "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
            "responses": answer("StudioSetup", "Which version answers.") | problems((*BODY, *ALWAYS)),
        },
        ("POST", "/v1/label-studio/predict"): {
            "summary": "Label Studio asks for predictions",
            "description": "From the store, for tasks that were exported here: they carry a result_id. Nothing is fetched.",
            "requestBody": body("StudioPredictIn"),
            "responses": answer("StudioPredictions", "One a task.") | problems(("not_found", *BODY, *STORE, *ALWAYS)),
        },
        ("POST", "/v1/label-studio/webhook"): {
            "summary": "Label Studio tells of an annotation",
            "description": "Created and updated annotations become labels; other events are passed over.",
            "requestBody": body("StudioEvent"),
            "responses": answer("StudioStored", "It is stored.", 201)
            | answer("StudioStored", "It is none that is kept.")
            | problems(("not_found", "label_invalid", "label_conflict", *BODY, *STORE, *ALWAYS)),
        },
    }
