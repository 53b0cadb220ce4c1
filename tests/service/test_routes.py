"""The body of a request as a document: what is read of it, and what is refused before it is parsed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from models.errors import Refusal
from service.access import Caller
from service.bodies import Bodies, Held
from service.routes import MAX_JSON_VALUES, Call


class Asked(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str


def read(body: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    caller = Caller("anna", "annotator")
    return asyncio.run(Call(Request(scope, receive), caller, {}, Held(Bodies(1 << 30))).document(Asked, 5.0, 1 << 26))


def of_values(count: int) -> bytes:
    """Return a document of ``count`` values, as they are counted."""
    return b'{"name":"a","other":[' + b"1," * (count - 3) + b"1]}"


def test_a_document_of_too_many_values_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    real = Asked.model_validate_json
    monkeypatch.setattr(Asked, "model_validate_json", lambda body: (parsed.append(len(body)), real(body))[1])
    assert read(of_values(MAX_JSON_VALUES)).name == "a"
    assert len(parsed) == 1
    with pytest.raises(Refusal) as refusal:
        read(of_values(MAX_JSON_VALUES + 1))
    assert refusal.value.code == "too_large"
    assert len(parsed) == 1


@pytest.mark.parametrize("one", [b"[],", b"{},", b"1,"])
def test_every_kind_of_value_counts(one: bytes) -> None:
    with pytest.raises(Refusal):
        read(b'{"name":"a","other":[' + one * (MAX_JSON_VALUES + 1) + b"1]}")


def test_long_texts_such_as_an_image_as_data_are_few_values() -> None:
    image = "data:image/png;base64," + "A" * (32 * 1024 * 1024)
    assert read(json.dumps({"name": "a", "image": image}).encode()).name == "a"
