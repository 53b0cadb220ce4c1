"""The command line: every verb leads to a function that is there, and refusals become exit codes, not tracebacks."""

import subprocess
import sys
from pathlib import Path

import pytest

from models import cli
from models.errors import Refusal

ROOT = Path(__file__).resolve().parents[2]


def test_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train"], ["train", "nonsense"]])
def test_an_unknown_verb_is_misuse(arguments: list[str]) -> None:
    assert cli.main(arguments) == 2


def test_a_refusal_is_one_line_and_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: list[str]) -> int:
        raise Refusal("config_invalid", "Planted.")

    monkeypatch.setattr("models.batch.main", refuse)
    assert cli.main(["predict"]) == 2
    assert capsys.readouterr().err == "overread predict: [config_invalid] Planted.\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("models.batch.main", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["predict"])


def test_the_command_imports_no_room_before_it_is_told_a_verb() -> None:
    code = "import sys, models.cli; print(sorted(set(sys.modules) & {'torch', 'bentoml', 'service', 'training', 'onnxruntime'}))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
