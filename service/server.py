"""Where a PostgreSQL database is, and what is secret about that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from models.errors import Refusal


def _names_the_driver(value: SecretStr) -> SecretStr:
    if value.get_secret_value() and not value.get_secret_value().startswith(("postgresql://", "postgresql+psycopg://")):
        raise ValueError("it begins with postgresql+psycopg://")
    return value


DatabaseUrl = Annotated[SecretStr, AfterValidator(_names_the_driver)]
"""``postgresql+psycopg://USER@HOST/NAME``, with libpq's parameters; it may hold a password, so it is never printed. Or empty."""


@dataclass(frozen=True)
class Server:
    """An address, and the password where it is not part of that."""

    url: SecretStr
    password: SecretStr


def read_secret(file: Path, variable: str) -> str:
    """Return what a file holds, without its last line break.

    Raises
    ------
    Refusal
        ``config_invalid`` if it cannot be read or holds more than a line.
    """
    try:
        text = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise Refusal("config_invalid", f"{variable}: the file cannot be read.") from error
    if not text or not text.isascii() or not text.isprintable():
        raise Refusal("config_invalid", f"{variable}: the file must hold one line of ASCII.")
    return text
