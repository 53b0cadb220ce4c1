"""One process of a kind at a time on a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import Refusal
from service.store import Store


@contextmanager
def only_one(store: Store, verb: str) -> Iterator[None]:
    """Let one process run a verb on a database; one that dies lets it go.

    Raises
    ------
    Refusal
        ``config_invalid`` if another process runs it.
    """
    with store.claimed(verb) as mine:
        if not mine:
            raise Refusal("config_invalid", f"Another 'overread {verb}' uses this database.")
        yield
