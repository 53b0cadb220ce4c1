"""When an item's labels decide: a pure function of what stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from models.agreement import Likeness
from service.items import ADJUDICATE, DONE, OPEN

Row = dict[str, Any]
READER, ADJUDICATOR = "reader", "adjudicator"


@dataclass(frozen=True)
class Decision:
    """What follows from an item's labels.

    Attributes
    ----------
    state : str
        "open", "adjudicate" or "done".
    label : dict or None
        The row that holds, once it is done.
    likeness : Likeness or None
        Of the two readers' labels that are least alike; None where there are not two.
    """

    state: str
    label: Row | None
    likeness: Likeness | None


def in_force(rows: Sequence[Row]) -> list[Row]:
    """Return the labels that no later one replaces, in their order."""
    replaced = {row["replaces"] for row in rows}
    return [row for row in rows if row["label_id"] not in replaced]


def decide(standing: Sequence[Row], readers: int, alike: Callable[[Row, Row], Likeness]) -> Decision:
    """Decide what an item's labels say together.

    Parameters
    ----------
    standing : sequence of dict
        Rows of ``labels`` in force, one a reader, the first given first.
    readers : int
        How many are wanted.
    alike : callable
        Compares two rows.

    Notes
    -----
    An adjudicator's label decides, whatever the readers said. Without one, the item is done when at least as many readers as
    wanted agree, all with each other, and goes to adjudication as soon as two differ. Of labels that agree the last holds.
    """
    given = [row for row in standing if row["standing"] == READER]
    pairs = [alike(first, second) for first, second in combinations(given, 2)]
    worst = min(pairs, key=lambda each: (each.agree, -1.0 if each.value is None else each.value), default=None)
    judged = [row for row in standing if row["standing"] == ADJUDICATOR]
    if judged:
        return Decision(DONE, judged[-1], worst)
    if worst is not None and not worst.agree:
        return Decision(ADJUDICATE, None, worst)
    if len(given) < readers or not given:
        return Decision(OPEN, None, worst)
    return Decision(DONE, given[-1], worst)
