"""What the bodies of requests may take of the memory, all together: who sends more at a time is told to come again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import Refusal

AT_ONCE = 8
"""Bodies of the largest size that may be held at the same time; of smaller ones accordingly more."""


class Bodies:
    """Counts the bytes that one worker holds of bodies. Only the event loop calls it, so there is no lock.

    Parameters
    ----------
    limit : int, bytes
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0

    @contextmanager
    def held(self) -> Iterator[Held]:
        """Give a request its share, for as long as the block lasts; it begins with nothing."""
        held = Held(self)
        try:
            yield held
        finally:
            held.hold(0)


class Held:
    """What one request holds of them."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def hold(self, size: int) -> None:
        """Hold ``size`` bytes from now on, instead of what was held before.

        Raises
        ------
        Refusal
            ``overloaded`` if there is no room for more; what was held stays.
        """
        together = self._bodies.size - self._size + size
        if size > self._size and together > self._bodies.limit:
            raise Refusal("overloaded", "Too much is being received at the same time; send it again later.")
        self._bodies.size, self._size = together, size
