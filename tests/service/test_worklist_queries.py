"""What a list costs the database does not grow with each of its items, and what is kept is summed from an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from service.analysis import Site
from service.item_answers import item_answers
from service.items import _BYTES
from service.worklist import Place
from tests.service.scans import ALL, ask, scan, take


def statements(act: Callable[[], Any]) -> int:
    """Count the statements that the database is asked."""
    asked = []

    def heard(_: Any, __: Any, statement: str, *___: Any) -> None:
        asked.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", heard)
    try:
        act()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", heard)
    return len(asked)


@pytest.mark.dialects
def test_a_list_is_two_statements_however_long(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    for seed in range(6):
        take(site, scan(seed))
    places = [Place(number, ()) for number in range(1, 7)]
    assert [statements(lambda n=n: item_answers(site, places[:n])) for n in (1, 6)] == [2, 2]
    # A statement an item, as of one who reads each result by itself, would be counted
    assert statements(lambda: [site.store.find(item.result_id) for item in item_answers(site, places)]) == 2 + 2 * 6


@pytest.mark.dialects
def test_items_of_a_list_are_those_of_their_results(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    replies = [take(site, scan(seed)) for seed in range(3)]
    for item, reply in zip(item_answers(site, [Place(number, ()) for number in (1, 2, 3, 99)]), replies, strict=True):
        answer = reply.answer()
        assert item.result_id == answer.result_id
        assert (item.findings, item.verdict, item.reasons) == (answer.findings, answer.verdict, answer.reasons)
        assert item.predicted_loss == answer.predicted_loss
        assert item.model.version == answer.model.version


def test_what_is_kept_is_summed_from_an_index(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    take(site, scan(1))
    (size,) = ask(site, "SELECT bytes FROM kept_images")[0]
    assert site.loop.items.kept_bytes() == size > 0
    question = f"EXPLAIN QUERY PLAN {_BYTES.compile(compile_kwargs={'literal_binds': True})}"
    (plan,) = [row[3] for row in ask(site, question)]
    assert "COVERING INDEX ix_kept_images_removed_at_bytes" in plan
    ask(site, "DROP INDEX ix_kept_images_removed_at_bytes")
    (plan,) = [row[3] for row in ask(site, question + " ")]  # other text: the driver keeps what it prepared, even a plan
    assert "INDEX" not in plan
    ask(site, "UPDATE kept_images SET removed_at = '2026-01-01'")
    assert site.loop.items.kept_bytes() == 0
