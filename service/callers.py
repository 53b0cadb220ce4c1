"""Who asks: a token, a session of the page, or a person that a trusted proxy names; and whether a browser was made to ask."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.errors import Refusal
from service.access import PEOPLE, ROLES, Caller
from service.settings import PREFIX, Settings

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.analysis import Site

PEER = "overread.peer"
"""Key of a request's scope: (address, port) of who connected; uvicorn lets a header of the request change its ``client``."""
STUDIO = "/v1/label-studio/"
"""Routes on which a token may come as the password of Basic authentication: Label Studio knows no other."""
CSRF_HEADER = "x-overread-request"
"""A page of another origin cannot send it without asking first (a CORS preflight), and that is never allowed here."""
_SAFE = frozenset({"GET", "HEAD"})
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_secure(request: Request) -> bool:
    """Tell whether the browser's connection is encrypted; who lies about it in a header makes only their own cookie stricter."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


def cookie_name(request: Request) -> str:
    """Return the name of the session's cookie; over TLS browsers let nobody but this very host set a ``__Host-`` one."""
    return "__Host-overread_session" if is_secure(request) else "overread_session"


def set_cookie(response: Response, request: Request, value: str, seconds: int) -> None:
    """Give the browser its cookie; 0 seconds takes it away."""
    response.set_cookie(
        cookie_name(request), value, max_age=seconds, path="/", secure=is_secure(request), httponly=True, samesite="strict"
    )


def check_own(request: Request) -> None:
    """Refuse a request that our own page did not make, where a browser adds by itself who asks.

    Raises
    ------
    Refusal
        ``csrf`` without the header :data:`CSRF_HEADER`, or if the browser says that another site asked.
    """
    origin = request.headers.get("origin")
    own = origin is None or origin.partition("://")[2] == request.headers.get("host", "")
    # Of a page reached over plain HTTP, browsers send no Sec-Fetch-Site
    if CSRF_HEADER not in request.headers or request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or not own:
        raise Refusal("csrf")


@dataclass(frozen=True)
class Proxy:
    """A reverse proxy that signs people in (by OIDC, say) and names them in a header.

    Attributes
    ----------
    networks : tuple of IPv4Network or IPv6Network
        From where it connects. The headers of anybody else are passed over.
    user_header, groups_header : str
        The second may be empty; then ``roles`` are of users.
    roles : dict of str to str
        Group, or user, to role; ``*`` is everyone.
    """

    networks: tuple[Network, ...]
    user_header: str
    groups_header: str
    roles: dict[str, str]

    @classmethod
    def read(cls, settings: Settings) -> Proxy | None:
        """Read the settings; None where no proxy is trusted.

        Raises
        ------
        Refusal
            ``config_invalid`` if a part is missing or malformed.
        """
        parts = (settings.proxy_user_header, settings.proxy_hosts, settings.proxy_roles)
        if not any(parts) and settings.proxy_groups_header is None:
            return None
        if not all(parts):
            raise Refusal("config_invalid", f"{PREFIX}PROXY_USER_HEADER needs {PREFIX}PROXY_HOSTS and {PREFIX}PROXY_ROLES.")
        try:
            networks = tuple(ipaddress.ip_network(host) for host in settings.proxy_hosts)
        except ValueError as error:
            raise Refusal("config_invalid", f"{PREFIX}PROXY_HOSTS: addresses or networks, separated by commas.") from error
        roles = {name.strip(): role.strip() for name, _, role in (entry.rpartition("=") for entry in settings.proxy_roles)}
        if "" in roles or not set(roles.values()) <= PEOPLE:
            raise Refusal("config_invalid", f"{PREFIX}PROXY_ROLES: NAME=ROLE; roles are {', '.join(sorted(PEOPLE))}.")
        return cls(networks, str(settings.proxy_user_header), settings.proxy_groups_header or "", roles)

    def caller(self, request: Request) -> Caller | None:
        """Return whom the proxy names; None where it is not the proxy that asks, or it names nobody.

        Raises
        ------
        Refusal
            ``unauthenticated`` for a name that is none, or for several: then somebody's header came through the proxy.
            ``forbidden`` for a person without a role.
        """
        named = request.headers.getlist(self.user_header)
        if not named or not self._trusts(request.scope.get(PEER)):
            return None
        user = named[0].strip()
        if len(named) > 1 or not 0 < len(user) <= 64 or not user.isprintable():
            raise Refusal("unauthenticated", "The proxy does not name one person.")
        names = [user]
        if self.groups_header:
            names = [part.strip() for value in request.headers.getlist(self.groups_header) for part in value.split(",")]
        found = {self.roles[name] for name in (*names, "*") if name in self.roles}
        if not found:
            raise Refusal("forbidden", "The proxy names a person who has no role here.")
        return Caller(user, max(found, key=ROLES.index))

    def _trusts(self, peer: tuple[str, int] | None) -> bool:
        try:
            address = ipaddress.ip_address(peer[0]) if peer else None
        except ValueError:
            return False
        return address is not None and any(address in network for network in self.networks)


def bearer_of(authorization: str) -> str:
    """Return a Basic ``Authorization`` header, whose password is a token, as a bearer token's; any other as it is."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        return "Bearer " + base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return authorization


async def identify(site: Site, request: Request, *, public: bool) -> Caller:
    """Return who sent a request: by its token, or else by the proxy, or else by the session's cookie.

    Parameters
    ----------
    site : Site
    request : Request
    public : bool
        Whether the route is for everyone: then a session that is over is passed over.

    Raises
    ------
    Refusal
        ``unauthenticated`` or ``session_expired``; ``csrf`` as :func:`check_own` says, where the browser adds by itself who
        asks; ``forbidden`` for a person without a role.
    """
    authorization = request.headers.get("authorization")
    if authorization is not None and request.url.path.startswith(STUDIO):
        authorization = bearer_of(authorization)
    caller = None
    if authorization is None:
        try:
            caller = site.proxy.caller(request) if site.proxy else None
            cookie = request.cookies.get(cookie_name(request))
            if caller is None and cookie and not site.access.open:
                caller = (await asyncio.to_thread(site.sessions.find, cookie)).caller
        except Refusal as refusal:
            if not public or refusal.code not in {"session_expired", "forbidden"}:
                raise
    if caller is None:
        return site.access.identify(authorization)
    if request.method not in _SAFE:
        check_own(request)
    return caller
