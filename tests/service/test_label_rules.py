"""When labels decide: every case of the rules, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from models.agreement import Likeness, same_class
from service.label_rules import decide, in_force


def row(label_id: str, says: str, standing: str = "reader", replaces: str | None = None) -> dict[str, Any]:
    return {"label_id": label_id, "says": says, "standing": standing, "replaces": replaces}


def alike(first: dict[str, Any], second: dict[str, Any]) -> Likeness:
    return same_class(first["says"], second["says"])


@pytest.mark.parametrize(
    ("says", "readers", "state", "holds"),
    [
        ("", 1, "open", None),
        ("a", 1, "done", 0),
        ("a", 2, "open", None),
        ("aa", 2, "done", 1),
        ("ab", 2, "adjudicate", None),
        ("ab", 1, "adjudicate", None),  # one would have been enough, but now they differ
        ("aab", 2, "adjudicate", None),
        ("aaa", 2, "done", 2),
        ("abB", 2, "done", 2),  # capitals: an adjudicator's
        ("abC", 2, "done", 2),
        ("aaB", 2, "done", 2),
        ("aAB", 2, "done", 2),
    ],
)
def test_what_holds(says: str, readers: int, state: str, holds: int | None) -> None:
    rows = [row(str(number), each.lower(), "adjudicator" if each.isupper() else "reader") for number, each in enumerate(says)]
    decision = decide(rows, readers, alike)
    assert decision.state == state
    assert decision.label == (None if holds is None else rows[holds])
    given = [each for each in says if each.islower()]
    assert (decision.likeness is None) == (len(given) < 2)
    if decision.likeness is not None:
        assert decision.likeness.agree == (len(set(given)) == 1)


def test_the_least_alike_two_are_told() -> None:
    values = {("0", "1"): 0.9, ("0", "2"): 0.2, ("1", "2"): None}

    def overlap(first: dict[str, Any], second: dict[str, Any]) -> Likeness:
        value = values[first["label_id"], second["label_id"]]
        return Likeness("dice", value, value is not None and value > 0.7)

    found = decide([row(str(number), "") for number in range(3)], 1, overlap)
    assert found.likeness == Likeness("dice", None, False)


def test_what_was_replaced_stands_no_more() -> None:
    rows = [row("1", "a"), row("2", "b"), row("3", "c", replaces="1"), row("4", "d", replaces="3")]
    assert [each["label_id"] for each in in_force(rows)] == ["2", "4"]
