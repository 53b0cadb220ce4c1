"""The command line: every verb leads to a function that is there, and refusals become exit codes, not tracebacks."""

import json
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
    lines = shown.splitlines()
    for title, verbs in cli.GROUPS.items():
        below = lines[lines.index(f"{title}:") + 1 :][: len(verbs)]
        for line, (name, verb) in zip(below, verbs.items(), strict=True):
            assert line.split(verb.summary)[0].strip() == name
            assert line.endswith(f" [{verb.needs}]") == bool(verb.needs)
    assert len(cli.VERBS) == sum(map(len, cli.GROUPS.values()))  # none stands twice


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


def test_verbs_that_need_no_extra_load_without_any_and_the_others_are_marked() -> None:
    code = """
import importlib, json, sys
from models import cli

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in cli.EXTRAS:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
found = {}
for name, verb in cli.VERBS.items():
    try:
        importlib.import_module(verb.door.split(":")[0])
    except ModuleNotFoundError as error:
        found[name] = cli.EXTRAS[error.name.split(".")[0]]
print(json.dumps(found))
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(shown)
    assert found == {name: cli.VERBS[name].needs for name in found}
    assert {"score", "train classifier", "release"} <= found.keys()
