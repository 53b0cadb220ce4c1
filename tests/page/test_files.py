"""The page's files: those of others are as they were released, and nothing leads away from the service."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from service.page_files import INDEX, POLICY, TYPES, page_files
from tests.conftest import ROOT

WEB = ROOT / "service" / "web"
VENDOR = WEB / "vendor"
OWN = sorted(path for path in WEB.iterdir() if path.suffix in TYPES)
ELSEWHERE = re.compile(r"(?:https?:)?//(?!www\.w3\.org/)[a-z0-9-]+\.[a-z]|\beval\(|new Function|innerHTML|style=\"")


def declared(text: str) -> dict[str, str]:
    """Read the table of digests: file name to SHA-256."""
    return dict(re.findall(r"^\| `([\w.]+)` \|.*`([0-9a-f]{64})` \|$", text, re.MULTILINE))


def digests() -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir() if path.suffix in TYPES}


def test_what_is_of_others_is_as_it_was_released() -> None:
    assert declared((VENDOR / "THIRD-PARTY.md").read_text()) == digests()


def test_a_changed_file_is_seen() -> None:
    text = (VENDOR / "THIRD-PARTY.md").read_text()
    name, digest = next(iter(digests().items()))
    assert declared(text.replace(digest, digest[::-1])) != digests()
    assert declared(text.replace(f"| `{name}` |", "| `other.js` |")) != digests()


def test_each_licence_is_there() -> None:
    licences = (VENDOR / "LICENCES.txt").read_text()
    named = re.findall(r"([a-z]+) \((?:MIT|ISC|BSD-3-Clause)\)", (VENDOR / "THIRD-PARTY.md").read_text())
    assert set(named) == {"rbush", "quickselect", "earcut", "pbf"}
    for name in ("OpenLayers", *named):
        assert re.search(rf"^{name}\n=+\n\n\S", licences, re.MULTILINE), name


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_leads_elsewhere(path: Path) -> None:
    assert ELSEWHERE.search(path.read_text()) is None


@pytest.mark.parametrize(
    "planted", ['<script src="https://cdn.example/x.js">', "url(//fonts.example/a.woff)", "x.innerHTML = y", '<p style="a">']
)
def test_what_leads_elsewhere_would_be_seen(planted: str) -> None:
    assert ELSEWHERE.search(planted)


def test_every_file_that_is_named_is_served() -> None:
    served = set(page_files())
    named: set[str] = set()
    for path in OWN:
        named |= set(re.findall(r'"/ui/([\w.-]+)"', path.read_text())) | set(re.findall(r'from "\./([\w.-]+)"', path.read_text()))
    assert named <= served
    assert served - named == {INDEX}, "a file that nothing uses"


def test_the_policy_allows_nothing_inline() -> None:
    assert "unsafe" not in POLICY
    assert {part.split()[0] for part in POLICY.split("; ")} >= {
        "default-src",
        "script-src",
        "style-src",
        "frame-ancestors",
        "base-uri",
    }


def test_a_file_holds_one_thing() -> None:
    assert {path.name: n for path in OWN if (n := path.read_text().count("\n")) > 320} == {}
