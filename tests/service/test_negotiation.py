"""Which media type is answered (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import Refusal
from service.negotiation import GEOJSON, JSON, choose

BOTH = (JSON, GEOJSON)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("application/geo+json", GEOJSON),
        ("APPLICATION/GEO+JSON", GEOJSON),
        ("application/geo+json, */*", GEOJSON),
        ("application/geo+json;q=0.5, */*", JSON),
        ("application/json;q=0.4, application/geo+json;q=0.5", GEOJSON),
        ("application/json;q=0, */*", GEOJSON),
        ("application/json; q=0 , application/*;q=0.001", GEOJSON),
        ("application/geo+json, application/json", JSON),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("application/geo+json;charset=utf-8;q=1", GEOJSON),
        ("nonsense", JSON),
        ("application/geo+json;q=nan, application/geo+json;q=x", JSON),
        (",,application/geo+json,", GEOJSON),
    ],
)
def test_choice(accept: str, expected: str) -> None:
    assert choose(accept, BOTH) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/*", "*/*;q=0", "application/json;q=0", "application/jso"])
def test_what_there_is_not(accept: str) -> None:
    with pytest.raises(Refusal) as caught:
        choose(accept, (JSON,))
    assert caught.value.code == "not_acceptable"


@given(st.text(st.characters(max_codepoint=255), max_size=80))
@settings(deadline=None, max_examples=300)
def test_no_header_is_a_fault(accept: str) -> None:
    with contextlib.suppress(Refusal):
        assert choose(accept, BOTH) in BOTH
