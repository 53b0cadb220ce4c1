"""Sessions of the page: a cookie that stands for a token. Only its hash is kept; it ends at logout, with its token, or in time.

The cookie is 256 random bits made at login, never taken from the browser, so none can be planted beforehand.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

import sqlalchemy as sa

from models.errors import Refusal
from service.access import Access, Caller, name_digest
from service.audit import Who, note
from service.store import Store
from service.tables import sessions


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


@dataclass(frozen=True)
class Session:
    """Who signed in, and until when: seconds since 1970."""

    caller: Caller
    expires_at: float


class Sessions:
    """The sessions of a site, in the store's database: every worker knows them, and they outlive a restart.

    Parameters
    ----------
    store : Store
    access : Access
        The tokens that are in force: a session ends with the token it was opened with.
    hours : float
        How long a session lasts, whatever is done with it.
    """

    def __init__(self, store: Store, access: Access, hours: float) -> None:
        self._store = store
        self._access = access
        self._seconds = hours * 3600

    def open(self, token: str) -> tuple[str, Session]:
        """Sign in with a token; return the cookie's value and the session.

        Raises
        ------
        Refusal
            ``unauthenticated`` for a token that is not known, ``forbidden`` for a device's.
        """
        caller = self._access.identify(f"Bearer {token}")
        if caller.role == "device":
            raise Refusal("forbidden", "The token of a device is for machines; a person needs one of their own.")
        cookie, now = secrets.token_urlsafe(32), time.time()
        session = Session(caller, now + self._seconds)
        row = {"id_sha256": _digest(cookie), "token_sha256": _digest(token.strip()), "expires_at": session.expires_at}
        with self._store.writing() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.expires_at <= now))
            connection.execute(sa.insert(sessions), row)
            note(connection, Who(caller.name, caller.role), "signed_in", [name_digest(caller.name)])
        return cookie, session

    def find(self, cookie: str) -> Session:
        """Return the session of a cookie.

        Raises
        ------
        Refusal
            ``session_expired`` if there is none, or none any more.
        """
        query = sa.select(sessions).where(sessions.c.id_sha256 == _digest(cookie))
        with self._store.reading() as connection:
            row = connection.execute(query).mappings().first()
        caller = self._access.known(row["token_sha256"]) if row and row["expires_at"] > time.time() else None
        if row is None or caller is None:
            raise Refusal("session_expired")
        return Session(caller, row["expires_at"])

    def close(self, cookie: str) -> None:
        """Sign out: the cookie opens nothing any more."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.id_sha256 == _digest(cookie)))
