"""docs/reliability.md names the tests, variables and limits that exist, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from service.bodies import AT_ONCE
from service.heads import HEAD_SECONDS, MAX_HEAD_BYTES, MAX_UNREAD_BYTES
from service.routes import MAX_JSON_VALUES
from service.settings import Settings
from service.wall import MAX_PARTS
from tests.conftest import ROOT

ROWS = 25
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text()
NOT_LENGTHS = {"OVERREAD_DATA"}
CONTROL = re.compile(
    r"def test_\w*(see|seen|planted|control|would|can_fail|grows|does_not|alone)\w*|pytest\.raises|[Tt]he control"
)


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table."""
    table = text.partition("| # |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def long_commands(makefile: str) -> dict[int, tuple[set[str], set[str]]]:
    """Return what ``make test-long-N`` runs: settings and files of each row N."""
    found = {}
    for number, words in re.findall(r"^LONG_(\d+) = (.*)$", makefile, re.MULTILINE):
        settings = {word for word in words.split() if word.startswith("OVERREAD_")}
        found[int(number)] = settings, set(words.split()) - settings
    return found


def check(text: str, makefile: str = MAKEFILE) -> None:
    """Compare a document with the tests and the commands; raises AssertionError."""
    commands = long_commands(makefile)
    assert "test-long: $(LONG_ROWS)" in makefile
    named: set[str] = set()
    variables: set[str] = set()
    numbers = []
    for number, promise, tests, figure, long, last in rows(text):
        numbers.append(int(number))
        assert promise
        assert figure
        files = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert files, f"row {number} names no test"
        for file in files:
            assert (ROOT / file).is_file(), f"row {number}: there is no {file}"
        sources = "".join((ROOT / file).read_text() for file in files)
        assert CONTROL.search(sources), f"row {number} has no control"
        for variable, usual in re.findall(r'int\(os\.environ\.get\("(OVERREAD_\w+)", "([1-9]\d*)"\)', sources):
            assert variable not in long or f"{int(usual):,} " in figure, f"row {number}: every run takes {usual}"
        for variable in re.findall(r"OVERREAD_\w+", long):
            assert f'"{variable}"' in sources, f"row {number}: its tests do not read {variable}"
            variables.add(variable)
        settings, run = commands.pop(int(number), (set(), set()))
        assert set(re.findall(r"`(OVERREAD_\w+=\w+)`", long)) == settings, (
            f"row {number}: make test-long-{number} runs something else"
        )
        assert run <= set(files)
        for variable in re.findall(r"OVERREAD_\w+", long):
            reading = {file for file in files if f'"{variable}"' in (ROOT / file).read_text()}
            assert reading <= run, f"row {number}: make test-long-{number} leaves out {reading - run}"
        assert bool(long) == bool(last)
        assert not last or last == "not run" or re.search(r"\(20\d\d-\d\d-\d\d\)$", last), f"row {number}: when was that?"
        named |= set(files)
    assert numbers == list(range(1, ROWS + 1))
    assert commands == {}, "a long command of no row"
    read = {
        name
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r'environ(?:\.get\(|\[)"(OVERREAD_\w+)"', file.read_text())
        if name.removeprefix("OVERREAD_").lower() not in Settings.model_fields
    }
    assert variables == read - NOT_LENGTHS
    ours = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests" / "e2e").glob("test_*.py")
        if "docs/reliability.md" in file.read_text()
    }
    assert ours <= named, f"tests that claim a row and are not in the table: {ours - named}"


def test_the_document_names_what_exists() -> None:
    check(DOCUMENT)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("test_kills.py", "test_killing.py"),
        lambda text: text.replace("`OVERREAD_KILLS=500` |", "|"),
        lambda text: text.replace("OVERREAD_REQUESTS=", "OVERREAD_ASKS="),
        lambda text: re.sub(r"\n\| 17 .*", "", text),
        lambda text: text.replace("| 6 |", "| 5 |"),
        lambda text: re.sub(r"\n\| 25 .*", "", text),
        lambda text: text.replace("OVERREAD_KILLS=500", "OVERREAD_KILLS=50"),
        lambda text: text.replace("10,000 mutations", "20,000 mutations"),
        lambda text: text.replace("recovers by itself | | |", "recovers by itself | | it did (2026-01-01) |"),
        lambda text: re.sub(r"(OVERREAD_KILLS=500`) \|[^|]*\|", r"\1 | all well, once |", text),
    ],
)
def test_a_spoilt_document_is_seen(spoil: Callable[[str], str]) -> None:
    assert spoil(DOCUMENT) != DOCUMENT
    with pytest.raises(AssertionError):
        check(spoil(DOCUMENT))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("test-long: $(LONG_ROWS)", "test-long:"),
        lambda text: text.replace(" tests/e2e/test_labels.py", ""),
        lambda text: text.replace("LONG_5 =", "LONG_6 ="),
    ],
)
def test_a_spoilt_command_is_seen(spoil: Callable[[str], str]) -> None:
    assert spoil(MAKEFILE) != MAKEFILE
    with pytest.raises(AssertionError):
        check(DOCUMENT, spoil(MAKEFILE))


def test_the_limits_are_those_in_the_code() -> None:
    table = DOCUMENT.partition("| what | limit |")[2].partition("\n\n")[0]
    limits = [line.split("|")[2].strip() for line in table.splitlines()[2:]]
    numbers = {
        f"{value:g}" if value < 1000 else str(value) for value in (MAX_HEAD_BYTES, HEAD_SECONDS, MAX_UNREAD_BYTES, MAX_PARTS)
    }
    numbers |= {str(MAX_JSON_VALUES), f"{AT_ONCE} times `OVERREAD_MAX_BODY_BYTES`"}
    settings = {f"`OVERREAD_{name.upper()}`" for name in ("max_body_bytes", "body_timeout_seconds", "queue", "deadline_seconds")}
    assert set(limits) == numbers | settings
    assert {name.strip("`").removeprefix("OVERREAD_").lower() for name in settings} <= set(Settings.model_fields)
