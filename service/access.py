"""Who asks, and may they: bearer tokens with roles, kept hashed.

A token is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import json
import os
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import Refusal
from service.settings import read_settings

ROLES = ("device", "annotator", "operator")
ANYONE = frozenset({*ROLES, "public"})
EVERY_ROLE = frozenset(ROLES)
PEOPLE = frozenset({"annotator", "operator"})

ACCESS: dict[tuple[str, str], frozenset[str]] = {
    ("POST", "/v1/predict"): frozenset({"device", "operator"}),
    ("POST", "/v1/dicomweb/studies"): frozenset({"device", "operator"}),
    ("GET", "/v1/results/{result_id}"): EVERY_ROLE,
    ("GET", "/v1/models"): EVERY_ROLE,
    ("GET", "/v1/candidates"): frozenset({"annotator", "operator"}),
    ("GET", "/v1/worklist"): PEOPLE,
    ("POST", "/v1/worklist/lease"): PEOPLE,
    ("POST", "/v1/worklist/lease/{lease_id}/renew"): PEOPLE,
    ("POST", "/v1/worklist/lease/{lease_id}/return"): PEOPLE,
    ("POST", "/v1/worklist/lease/{lease_id}/skip"): PEOPLE,
    ("GET", "/v1/items/{item_id}"): PEOPLE,
    ("GET", "/v1/images/{image_sha256}"): PEOPLE,
    ("GET", "/v1/sites"): PEOPLE,
    ("POST", "/v1/labels"): PEOPLE,
    ("GET", "/v1/labels"): PEOPLE,
    ("GET", "/v1/label-studio/health"): PEOPLE,
    ("POST", "/v1/label-studio/setup"): PEOPLE,
    ("POST", "/v1/label-studio/predict"): PEOPLE,
    ("POST", "/v1/label-studio/webhook"): PEOPLE,
    ("GET", "/metrics"): frozenset({"operator"}),
    ("GET", "/v1/openapi.json"): ANYONE,
    ("GET", "/"): ANYONE,
    ("GET", "/ui"): ANYONE,
    ("GET", "/ui/{file}"): ANYONE,
    ("POST", "/v1/session"): ANYONE,
    ("GET", "/v1/session"): ANYONE,
    ("DELETE", "/v1/session"): ANYONE,
    ("GET", "/healthz"): ANYONE,
    ("GET", "/readyz"): ANYONE,
}
"""Every route there is, and who may call it. "public" is a caller without a token."""


@dataclass(frozen=True)
class Caller:
    """Who asks. ``name`` is the token's or the person's; it is neither logged nor a label. ``site`` is the token's, or empty."""

    name: str
    role: str
    site: str = ""

    @property
    def reader(self) -> str:
        """Whose leases and labels these are; all callers of an open service are one person."""
        return self.name or "local"


def name_digest(name: str) -> str:
    """Return what the audit calls a token: the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can be reached from this machine only."""
    bare = host.strip("[]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass
class Access:
    """The tokens of a site.

    Without any token, and without a proxy that says who asks, the service is open, and then answers on loopback only (see
    :func:`check_bind`).
    """

    callers: dict[str, Caller]
    limit_per_minute: int = 0
    proxied: bool = False
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, limit_per_minute: int = 0, *, proxied: bool = False) -> Access:
        """Read the tokens file; a missing one holds no token.

        Parameters
        ----------
        file : Path
        limit_per_minute : int
            Requests a minute and caller; 0 is no limit.
        proxied : bool
            Whether a trusted proxy says who asks.

        Raises
        ------
        Refusal
            ``config_invalid`` if the file is not what ``overread token`` writes.
        """
        if not file.exists():
            return cls({}, limit_per_minute, proxied)
        try:
            entries = json.loads(file.read_text())["tokens"]
            callers = {
                str(item["sha256"]): Caller(str(item["name"]), str(item["role"]), str(item.get("site", ""))) for item in entries
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refusal("config_invalid", "The tokens file cannot be read.") from error
        if not callers or any(caller.role not in ROLES for caller in callers.values()):
            raise Refusal("config_invalid", f"The tokens file must hold tokens of the roles {', '.join(ROLES)}.")
        return cls(callers, limit_per_minute, proxied)

    @property
    def open(self) -> bool:
        """Whether no token is needed."""
        return not self.callers and not self.proxied

    def identify(self, authorization: str | None) -> Caller:
        """Return who sent an ``Authorization`` header.

        Raises
        ------
        Refusal
            ``unauthenticated`` for a header that is not a known bearer token.
        """
        if authorization is None:
            return Caller("", "operator" if self.open else "public")
        scheme, _, token = authorization.partition(" ")
        caller = self.callers.get(_digest(token.strip())) if scheme.lower() == "bearer" else None
        if caller is None:
            raise Refusal("unauthenticated", "The Authorization header does not hold a known bearer token.")
        return caller

    def authorise(self, caller: Caller, method: str, route: str) -> None:
        """Check the role.

        Raises
        ------
        Refusal
            ``unauthenticated`` without a token, ``forbidden`` with one whose role may not.
        """
        allowed = ACCESS[method, route]
        if caller.role in allowed:
            return
        raise Refusal("unauthenticated" if caller.role == "public" else "forbidden")

    def check_sites(self, sites: Collection[str]) -> None:
        """Refuse a token of a place that the settings do not know.

        Raises
        ------
        Refusal
            ``config_invalid``.
        """
        if not {caller.site for caller in self.callers.values()} <= {"", *sites}:
            raise Refusal("config_invalid", "OVERREAD_SITES: the tokens file holds a token of a site that is not among them.")

    def spend(self, caller: Caller) -> None:
        """Count a request against the caller's limit, a bucket that refills evenly.

        Raises
        ------
        Refusal
            ``rate_limited`` when it is empty.
        """
        if not self.limit_per_minute:
            return
        now = time.monotonic()
        left, then = self._spent.get(caller.name, (float(self.limit_per_minute), now))
        left = min(self.limit_per_minute, left + (now - then) * self.limit_per_minute / 60)
        if left < 1:
            raise Refusal("rate_limited", f"More than {self.limit_per_minute} requests a minute.")
        self._spent[caller.name] = (left - 1, now)


def check_bind(host: str, access: Access) -> None:
    """Refuse to listen where others can reach an open service.

    Raises
    ------
    Refusal
        ``config_invalid`` if ``host`` is not loopback and there is no token.
    """
    if access.open and not is_loopback(host):
        raise Refusal("config_invalid", "Listening on anything but loopback needs tokens; 'overread token' creates one.")


def add_token(file: Path, name: str, role: str, site: str = "") -> str:
    """Create a token, store its hash, and return it: the only time it can be seen.

    Parameters
    ----------
    file : Path
    name, role : str
    site : str
        The place that all its images come from; empty for none.

    Raises
    ------
    Refusal
        ``config_invalid`` if the name is taken or the file cannot be read.
    """
    known = json.loads(file.read_text())["tokens"] if Access.read(file).callers else []
    if any(item["name"] == name for item in known):
        raise Refusal("config_invalid", "There is a token of that name already.")
    token = "ovr_" + secrets.token_urlsafe(32)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = file.with_suffix(".partial")
    partial.touch(mode=0o600)
    entry = {"name": name, "role": role, "sha256": _digest(token)} | ({"site": site} if site else {})
    partial.write_text(json.dumps({"tokens": [*known, entry]}, indent=1) + "\n")
    os.replace(partial, file)  # noqa: PTH105  (a replace is one step: a crash leaves the old file or the new)
    return token


def main(argv: list[str]) -> int:
    """Run ``overread token``."""
    parser = argparse.ArgumentParser(
        prog="overread token",
        description="Create a bearer token and print it once; only its hash is kept. Restart the service afterwards.",
        epilog="example: overread token --name ct-scanner-1 --role device",
    )
    parser.add_argument("--name", required=True, help="who holds it")
    parser.add_argument("--role", required=True, choices=ROLES)
    parser.add_argument("--site", default="", help="the one of OVERREAD_SITES that all its images come from")
    options = parser.parse_args(argv)
    settings = read_settings()
    if options.site and options.site not in settings.sites:
        raise Refusal("unknown_site")
    print(add_token(settings.tokens, options.name, options.role, options.site))
    return 0
