"""Which package is current: promoted, rolled back, kept whole, and decided by one person at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.comparison import MIN_PATIENTS, REPORT, Difference, why_worse
from models.errors import Refusal
from service import packages, promotion
from service.promotions import Promotions, in_force
from service.store import Store
from tests.conftest import tiny_card, tiny_graph
from tests.service.packages import compare, difference, identity, write

pytestmark = pytest.mark.dialects


@pytest.fixture
def in_use(where: Any) -> Callable[[], dict[str, dict[str, str]]]:
    """Return a function that says which packages are in force, read anew."""

    def read() -> dict[str, dict[str, str]]:
        store = Store(where)
        rows = Promotions(store).rows()
        store.close()
        return {role: in_force(rows, role) for role in ("current", "candidate")}  # type: ignore[arg-type]

    return read


def code_of(act: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        act()
    return caught.value.code


def test_a_package_that_was_compared_is_promoted_and_copied(desk: Any, package: Path, tmp_path: Path, in_use: Any) -> None:
    second = write(tmp_path / "second", "1.1.0")
    compare(second, package)
    assert desk.promote(second, "") == "tiny: version 1.1.0 is current"
    assert in_use()["current"] == {"tiny": identity(second)}
    kept = tmp_path / "state" / "packages"
    for original in (package, second):  # the one before too: a rollback needs nothing from outside
        for name in ("card.json", "model.onnx"):
            assert (kept / identity(original) / name).read_bytes() == (original / name).read_bytes()
    assert (kept / identity(second) / REPORT).read_bytes() == (second / REPORT).read_bytes()
    assert desk.promote(second, "") == "tiny: version 1.1.0 is current already"
    first, last = [line.split("\t") for line in desk.history()]
    assert first[5:] == ["settings", "What the settings name, as it was before the first promotion."]
    assert last[5:] == [promotion.actor(), promotion.NOT_WORSE]


def test_what_was_not_compared_with_the_current_one_needs_a_reason(desk: Any, package: Path, tmp_path: Path, in_use: Any) -> None:
    second, third = write(tmp_path / "second", "1.1.0"), write(tmp_path / "third", "1.2.0")
    assert code_of(lambda: desk.promote(second, "")) == "candidate_not_compared"
    assert in_use()["current"] == {}
    desk.promote(second, "the old one was trained on wrong labels")
    compare(third, package)  # which is current no more
    assert code_of(lambda: desk.promote(third, "")) == "candidate_not_compared"
    assert in_use()["current"] == {"tiny": identity(second)}
    compare(third, second)
    desk.promote(third, "")
    assert in_use()["current"] == {"tiny": identity(third)}


def test_another_packages_comparison_does_not_count(desk: Any, package: Path, tmp_path: Path) -> None:
    second, third = write(tmp_path / "second", "1.1.0"), write(tmp_path / "third", "1.2.0")
    compare(second, package)
    shutil.copy(second / REPORT, third / REPORT)
    assert code_of(lambda: desk.promote(third, "")) == "candidate_not_compared"


def test_a_worse_one_needs_a_reason_which_is_kept(desk: Any, package: Path, tmp_path: Path) -> None:
    second = write(tmp_path / "second", "1.1.0")
    compare(second, package, difference("all", 0.2, 0.1))
    assert code_of(lambda: desk.promote(second, "")) == "candidate_worse"
    assert desk.history() == []
    desk.promote(second, "trains on the new detector")
    assert desk.history()[-1].endswith("\ttrains on the new detector")


def test_a_comparison_that_was_changed_is_refused(desk: Any, package: Path, tmp_path: Path) -> None:
    second = write(tmp_path / "second", "1.1.0")
    compare(second, package, difference("all", 0.2, 0.1))
    document = json.loads((second / REPORT).read_text())
    (second / REPORT).write_text(json.dumps(document | {"worse": []}))
    assert code_of(lambda: desk.promote(second, "")) == "package_invalid"


@pytest.mark.parametrize(
    ("differences", "number"),
    [
        ([difference("all", -0.1, 0.05)], 0),
        ([difference("all", 0.0, 0.0)], 0),  # the same package
        ([difference("all", 0.0, 0.05)], 0),  # the upper end is the margin
        ([difference("all", 0.0, 0.06)], 1),  # too little evidence is none
        ([difference("all", -0.1, 0.05, MIN_PATIENTS - 1)], 1),
        ([difference("all", -0.1, 0.05) | {"low": None, "high": None}], 1),
        ([difference("all", -0.1, 0.05), difference("east", 0.02, 0.01)], 1),
        ([difference("all", -0.1, 0.05), difference("east", 0.02, 0.03)], 0),
        ([difference("all", -0.1, 0.05), difference("east", 0.02, 0.01, MIN_PATIENTS - 1)], 0),
        ([difference("all", -0.1, 0.05), difference("west", -0.02, 0.01, metric="auroc")], 1),
        ([difference("all", -0.1, 0.05), difference("west", 0.02, 0.01, metric="auroc")], 0),
        ([difference("all", -0.1, 0.05), difference("west", 0.02, 0.01, metric="ece")], 0),  # decides nothing
    ],
)
def test_when_a_candidate_is_worse(differences: list[dict[str, Any]], number: int) -> None:
    parsed = tuple(Difference.model_validate(each) for each in differences)
    assert len(why_worse(parsed, "true_loss", ("true_loss", "auroc"), 0.05)) == number


def test_rollback_goes_back_a_step_each_time(desk: Any, package: Path, tmp_path: Path, in_use: Any) -> None:
    second, third, fourth = (write(tmp_path / version, version) for version in ("1.1.0", "1.2.0", "1.3.0"))
    for each in (second, third):
        desk.promote(each, "try")
    shutil.rmtree(second)  # what is outside of the state folder is not needed
    assert desk.roll_back("tiny", "") == "tiny: version 1.1.0 is current again"
    assert desk.roll_back("tiny", "worse still") == "tiny: version 1.0.0 is current again"
    assert in_use()["current"] == {"tiny": identity(package)}
    assert code_of(lambda: desk.roll_back("tiny", "")) == "config_invalid"
    assert code_of(lambda: desk.roll_back("none", "")) == "config_invalid"
    desk.promote(fourth, "mended")
    desk.roll_back("tiny", "")  # not to what was taken back
    assert in_use()["current"] == {"tiny": identity(package)}
    assert [line.split("\t")[0] for line in desk.history()] == [str(number) for number in range(1, 8)]


def test_a_damaged_copy_is_no_way_back(desk: Any, package: Path, tmp_path: Path, in_use: Any) -> None:
    second = write(tmp_path / "second", "1.1.0")
    desk.promote(second, "try")
    copy = tmp_path / "state" / "packages" / identity(package) / "model.onnx"
    copy.write_bytes(copy.read_bytes()[:-1])
    assert code_of(lambda: desk.roll_back("tiny", "")) == "package_invalid"
    assert in_use()["current"] == {"tiny": identity(second)}
    desk.promote(package, "back to the first")  # from outside; the copy is replaced
    assert identity(copy.parent) == identity(package) == in_use()["current"]["tiny"]


def test_a_candidate_is_tried_withdrawn_and_promoted(desk: Any, package: Path, tmp_path: Path, in_use: Any) -> None:
    second = write(tmp_path / "second", "1.1.0")
    assert code_of(lambda: desk.try_beside(package, "")) == "config_invalid"
    desk.try_beside(second, "")
    assert in_use() == {"current": {}, "candidate": {"tiny": identity(second)}}
    assert "already" in desk.try_beside(second, "")
    desk.withdraw("tiny", "too slow")
    assert in_use()["candidate"] == {}
    assert code_of(lambda: desk.withdraw("tiny", "")) == "config_invalid"
    desk.try_beside(second, "")
    desk.promote(second, "agrees")
    assert in_use() == {"current": {"tiny": identity(second)}, "candidate": {}}


def test_what_cannot_take_its_place_is_refused(
    desk: Any, package: Path, make_segmenter: Any, make_package: Any, tmp_path: Path
) -> None:
    output = tiny_card(tiny_graph()).output
    classes = write(tmp_path / "classes", "1.1.0", output=output.model_copy(update={"classes": ("normal", "other", "pneumonia")}))
    strange = write(tmp_path / "strange", "1.1.0", name="strange")
    broken = write(tmp_path / "broken", "1.1.0")
    (broken / "card.json").write_bytes((broken / "card.json").read_bytes() + b" ")
    poisoned = make_package("tiny", poison=float("nan"))
    refused = {classes: "config_invalid", strange: "unknown_model", broken: "package_invalid", poisoned: "model_output_invalid"}
    refused[make_segmenter("tiny")] = "config_invalid"
    for folder, code in refused.items():
        assert code_of(lambda folder=folder: desk.promote(folder, "because")) == code
        assert code_of(lambda folder=folder: desk.try_beside(folder, "because")) == code
    assert desk.history() == []
    assert [entry.name for entry in (tmp_path / "state" / "packages").iterdir()] == [".lock"]


def test_a_package_that_changes_while_it_is_copied_is_refused(desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = write(tmp_path / "second", "1.1.0")
    other = write(tmp_path / "other", "1.2.0")

    def slow(predictor: Any) -> None:
        shutil.copy(other / "card.json", second / "card.json")

    monkeypatch.setattr(promotion, "try_out", slow)
    assert code_of(lambda: desk.promote(second, "because")) == "package_invalid"
    assert desk.history() == []


def test_two_decisions_at_once_are_not_both_made(desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second, third = write(tmp_path / "second", "1.1.0"), write(tmp_path / "third", "1.2.0")
    kept = packages.keep

    def meanwhile(package: Path, sha256: str, folder: Path) -> None:
        kept(package, sha256, folder)
        if package == second:  # as if another machine had the same database
            rows = Promotions(desk._promotions._store)
            rows.add([promotion.Decision("tiny", identity(third), "current", "other", "because")], rows.last())

    monkeypatch.setattr(promotion, "keep", meanwhile)
    assert code_of(lambda: desk.promote(second, "because")) == "output_exists"
    assert len(desk.history()) == 1


@pytest.mark.parametrize("text", ["", "  ", "x" * 513, "two\nlines"])
def test_a_reason_is_a_line(text: str) -> None:
    assert code_of(lambda: promotion.read_reason(text)) == "config_invalid"


def test_the_commands(package: Path, tmp_path: Path, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    environment.setenv("OVERREAD_MODELS", str(package))
    second = write(tmp_path / "second", "1.1.0")
    assert promotion.candidate_main([str(second)]) == 0
    assert promotion.candidate_main(["--withdraw", "tiny"]) == 0
    assert promotion.promote_main([str(second), "--reason", "try"]) == 0
    assert promotion.rollback_main(["tiny", "--reason", "no better"]) == 0
    capsys.readouterr()
    assert promotion.promote_main(["--history"]) == 0
    roles = [line.split("\t")[3] for line in capsys.readouterr().out.splitlines()]
    assert roles == ["candidate", "candidate", "current", "current", "current"]
