"""The documentation page: complete, and it loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from service.access import ACCESS
from service.api import HEADERS
from service.openapi import document
from service.page import page
from service.wanted import PARAMETERS
from tests.conftest import ROOT

LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "ping", "manifest"}
LOADERS = {
    "script",
    "img",
    "iframe",
    "frame",
    "object",
    "embed",
    "link",
    "base",
    "form",
    "video",
    "audio",
    "source",
    "meta-refresh",
}
VOID = {"meta", "br", "hr", "img"}


class Reader(HTMLParser):
    """Collects what a page loads, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag in LOADERS or names & LOADING or any(name.startswith("on") or name == "http-equiv" for name in names):
            self.loads.append(tag)
        for name, value in attrs:
            if name == "href" and not (value or "").startswith("/v1/"):
                self.loads.append(f"{tag} {value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    reader.loads += re.findall(r"@import|url\(", style)
    return reader


def test_it_loads_nothing() -> None:
    reader = read(page())
    assert reader.loads == []
    assert reader.open == []


@pytest.mark.parametrize(
    "planted",
    [
        "<script>1</script>",
        "<img src=/x>",
        "<a href='https://example.org'>x</a>",
        "<p onclick=x></p>",
        "<style>@import 'x'</style>",
    ],
)
def test_the_check_sees_a_load(planted: str) -> None:
    assert read(f"<body>{planted}</body>").loads


def test_every_route_document_and_role_is_there() -> None:
    for method, route in ACCESS:
        assert f"<code>{method} {route}</code>" in page()
    for name, schema in document()["components"]["schemas"].items():
        assert f"<h2>{name}</h2>" in page()
        for field in schema["properties"]:
            assert f"<code>{field}</code>" in page()


def test_a_browser_is_told_to_load_nothing() -> None:
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert not any(name.endswith("-src") and name not in {"default-src", "style-src"} for name in policy)
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"


def test_every_query_parameter_is_documented() -> None:
    described = {item["name"] for item in document()["paths"]["/v1/predict"]["post"]["parameters"]}
    table = (ROOT / "docs" / "http.md").read_text().partition("| parameter |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)=", table, re.MULTILINE)) == described == PARAMETERS
