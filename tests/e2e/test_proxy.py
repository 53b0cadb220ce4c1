"""The documented reverse proxy, as it stands in deploy/nginx.conf: TLS, limits, and nobody who names themselves."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.tokens import add_token
from tests.conftest import require
from tests.e2e.proxies import NAME, Proxy

SIGNED_IN = {"X-Auth-Request-Email": "somebody@hospital.example"}


@pytest.fixture(scope="module")
def tokens_and_server(
    start_server: Callable[..., Any], package: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    state = tmp_path_factory.mktemp("proxied")
    token = add_token(state / "tokens.json", "anna", "operator")
    trusted = {"USER_HEADER": "X-Auth-Request-Email", "HOSTS": "127.0.0.1", "ROLES": "*=operator"}
    return token, start_server(package, state=state, **{f"OVERREAD_PROXY_{name}": value for name, value in trusted.items()})


@pytest.fixture(scope="module")
def make_proxy(tokens_and_server: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Proxy]]:
    require("nginx")
    require("openssl")
    made: list[Proxy] = []

    def make(backend: str = tokens_and_server[1].url, **options: Any) -> Proxy:
        made.append(Proxy(tmp_path_factory.mktemp("nginx"), backend, **options))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture(scope="module")
def proxy(make_proxy: Callable[..., Proxy]) -> Proxy:
    return make_proxy()


@pytest.fixture(scope="module")
def bearer(tokens_and_server: tuple[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {tokens_and_server[0]}"}


def test_plain_http_is_sent_to_tls(proxy: Proxy) -> None:
    response = httpx.get(f"http://127.0.0.1:{proxy.plain}/v1/models?x=1", headers={"host": NAME}, timeout=60)
    assert (response.status_code, response.headers["location"]) == (308, f"https://{NAME}/v1/models?x=1")


def test_images_go_through_and_strangers_do_not(proxy: Proxy, bearer: dict[str, str], draw: Any) -> None:
    image = {"content-type": "image/png"}
    answer = proxy.client.post("/v1/predict", content=draw(1), headers=bearer | image)
    assert answer.status_code == 200
    assert "max-age" in answer.headers["strict-transport-security"]
    assert proxy.client.post("/v1/predict", content=draw(1), headers=image).status_code == 401
    assert proxy.client.get("/metrics", headers=bearer).status_code == 200
    assert proxy.client.post("/v1/predict", content=b"x" * 2_000_000, headers=bearer | image).status_code == 413


def test_the_cookie_is_for_tls_only(proxy: Proxy, bearer: dict[str, str]) -> None:
    own = {"x-overread-request": "page", "origin": f"https://127.0.0.1:{proxy.port}"}
    token = bearer["authorization"].partition(" ")[2]
    cookie = proxy.client.post("/v1/session", json={"token": token}, headers=own).headers["set-cookie"]
    assert cookie.startswith("__Host-overread_session=")
    assert "Secure" in cookie


@pytest.mark.parametrize(("version", "taken"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)])
def test_old_tls_is_refused(proxy: Proxy, version: ssl.TLSVersion, taken: bool) -> None:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of what is old on purpose
        context.minimum_version = context.maximum_version = version
    url = f"https://127.0.0.1:{proxy.port}/healthz"
    if taken:
        assert httpx.get(url, verify=context, timeout=60).status_code == 200
        return
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, verify=context, timeout=60)


@pytest.fixture(scope="module")
def careless(make_proxy: Callable[..., Proxy]) -> Proxy:
    return make_proxy(careless=True)


def test_nobody_names_themselves(proxy: Proxy, careless: Proxy) -> None:
    for each, status in ((proxy, 401), (careless, 200)):  # the control lets everybody be an operator
        each.client.cookies.clear()
        assert each.client.get("/v1/models", headers=SIGNED_IN).status_code == status


def test_an_open_service_behind_it_answers_nobody(make_proxy: Callable[..., Proxy], server: Any) -> None:
    """A service without tokens takes every caller for the operator: a proxy on this machine must not let others be one."""
    proxy = make_proxy(backend=server.url)
    for host in (f"127.0.0.1:{proxy.port}", "localhost", NAME):
        response = proxy.client.get("/v1/models", headers={"host": host})
        assert (response.status_code, response.json()["code"]) == (403, "forbidden"), host
    assert httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 200  # the control: who is on this machine


def test_neither_log_nor_disk_holds_what_was_sent(proxy: Proxy, careless: Proxy, bearer: dict[str, str], draw: Any) -> None:
    image = {"content-type": "image/png", "user-agent": "CANARY", "x-patient": "CANARY"}
    found = []
    for each in (proxy, careless):
        for seed in range(3):
            each.client.post("/v1/predict?model=CANARY", content=draw(seed, 300), headers=bearer | image)
        each.client.get("/CANARY", headers={"referer": "CANARY"})
        files = [path for path in each.folder.rglob("*") if path.is_file()]
        assert (each.folder / "overread.log").read_text().count("POST") >= 3
        assert [path for path in files if "temporary" in path.parent.name] == []
        found.append([path.name for path in files if b"CANARY" in path.read_bytes()])
    assert found == [[], ["overread.log"]]
