"""Signing in to the page: cookies, what may be asked with them, and a proxy that says who asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest

import service.sessions
from models.errors import Refusal
from service.access import Access, check_bind
from service.callers import CSRF_HEADER, Proxy
from service.heads import PEER
from service.settings import Settings, read_settings
from service.tokens import add_token
from tests.conftest import ROOT
from tests.service.scans import ask

OWN = {CSRF_HEADER: "page"}
HOST = "http://overread.example"


@pytest.fixture
def guarded(make_site: Callable[..., Any], connect: Callable[..., Any], tokens: dict[str, str]) -> Any:
    """A caller of a site with tokens, reached by a name."""
    return connect(make_site(), HOST)


def sign_in(caller: Any, token: str, **headers: str) -> httpx.Response:
    return caller.request("POST", "/v1/session", json={"token": token}, headers=OWN | headers)


def cookie_of(response: httpx.Response) -> dict[str, Any]:
    """Return the one cookie of a response: name, value and flags."""
    (header,) = response.headers.get_list("set-cookie")
    ((name, morsel),) = SimpleCookie(header).items()
    return {"name": name, "value": morsel.value} | {
        key: morsel[key] for key in ("httponly", "samesite", "secure", "path", "max-age")
    }


def sent(cookie: dict[str, Any]) -> dict[str, str]:
    return {"cookie": f"{cookie['name']}={cookie['value']}"}


@pytest.mark.dialects
def test_a_cookie_stands_for_its_token(guarded: Any, tokens: dict[str, str]) -> None:
    response = sign_in(guarded, tokens["annotator"])
    assert response.json()["role"] == response.json()["name"] == "annotator"
    cookie = cookie_of(response)
    assert guarded.get("/v1/models").status_code == 401
    assert guarded.get("/v1/models", headers=sent(cookie)).status_code == 200
    assert guarded.get("/metrics", headers=sent(cookie)).status_code == 403
    told = guarded.get("/v1/session", headers=sent(cookie)).json()
    assert (told["role"], told["open"]) == ("annotator", False)
    assert told["expires_at"] is not None


def test_flags_of_the_cookie(guarded: Any, tokens: dict[str, str]) -> None:
    plain = cookie_of(sign_in(guarded, tokens["operator"]))
    secure = cookie_of(sign_in(guarded, tokens["operator"], **{"x-forwarded-proto": "https"}))
    assert [(each["name"], bool(each["secure"])) for each in (plain, secure)] == [
        ("overread_session", False),
        ("__Host-overread_session", True),
    ]
    for each in (plain, secure):
        assert each["httponly"] is True
        assert each["samesite"].lower() == "strict"
        assert (each["path"], int(each["max-age"])) == ("/", 12 * 3600)
    # Over TLS, one without the prefix could have been set by another host of the domain
    mixed = {"cookie": f"overread_session={secure['value']}", "x-forwarded-proto": "https"}
    assert guarded.get("/v1/models", headers=mixed).status_code == 401
    assert guarded.get("/v1/models", headers=mixed | sent(secure)).status_code == 200


@pytest.mark.dialects
def test_a_session_cannot_be_planted(guarded: Any, tokens: dict[str, str]) -> None:
    planted = {"cookie": "overread_session=" + "A" * 43}
    assert guarded.get("/v1/models", headers=planted).json()["code"] == "session_expired"
    made = cookie_of(sign_in(guarded, tokens["operator"], **planted))
    assert made["value"] != "A" * 43
    assert guarded.get("/v1/models", headers=planted).status_code == 401
    again = cookie_of(sign_in(guarded, tokens["operator"], **sent(made)))
    assert again["value"] != made["value"]
    assert guarded.get("/v1/models", headers=sent(made)).status_code == 401, "the old one must end"
    assert guarded.get("/v1/models", headers=sent(again)).status_code == 200


@pytest.mark.dialects
def test_only_the_hash_is_kept(guarded: Any, tokens: dict[str, str], tmp_path: Path) -> None:
    cookie = cookie_of(sign_in(guarded, tokens["operator"]))
    content = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    content += str(ask(guarded.api.site, "SELECT * FROM sessions")).encode()
    assert cookie["value"].encode() not in content
    assert tokens["operator"].encode() not in content
    assert service.sessions._digest(cookie["value"]).encode() in content


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OWN, 200),
        (OWN | {"origin": HOST}, 200),
        (OWN | {"sec-fetch-site": "same-origin"}, 200),
        ({}, 403),
        ({"origin": HOST}, 403),
        (OWN | {"origin": "http://evil.example"}, 403),
        (OWN | {"origin": "null"}, 403),
        (OWN | {"sec-fetch-site": "cross-site"}, 403),
        (OWN | {"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_another_page_cannot_use_the_cookie(
    guarded: Any, tokens: dict[str, str], draw: Any, headers: dict[str, str], status: int
) -> None:
    cookie = cookie_of(sign_in(guarded, tokens["operator"]))
    response = guarded.predict(draw(1), **headers, **sent(cookie))
    assert response.status_code == status
    if status == 403:
        assert response.json()["code"] == "csrf"
    assert ask(guarded.api.site, "SELECT count(*) FROM results") == [(status == 200,)]
    # A token is never sent by a browser on its own, so a program needs no header
    token = {"authorization": f"Bearer {tokens['operator']}"}
    assert guarded.predict(draw(1), **token, **{k: v for k, v in headers.items() if k != "origin"}).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}])
def test_another_page_cannot_sign_in_or_out(guarded: Any, tokens: dict[str, str], headers: dict[str, str]) -> None:
    own = OWN if headers else {}
    refused = guarded.request("POST", "/v1/session", json={"token": tokens["operator"]}, headers=own | headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf")
    assert "set-cookie" not in refused.headers
    cookie = cookie_of(sign_in(guarded, tokens["operator"]))
    assert guarded.request("DELETE", "/v1/session", headers=own | headers | sent(cookie)).status_code == 403
    assert guarded.get("/v1/models", headers=sent(cookie)).status_code == 200


@pytest.mark.dialects
def test_signing_out_ends_it(guarded: Any, tokens: dict[str, str]) -> None:
    cookie, other = (cookie_of(sign_in(guarded, tokens["operator"])) for _ in range(2))
    gone = cookie_of(guarded.request("DELETE", "/v1/session", headers=OWN | sent(cookie)))
    assert (gone["value"], gone["max-age"]) == ("", "0")
    assert guarded.get("/v1/models", headers=sent(cookie)).json()["code"] == "session_expired"
    assert guarded.get("/v1/models", headers=sent(other)).status_code == 200


@pytest.mark.dialects
def test_it_ends_in_time(guarded: Any, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = cookie_of(sign_in(guarded, tokens["operator"]))
    now = service.sessions.time.time()
    for hours, status in ((11.9, 200), (12.1, 401)):
        monkeypatch.setattr(service.sessions.time, "time", lambda hours=hours: now + hours * 3600)
        assert guarded.get("/v1/models", headers=sent(cookie)).status_code == status
    assert guarded.get("/v1/session", headers=sent(cookie)).json()["role"] is None, "the page must load, and ask"
    assert guarded.get("/ui", headers=sent(cookie)).status_code == 200


@pytest.mark.dialects
def test_it_outlives_a_restart_but_not_its_token(make_site: Any, connect: Any, tokens: dict[str, str], tmp_path: Path) -> None:
    cookie = cookie_of(sign_in(connect(make_site(), HOST), tokens["annotator"]))
    assert connect(make_site(), HOST).get("/v1/models", headers=sent(cookie)).status_code == 200
    file = tmp_path / "state" / "tokens.json"
    document = json.loads(file.read_text())
    document["tokens"] = [item for item in document["tokens"] if item["name"] != "annotator"]
    file.write_text(json.dumps(document))
    assert connect(make_site(), HOST).get("/v1/models", headers=sent(cookie)).json()["code"] == "session_expired"


def test_who_may_sign_in(guarded: Any, tokens: dict[str, str]) -> None:
    assert sign_in(guarded, "ovr_wrong").json()["code"] == "unauthenticated"
    assert sign_in(guarded, tokens["device"]).json()["code"] == "forbidden"
    nobody = {"open": False, "role": None, "name": "", "site": "", "sites": [], "expires_at": None}
    assert guarded.get("/v1/session").json() == nobody


def test_nobody_signs_in_to_an_open_site(client: Any) -> None:
    told = client.get("/v1/session").json()
    assert told == {"open": True, "role": "operator", "name": "", "site": "", "sites": [], "expires_at": None}
    assert sign_in(client, "ovr_x").json()["code"] == "bad_request"


PROXY = {"proxy_user_header": "X-Auth-Request-Email", "proxy_hosts": ("10.1.0.0/16", "::1"), "proxy_roles": ("*=annotator",)}
NAMED = {"x-auth-request-email": "reader@hospital.example"}


def as_peer(caller: Any, peer: tuple[str, int] | None, method: str, url: str, headers: Any, **options: Any) -> httpx.Response:
    """Send a request that comes from an address."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await caller.api(scope | ({PEER: peer} if peer else {}), receive, send)

    async def go() -> httpx.Response:
        # The address in ASGI's own place is one that a header may have changed
        transport = httpx.ASGITransport(app=app, client=("10.1.2.3", 1))
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
            return await client.request(method, url, headers=headers, **options)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        (("10.1.2.3", 5), NAMED, 200),
        (("::1", 5), NAMED, 200),
        (("10.1.2.3", 5), {}, 401),
        (("10.2.0.1", 5), NAMED, 401),
        (("127.0.0.1", 5), NAMED, 401),
        (("127.0.0.1", 5), NAMED | {"x-forwarded-for": "10.1.2.3"}, 401),
        (None, NAMED, 401),
        (("unix", 0), NAMED, 401),
        (("10.1.2.3", 5), [*NAMED.items(), ("X-Auth-Request-Email", "boss@hospital.example")], 401),
        (("10.1.2.3", 5), {"x-auth-request-email": "x" * 65}, 401),
    ],
)
def test_only_the_proxy_says_who_asks(make_site: Any, connect: Any, peer: Any, headers: Any, status: int) -> None:
    caller = connect(make_site(**PROXY))
    assert as_peer(caller, peer, "GET", "/v1/models", headers).status_code == status


def test_without_the_setting_nobody_is_believed(guarded: Any) -> None:
    assert as_peer(guarded, ("10.1.2.3", 5), "GET", "/v1/models", NAMED).status_code == 401


def test_a_named_person_has_the_highest_role_of_their_groups(make_site: Any, connect: Any) -> None:
    roles = ("readers=annotator", "admins=operator")
    site = make_site(**PROXY | {"proxy_groups_header": "X-Auth-Request-Groups", "proxy_roles": roles})
    caller, peer = connect(site), ("10.1.0.1", 1)
    for groups, status in (("readers", 403), ("readers, admins", 200), ("others", 403), ("", 403), ("admin", 403)):
        told = as_peer(caller, peer, "GET", "/metrics", NAMED | {"x-auth-request-groups": groups})
        assert told.status_code == status, groups
    named = NAMED | {"x-auth-request-groups": "readers"}
    assert as_peer(caller, peer, "GET", "/v1/session", named).json()["name"] == "reader@hospital.example"
    # The name of a user is no group
    trick = {"x-auth-request-email": "admins", "x-auth-request-groups": ""}
    assert as_peer(caller, peer, "GET", "/v1/models", trick).status_code == 403


def test_a_page_elsewhere_cannot_use_the_proxys_cookie(make_site: Any, connect: Any, draw: Any) -> None:
    caller = connect(make_site(**PROXY | {"proxy_roles": ("*=operator",)}))
    headers = NAMED | {"content-type": "image/png"}
    for extra, status in (({}, 403), (OWN, 200), (OWN | {"origin": "https://evil.example"}, 403)):
        answer = as_peer(caller, ("10.1.0.1", 1), "POST", "/v1/predict", headers | extra, content=draw(1))
        assert answer.status_code == status


@pytest.mark.parametrize(
    "change",
    [
        {"proxy_hosts": ()},
        {"proxy_roles": ()},
        {"proxy_user_header": None},
        {"proxy_hosts": ("proxy.example",)},
        {"proxy_roles": ("*=device",)},
        {"proxy_roles": ("annotator",)},
        {"proxy_roles": ("x=root",)},
    ],
)
def test_half_a_proxy_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="config_invalid"):
        Proxy.read(Settings.model_validate(PROXY | change))


def test_the_settings_of_a_proxy_are_read() -> None:
    settings = read_settings(
        {
            "OVERREAD_PROXY_USER_HEADER": "X-User",
            "OVERREAD_PROXY_HOSTS": "10.0.0.1, 10.0.0.2",
            "OVERREAD_PROXY_ROLES": "readers=annotator,admins=operator",
        }
    )
    proxy = Proxy.read(settings)
    assert proxy is not None
    assert proxy.roles == {"readers": "annotator", "admins": "operator"}
    assert Proxy.read(Settings()) is None


def test_a_site_behind_a_proxy_is_not_open(tmp_path: Path) -> None:
    access = Access.read(tmp_path / "tokens.json", proxied=True)
    assert not access.open
    assert access.identify(None).role == "public"
    check_bind("0.0.0.0", access)
    add_token(tmp_path / "tokens.json", "a", "operator")
    assert not Access.read(tmp_path / "tokens.json").open


def test_files_of_the_page(client: Any) -> None:
    page = client.get("/ui")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    again = client.get("/ui", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/ui/ol.js").content == (ROOT / "service/web/vendor/ol.js").read_bytes()
    for path in (
        "/ui/LICENCES.txt",
        "/ui/index.html",
        "/ui/../access.py",
        "/ui/%2e%2e/access.py",
        "/ui/x.js",
        "/ui/vendor/ol.js",
        "/ui/",
    ):
        assert client.get(path).status_code == 404, path
    assert client.get("/ui?x=1").status_code == 400
