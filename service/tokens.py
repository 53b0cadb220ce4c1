"""``overread token``: create, replace and revoke bearer tokens. The running service follows the file by itself."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.command import command_parser
from models.errors import Refusal
from service.access import ROLES, name_digest, read_tokens, token_digest
from service.audit import note, operator
from service.settings import Settings, read_settings
from service.store import Store

Entry = dict[str, Any]
Noted = Callable[[], None]
"""Called right before a change is made, so that none is ever made unseen."""


def _unseen() -> None:
    """Note nothing: of tokens that no command makes."""


@contextmanager
def _changing(file: Path, noted: Noted) -> Iterator[list[Entry]]:
    """Yield the entries of the tokens file to be changed in place, one change at a time; if nothing is raised, note and write."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries: list[Entry] = json.loads(file.read_text())["tokens"] if read_tokens(file) else []
        yield entries
        noted()
        partial = file.with_suffix(".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(json.dumps({"tokens": entries}, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)  # noqa: PTH105  (a replace is one step: a crash leaves the old file or the new)
    finally:
        os.close(lock)


def _of(entries: list[Entry], name: str) -> list[Entry]:
    found = [entry for entry in entries if entry["name"] == name]
    if not found:
        raise Refusal("config_invalid", "There is no token of that name; --list names them.")
    return found


def _entry(given: Entry) -> tuple[str, Entry]:
    """Return a new token, and what is kept of it."""
    token = "ovr_" + secrets.token_urlsafe(32)
    return token, given | {"sha256": token_digest(token), "created": datetime.now(UTC).date().isoformat()}


def add_token(
    file: Path, name: str, role: str, site: str = "", limit_per_minute: int | None = None, noted: Noted = _unseen
) -> str:
    """Create a token, store its hash, and return it: the only time it can be seen.

    Parameters
    ----------
    file : Path
    name, role : str
        1 to 64 printable characters; a key of :data:`service.access.ROLES`.
    site : str
        The place that all its images come from; empty for none.
    limit_per_minute : int, optional
        Requests a minute in one worker, instead of the settings'; 0 is no limit.
    noted : callable

    Raises
    ------
    Refusal
        ``config_invalid`` if the name is taken or is none, or the file cannot be read.
    """
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise Refusal("config_invalid", "A token's name has 1 to 64 printable characters.")
    given: Entry = {"name": name, "role": role} | ({"site": site} if site else {})
    given |= {} if limit_per_minute is None else {"limit_per_minute": limit_per_minute}
    with _changing(file, noted) as entries:
        if any(entry["name"] == name for entry in entries):
            raise Refusal("config_invalid", "There is a token of that name already.")
        token, entry = _entry(given)
        entries.append(entry)
    return token


def rotate_token(file: Path, name: str, overlap_minutes: float = 0.0, noted: Noted = _unseen) -> str:
    """Replace a token by a new one with the same rights, and return it.

    Parameters
    ----------
    file : Path
    name : str
    overlap_minutes : float
        How long the one before goes on to be taken; those before it stop at once.
    noted : callable

    Raises
    ------
    Refusal
        ``config_invalid`` if there is none of that name.
    """
    with _changing(file, noted) as entries:
        before = _of(entries, name)[-1]
        kept = {key: value for key, value in before.items() if key not in {"sha256", "created", "until"}}
        token, entry = _entry(kept)
        entries[:] = [each for each in entries if each["name"] != name]
        if overlap_minutes:
            entries.append(before | {"until": time.time() + 60 * overlap_minutes})
        entries.append(entry)
    return token


def revoke_token(file: Path, name: str, noted: Noted = _unseen) -> None:
    """Take a token away.

    Raises
    ------
    Refusal
        ``config_invalid`` if there is none of that name, or it is the only one: without any, the service would be open.
    """
    with _changing(file, noted) as entries:
        _of(entries, name)
        entries[:] = [each for each in entries if each["name"] != name]
        if not entries:
            raise Refusal("config_invalid", "It is the only token: create another one first, or --rotate it.")


def list_tokens(file: Path) -> list[str]:
    """Return a line for each token: name, role, site, limit, day of creation, and until when where it was replaced."""
    if not read_tokens(file):
        return []
    lines = []
    for entry in json.loads(file.read_text())["tokens"]:
        until = f"until {datetime.fromtimestamp(entry['until'], UTC):%Y-%m-%dT%H:%MZ}" if "until" in entry else ""
        cells = (entry.get("site", ""), entry.get("limit_per_minute", ""), entry.get("created", ""), until)
        lines.append("\t".join((entry["name"], entry["role"], *map(str, cells))))
    return lines


def _noted(settings: Settings, action: str, name: str) -> Noted:
    def noted() -> None:
        store = Store(settings.store)
        try:
            with store.writing() as connection:
                note(connection, operator(), action, [name_digest(name)])
        finally:
            store.close()

    return noted


def main(argv: list[str]) -> int:
    """Run ``overread token``; returns 0."""
    parser = command_parser(
        "token",
        "Create, replace or revoke a bearer token. A new one is printed once; only its hash is kept. The running "
        "service follows within two seconds, and sessions of the page end with their token.",
        "overread token --name ct-scanner-1 --role device",
        "overread token --rotate ct-scanner-1",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--name", help="create one for this holder; needs --role")
    what.add_argument("--rotate", metavar="NAME", help="replace this one by a new one with the same rights")
    what.add_argument("--revoke", metavar="NAME", help="take this one away")
    what.add_argument("--list", action="store_true", help="name, role, site, limit and day of each")
    parser.add_argument("--role", choices=ROLES)
    parser.add_argument("--site", default="", help="the one of OVERREAD_SITES that all its images come from")
    parser.add_argument("--limit", type=int, metavar="N", help="requests a minute, instead of OVERREAD_RATE_LIMIT_PER_MINUTE")
    parser.add_argument(
        "--overlap", type=float, default=0.0, metavar="MINUTES", help="with --rotate: the old one goes on so long"
    )
    options = parser.parse_args(argv)
    settings = read_settings()
    if (options.name is None) != (options.role is None):
        parser.error("--role goes with --name")
    if (options.limit or 0) < 0 or not 0 <= options.overlap <= 60 * 24 * 30:
        parser.error("--limit and --overlap are not negative, and --overlap is a month at most")
    if options.site and options.site not in settings.sites:
        raise Refusal("unknown_site")
    if options.list:
        print(*list_tokens(settings.tokens), sep="\n")
    elif options.name is not None:
        noted = _noted(settings, "token_created", options.name)
        print(add_token(settings.tokens, options.name, options.role, options.site, options.limit, noted))
    elif options.rotate is not None:
        print(rotate_token(settings.tokens, options.rotate, options.overlap, _noted(settings, "token_rotated", options.rotate)))
    else:
        revoke_token(settings.tokens, options.revoke, _noted(settings, "token_revoked", options.revoke))
    return 0
