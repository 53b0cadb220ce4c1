"""The worklist's part of the OpenAPI document."""

from __future__ import annotations

from service.loop_schemas import ItemDetail, Lease, LeaseIn, Sites, SkipIn, Worklist
from service.openapi_parts import ALWAYS, BODY, STORE, Json, answer, body, problems
from service.worklist_api import DEFAULT_BUDGET, DEFAULT_DAYS, MOST_BUDGET, MOST_DAYS

WORKLIST_DOCUMENTS = (Worklist, Lease, LeaseIn, SkipIn, ItemDetail, Sites)


def _path(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, default: int, most: int, description: str) -> Json:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return {"name": name, "in": "query", "schema": schema, "description": description}


def worklist_operations() -> dict[tuple[str, str], Json]:
    """Return (method, route) -> its operation."""
    model = {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "A loaded model; the first by default."}
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    lease = [_path("lease_id", {"type": "string", "pattern": "^[0-9a-f]{32}$"})]
    item = [_path("item_id", {"type": "integer", "minimum": 1, "maximum": 10**15 - 1})]
    evidence = "Where the evidence lies, drawn anew from the kept pixels; of classifiers only."
    heatmap = {"name": "heatmap", "in": "query", "schema": {"type": "boolean", "default": False}, "description": evidence}
    lost = problems(("not_found", "lease_lost", *STORE, *ALWAYS))
    png = {"200": {"description": "The PNG.", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}}
    return {
        ("GET", "/v1/worklist"): {
            "summary": "What to label next",
            "description": "Nothing is leased by it.",
            "parameters": [model, _query("budget", DEFAULT_BUDGET, MOST_BUDGET, "Items at most.")],
            "responses": answer("Worklist", "The best first.") | problems(("unknown_model", *STORE, *ALWAYS)),
        },
        ("POST", "/v1/worklist/lease"): {
            "summary": "Lease an item",
            "description": "The named one, or the first of the worklist that is free.",
            "requestBody": body("LeaseIn"),
            "responses": answer("Lease", "It is the caller's for a time.")
            | problems(("not_found", "unknown_model", "worklist_empty", "item_taken", *BODY, *STORE, *ALWAYS)),
        },
        ("POST", "/v1/worklist/lease/{lease_id}/renew"): {
            "summary": "Renew a lease",
            "parameters": lease,
            "responses": answer("Lease", "It lasts its whole time again.") | lost,
        },
        ("POST", "/v1/worklist/lease/{lease_id}/return"): {
            "summary": "Return a leased item",
            "parameters": lease,
            "responses": answer("Item", "It is free again.") | lost,
        },
        ("POST", "/v1/worklist/lease/{lease_id}/skip"): {
            "summary": "Pass a leased item over",
            "parameters": lease,
            "requestBody": body("SkipIn"),
            "responses": answer("Item", "It is free for others, and not offered to the caller again.")
            | problems(("not_found", "lease_lost", *BODY, *STORE, *ALWAYS)),
        },
        ("GET", "/v1/items/{item_id}"): {
            "summary": "An item with its result",
            "parameters": [*item, heatmap],
            "responses": answer("ItemDetail", "As it stands now.") | problems(("not_found", *STORE, *ALWAYS)),
        },
        ("GET", "/v1/images/{image_sha256}"): {
            "summary": "Kept pixels",
            "parameters": [_path("image_sha256", digest)],
            "responses": png | problems(("not_found", *STORE, *ALWAYS)),
        },
        ("GET", "/v1/sites"): {
            "summary": "What each site saw, day by day",
            "parameters": [model, _query("days", DEFAULT_DAYS, MOST_DAYS, "Days back, today included.")],
            "responses": answer("Sites", "The newest day first.") | problems(("unknown_model", *STORE, *ALWAYS)),
        },
    }
