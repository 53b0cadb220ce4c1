"""Who asks, and may they: bearer tokens with roles, kept hashed.

A token is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import Refusal
from service.telemetry import logger

LOOK_SECONDS = 1.0
"""Between two looks whether the tokens file has changed."""
ROLES = ("device", "annotator", "operator")
"""The later, the more it may do."""
ANYONE = frozenset({*ROLES, "public"})
EVERY_ROLE = frozenset(ROLES)
PEOPLE = frozenset({"annotator", "operator"})
"""Roles of persons, whom a proxy may name too; a device has a token."""

ACCESS: dict[tuple[str, str], frozenset[str]] = {
    ("POST", "/v1/predict"): frozenset({"device", "operator"}),
    ("POST", "/v1/dicomweb/studies"): frozenset({"device", "operator"}),
    ("GET", "/v1/results/{result_id}"): EVERY_ROLE,
    ("GET", "/v1/models"): EVERY_ROLE,
    ("GET", "/v1/candidates"): PEOPLE,
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
    """Who asks. ``name`` is the token's or the person's; it is neither logged nor a label. ``site`` is the token's, or empty.

    ``limit_per_minute`` is the token's own limit of requests, None where that of the settings holds. ``until``, seconds since
    1970, is when a token that was replaced stops being one.
    """

    name: str
    role: str
    site: str = ""
    limit_per_minute: int | None = None
    until: float = math.inf

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


def token_digest(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(file: Path) -> dict[str, Caller]:
    """Read the tokens file: digest of each token -> who has it. A missing file holds no token.

    Raises
    ------
    Refusal
        ``config_invalid`` if the file is not what ``overread token`` writes.
    """
    try:
        entries = json.loads(file.read_text())["tokens"]
        callers = {
            str(item["sha256"]): Caller(
                str(item["name"]),
                str(item["role"]),
                str(item.get("site", "")),
                None if item.get("limit_per_minute") is None else int(item["limit_per_minute"]),
                float(item.get("until", math.inf)),
            )
            for item in entries
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal("config_invalid", "The tokens file cannot be read.") from error
    if not callers or any(caller.role not in ROLES for caller in callers.values()):
        raise Refusal("config_invalid", f"The tokens file must hold tokens of the roles {', '.join(ROLES)}.")
    return callers


def _mark(file: Path) -> tuple[int, int, int] | None:
    """Return what tells one state of a file from another."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass
class Access:
    """The tokens of a site.

    Without any token, and without a proxy that says who asks, the service is open, and then answers on loopback only (see
    :func:`check_bind`).
    """

    callers: dict[str, Caller]
    limit_per_minute: int = 0
    proxied: bool = False
    _file: Path | None = None
    _seen: tuple[int, int, int] | None = None
    _look_at: float = 0.0
    _sites: frozenset[str] | None = None
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, limit_per_minute: int = 0, *, proxied: bool = False) -> Access:
        """Read the tokens file, which :meth:`follow` then follows.

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
            As :func:`read_tokens`.
        """
        seen = _mark(file)  # before it is read: what is written meanwhile is seen as a change
        return cls(read_tokens(file), limit_per_minute, proxied, file, seen)

    def follow(self) -> None:
        """Take over what was changed in the tokens file, looking once a second at most.

        A file that cannot be read, or is gone, changes nothing: the tokens before stay in force, and a log line says so.
        """
        now = time.monotonic()
        if self._file is None or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        mark = _mark(self._file)
        if mark == self._seen:
            return
        self._seen = mark
        try:
            callers = read_tokens(self._file)
            self._check_sites(callers)
        except Refusal as refusal:
            if isinstance(refusal.__cause__, OSError):  # out of descriptors, say: it may hold a revocation, so look again
                self._seen = None
            logger().error("tokens_not_read")
            return
        if callers:
            self.callers = callers  # one assignment: a thread has the ones before or these
        elif self.callers:
            logger().error("tokens_gone")

    def known(self, digest: str) -> Caller | None:
        """Return who has the token of a digest; None where it is none, or none any more."""
        caller = self.callers.get(digest)
        return caller if caller is not None and time.time() < caller.until else None

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
        caller = self.known(token_digest(token.strip())) if scheme.lower() == "bearer" else None
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
        self._sites = frozenset(sites)
        self._check_sites(self.callers)

    def _check_sites(self, callers: Mapping[str, Caller]) -> None:
        if self._sites is not None and not {caller.site for caller in callers.values()} <= {"", *self._sites}:
            raise Refusal("config_invalid", "OVERREAD_SITES: the tokens file holds a token of a site that is not among them.")

    def spend(self, caller: Caller) -> None:
        """Count a request against the caller's limit, a bucket that refills evenly.

        Raises
        ------
        Refusal
            ``rate_limited`` when it is empty.
        """
        limit = self.limit_per_minute if caller.limit_per_minute is None else caller.limit_per_minute
        if not limit:
            return
        now = time.monotonic()
        left, then = self._spent.get(caller.name, (float(limit), now))
        left = min(limit, left + (now - then) * limit / 60)
        if left < 1:
            raise Refusal("rate_limited", f"More than {limit} requests a minute.")
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
