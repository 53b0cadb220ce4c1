"""Recipes: what the fuzzer chooses, and what is kept of what it finds. A source and a few edits, never a file's bytes."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("overwrite", "insert", "delete", "repeat", "truncate")
MOST_EDITS = 8
MOST_BYTES = 16
"""That an edit brings with it."""
LONGEST = 1 + MOST_EDITS * (5 + MOST_BYTES)
"""Of a program, bytes."""
Edit = tuple[str, int, str | int]


@dataclass(frozen=True)
class Recipe:
    """How a damaged input is made.

    Attributes
    ----------
    source : str
        A key of :func:`tests.fuzz.sources.sources`.
    edits : tuple of (kind, position, value)
        One after another. ``overwrite`` and ``insert`` have bytes in hexadecimal, ``delete`` how many bytes to take away,
        ``repeat`` how many bytes before the position to write again; ``truncate`` ends there.
    """

    source: str
    edits: tuple[Edit, ...]

    def apply(self, data: bytes) -> bytes:
        """Return the damaged bytes of the source."""
        damaged = bytearray(data)
        for kind, position, value in self.edits:
            if kind == "truncate":
                del damaged[position:]
            elif isinstance(value, str):
                new = bytes.fromhex(value)
                damaged[position : position + (len(new) if kind == "overwrite" else 0)] = new
            elif kind == "delete":
                del damaged[position : position + value]
            else:
                damaged[position:position] = damaged[max(0, position - value) : position]
        return bytes(damaged)


def recipe_of(program: bytes, sources: dict[str, bytes], places: dict[str, list[int]]) -> Recipe:
    """Read a fuzzer's bytes as a recipe: any bytes are one.

    A program has a byte for the source, then for each edit one for its kind and whether it is at one of the source's ``places``,
    two for which, one for how far beside it, one for the number of bytes, and those bytes.
    """
    names = sorted(sources)
    source = names[program[0] % len(names)] if program else names[0]
    size, near = len(sources[source]), places[source]
    edits: list[Edit] = []
    at = 1
    while at + 5 <= len(program) and len(edits) < MOST_EDITS:
        kind = KINDS[program[at] % len(KINDS)]
        place = int.from_bytes(program[at + 1 : at + 3], "little")
        position = place * size // 65536
        if program[at] < 192:
            position = min(size, max(0, near[place % len(near)] + program[at + 3] % 32 - 12))
        number = program[at + 4]
        at += 5
        if kind in ("overwrite", "insert"):
            value = program[at : at + number % (MOST_BYTES + 1)]
            at += len(value)
            edits.append((kind, position, value.hex()))
        else:
            edits.append((kind, position, 1 + 17 * number if kind != "truncate" else 0))
    return Recipe(source, tuple(edits))
