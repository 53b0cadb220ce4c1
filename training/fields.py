"""What the fields of a run's config may hold, and how it is told that one does not."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def problem(error: ValidationError, whole: str = "document") -> str:
    """Return where the first fault is, and what it is; ``whole`` is what a fault of no one field is told of."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {first['msg']}."
