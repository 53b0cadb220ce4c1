"""SECURITY.md and the risk file name tests that exist, settings that there are, and pages that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.settings import Settings
from tests.conftest import ROOT

PAGES = [ROOT / "SECURITY.md", *sorted((ROOT / "docs" / "regulatory").glob("*.md"))]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table whose header line begins so."""
    table = text.partition(f"| {header} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def missing(text: str) -> list[str]:
    """Return the tests that are named and are not there."""
    named = TEST.findall(text)
    return [f"{file}::{name}" for file, name in named if f"def {name}(" not in _source(file)]


def _source(file: str) -> str:
    path = ROOT / file
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_settings_and_pages_are_there(page: Path) -> None:
    text = page.read_text()
    assert missing(text) == []
    settings = {f"OVERREAD_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bOVERREAD_[A-Z_]+[A-Z]\b(?!_)", text))
    assert {name for name in named if name not in settings and not any(each.startswith(f"{name}_") for each in settings)} == set()
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(("name", "header"), [("SECURITY.md", "who"), ("docs/regulatory/risk-management.md", "id")])
def test_each_line_names_what_shows_it(name: str, header: str) -> None:
    found = rows((ROOT / name).read_text(), header)
    assert len(found) > 15
    assert [row[:2] for row in found if not TEST.search(row[-1])] == []


def test_a_test_that_there_is_not_is_seen() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert missing(text.replace("::test_nothing_connects`", "::test_nothing_connect`")) == [
        "tests/e2e/test_no_fetching.py::test_nothing_connect"
    ]
    assert missing(text.replace("tests/service/test_trust.py", "tests/service/test_trusts.py")) != []
