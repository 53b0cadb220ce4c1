"""Routes of the page: its files, and signing in and out."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.responses import Response

from models.errors import Refusal
from service.callers import check_own, cookie_name, set_cookie
from service.page_files import INDEX, page_response
from service.routes import Call, Handler, json_response
from service.schemas import Login, SessionAnswer

if TYPE_CHECKING:
    from service.analysis import Site


async def _page(_: Site, call: Call) -> Response:
    call.query()
    return page_response(call.request, INDEX)


async def _file(_: Site, call: Call) -> Response:
    call.query()
    return page_response(call.request, call.parameters["file"])


def _answer(site: Site, call: Call, expires_at: float | None) -> SessionAnswer:
    caller, expires = call.caller, expires_at and datetime.fromtimestamp(expires_at, UTC)
    if caller.role == "public":
        return _nobody(site)
    sites = [caller.site] if caller.site else list(site.settings.sites)
    named = {"name": caller.name, "site": caller.site, "sites": sites, "expires_at": expires}
    return SessionAnswer(open=site.access.open, role=caller.role, **named)


def _nobody(site: Site) -> SessionAnswer:
    return SessionAnswer(open=site.access.open, role=None, name="", site="", sites=[], expires_at=None)


async def _session(site: Site, call: Call) -> Response:
    call.query()
    expires_at = None
    cookie = call.request.cookies.get(cookie_name(call.request))
    if cookie and call.caller.role != "public" and "authorization" not in call.request.headers:
        try:
            expires_at = (await asyncio.to_thread(site.sessions.find, cookie)).expires_at
        except Refusal as refusal:  # of a person whom a proxy names, with an old cookie
            if refusal.code != "session_expired":
                raise
    return json_response(_answer(site, call, expires_at))


async def _sign_in(site: Site, call: Call) -> Response:
    call.query()
    login = await call.document(Login, site.settings.body_timeout_seconds)
    check_own(call.request)
    if site.access.open:
        raise Refusal("bad_request", "Without tokens, nobody needs to sign in.")
    old = call.request.cookies.get(cookie_name(call.request))
    if old:
        await asyncio.to_thread(site.sessions.close, old)
    cookie, session = await asyncio.to_thread(site.sessions.open, login.token)
    response = json_response(_answer(site, Call(call.request, session.caller, {}, call.held), session.expires_at))
    set_cookie(response, call.request, cookie, int(site.settings.session_hours * 3600))
    return response


async def _sign_out(site: Site, call: Call) -> Response:
    call.query()
    cookie = call.request.cookies.get(cookie_name(call.request))
    response = json_response(_nobody(site))
    if cookie:
        check_own(call.request)
        await asyncio.to_thread(site.sessions.close, cookie)
        set_cookie(response, call.request, "", 0)
    return response


PAGE_HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "/ui"): _page,
    ("GET", "/ui/{file}"): _file,
    ("POST", "/v1/session"): _sign_in,
    ("GET", "/v1/session"): _session,
    ("DELETE", "/v1/session"): _sign_out,
}
"""(method, route) -> what answers it."""
