"""Pieces of the OpenAPI document that its operations share."""

from __future__ import annotations

from typing import Any

from service.schemas import STATUS

Json = dict[str, Any]

ALWAYS = (
    *("bad_request", "method_not_allowed", "unauthenticated", "session_expired", "csrf", "forbidden", "rate_limited"),
    *("not_ready", "internal_error"),
)
"""Codes that every route may answer."""
BODY = ("unsupported_media_type", "too_large", "request_timeout")
"""Those of a route that reads a body."""
STORE = ("overloaded", "deadline_exceeded", "storage_unavailable", "storage_full")
"""Those of a route that reads or writes the store on the engine's threads."""


def body(schema: str) -> Json:
    """Return the request body that is a document of the components."""
    return {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def problems(codes: tuple[str, ...]) -> Json:
    """Return the responses for error codes, one a status."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS[code], []).append(code)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        str(status): {
            "description": "One of the codes " + ", ".join(names) + ".",
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status, names in sorted(by_status.items())
    }


def answer(schema: str, description: str, status: int = 200) -> Json:
    """Return the response with a document of the components."""
    return {
        str(status): {
            "description": description,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        }
    }


def text(media_type: str, description: str) -> Json:
    """Return the response with a text."""
    return {"200": {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}}
