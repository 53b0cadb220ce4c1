"""``overread VERB --help`` shows, for every verb, an example that the verb itself understands."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from models import cli
from models.command import command_parser
from tests.shell_blocks import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if "overread " in page.read_text()]
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def shown(verb: str, capsys: pytest.CaptureFixture[str], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what ``overread VERB --help`` prints on a terminal so wide."""
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb.split(), "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def examples(text: str) -> list[list[str]]:
    """Return the words of each example below the options."""
    last = re.split(r"^examples?:\n", text, maxsplit=1, flags=re.MULTILINE)[1]
    assert all(line.startswith("  ") for line in last.splitlines())
    return [shlex.split(line, comments=True) for line in last.replace("\\\n", " ").splitlines()]


class Parsed(Exception):
    """No error: the verb is stopped once it has read its arguments."""


def parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the verb that these words call takes them; it is stopped before it does anything."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: object) -> None:
        parse(parser, *arguments)  # type: ignore[call-overload]
        raise Parsed

    while ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words[0] != "overread":
        return False
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            return cli.main(words[1:]) == 0
        except Parsed:
            return True
        except SystemExit as ended:
            return ended.code == 0


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_shows_an_example_that_it_takes(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(verb, capsys, 100, monkeypatch)
    assert text.startswith(f"usage: overread {verb} ")
    found = examples(text)
    assert found
    for words in found:
        assert f"overread {verb}" in " ".join(words)
        assert parses(words, monkeypatch), words
        assert not parses([*words, "--no-such-option"], monkeypatch), words


@pytest.mark.parametrize(
    "line",
    [
        "overread predict scans/",
        "overread predict scans/ --out a.csv --budget 3",
        "overread no-such-verb",
        "predict scans/ --out a",
    ],
)
def test_an_example_that_does_not_parse_is_seen(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"usage: overread\n\noptions:\n  -h\n\nexample:\n  {line}\n"
    assert not parses(examples(text)[0], monkeypatch)
    capsys.readouterr()


def commands(page: str) -> list[list[str]]:
    """Return the words of each ``overread`` command in the shell blocks of a page, up to a pipe or a redirection."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines() if "overread " in line]
    parts = [shlex.split(re.split(r" [|>;]| &&", line)[0], comments=True) for line in lines]
    return [words for words in parts if "overread" in words and all(map(ASSIGNMENT.match, words[: words.index("overread")]))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_command_of_the_pages_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(page.read_text()):
        assert parses(words, monkeypatch), words


def test_a_command_of_a_page_that_does_not_parse_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (
        "```sh\ncat a | overread no\nA=b overread predict scans \\\n  --out a.csv > log  # so\noverread predict --into b\n```\n"
    )
    right, wrong = commands(page)
    assert right == ["A=b", "overread", "predict", "scans", "--out", "a.csv"]
    assert (parses(right, monkeypatch), parses(wrong, monkeypatch)) == (True, False)


def test_an_example_is_shown_as_it_is_and_the_rest_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown("train classifier", capsys, 60, monkeypatch)
    above, below = re.split(r"^example:\n", text, flags=re.MULTILINE)
    description = above.split("\n\n")[1].splitlines()
    assert len(description) > 1
    assert max(map(len, description)) <= 60
    first, second = below.splitlines()
    assert first.endswith(" \\")
    assert second.startswith("      --")


def test_a_parser_without_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match="shows no example"):
        command_parser("predict", "Predict.")


@pytest.mark.parametrize("group", ["train", "labels"])
def test_a_group_of_verbs_lists_its_own(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([group, "--help"]) == 0
    listed = capsys.readouterr().out
    own = {verb for verb in cli.VERBS if verb.startswith(f"{group} ")}
    assert {verb for verb in cli.VERBS if re.search(rf"^  {verb} ", listed, re.MULTILINE)} == own
    assert cli.main([group]) == 2
    assert cli.main([group, "nothing"]) == 2
    assert listed.splitlines()[0] in capsys.readouterr().err


def test_the_list_of_verbs_ends_with_an_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["--help"]) == 0
    for words in examples(capsys.readouterr().out):
        assert parses(words, monkeypatch), words


def other_parsers(source: str) -> list[int]:
    """Return the lines that make a parser."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [node.lineno for node in calls if ast.unparse(node.func).rpartition(".")[2] == "ArgumentParser"]


def test_all_parsers_of_verbs_come_from_one_door() -> None:
    files = [path for room in ("models", "training", "service") for path in (ROOT / room).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in files if other_parsers(path.read_text())} == {"models/command.py"}
    assert other_parsers("import argparse\nargparse.ArgumentParser()") == [2]
    assert {importlib.import_module(entry.split(":")[0]).__name__.split(".")[0] for entry, *_ in cli.VERBS.values()} == {
        "models", "service", "training",
    }  # fmt: skip
