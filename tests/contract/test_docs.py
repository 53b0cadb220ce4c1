"""The documents say what the code says: each error code, setting, metric, verb, route and reason has its entry, no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.cli import VERBS
from models.errors import CODES
from models.triage import REASONS, judge
from service.access import ACCESS
from service.openapi import document
from service.schemas import STATUS
from service.settings import Settings
from service.telemetry import METRICS
from service.worklist import WHY
from tests.models.test_triage import LIMITS, prediction

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(name: str, header: str) -> dict[str, list[str]]:
    """Read the table whose header line begins with ``header``: first cell without backticks -> the other cells."""
    text = (DOCS / name).read_text()
    table = text[text.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("| "))] for line in table]
    found = {row[0].strip("`"): row[1:] for row in cells}
    assert len(found) == len(cells), "an entry stands twice"
    return found


@pytest.mark.parametrize(
    ("name", "header", "expected"),
    [
        ("errors.md", "code", set(CODES)),
        ("settings.md", "variable", {f"OVERREAD_{field.upper()}" for field in Settings.model_fields}),
        ("metrics.md", "metric", set(METRICS)),
        ("commands.md", "verb", {f"overread {verb}" for verb in VERBS}),
        ("http.md", "route", {f"{method} {route}" for method, route in ACCESS}),
        ("http.md", "reason", set(REASONS)),
        ("worklist.md", "why", set(WHY)),
    ],
)
def test_entries(name: str, header: str, expected: set[str]) -> None:
    assert set(rows(name, header)) == expected


def test_verbs_stand_in_the_order_of_the_help_with_what_they_need() -> None:
    needs = {f"overread {name}": f"`{verb.needs}`" if verb.needs else "–" for name, verb in VERBS.items()}
    assert [(name, cells[-1]) for name, cells in rows("commands.md", "verb").items()] == list(needs.items())


def test_error_codes_have_their_status_and_meaning() -> None:
    expected = {code: [str(STATUS.get(code, "–")), text] for code, text in CODES.items()}
    assert rows("errors.md", "code") == expected


def test_settings_have_their_meaning() -> None:
    described = {f"OVERREAD_{name.upper()}": field.description for name, field in Settings.model_fields.items()}
    assert {name: cells[-1] for name, cells in rows("settings.md", "variable").items()} == described


def test_metrics_have_their_labels() -> None:
    labels = {name: ", ".join(labels) or "–" for name, (_, labels) in METRICS.items()}
    assert {name: cells[0] for name, cells in rows("metrics.md", "metric").items()} == labels


def test_why_an_item_is_listed_in_the_same_words() -> None:
    assert {name: cells[-1] for name, cells in rows("worklist.md", "why").items()} == WHY


def test_reasons_give_the_verdict_they_are_documented_with() -> None:
    for reason, cells in rows("http.md", "reason").items():
        if reason in {"domain_far", "out_of_domain", "predicted_loss_high", "within_limits"}:
            continue  # these follow from the prediction, not from a note
        assert judge(prediction(), LIMITS, [reason]).verdict == cells[0]


def test_routes_are_the_openapi_documents() -> None:
    operations = {(method.upper(), path) for path, item in document()["paths"].items() for method in item}
    assert operations == set(ACCESS)
