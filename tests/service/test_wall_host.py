"""An open service answers who is on this machine, and nobody who comes by way of a name, a page or a proxy."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from models.errors import Refusal
from service.wall import check_host


def host_request(
    host: str | None, origin: str | None = None, server: tuple[str, int] | None = ("127.0.0.1", 3000), **more: str
) -> Request:
    headers = [(b"host", host.encode())] if host is not None else []
    headers += [(name.encode(), value.encode()) for name, value in more.items()]
    headers += [(b"origin", origin.encode())] if origin is not None else []
    scope = {
        "type": "http",
        "method": "GET",
        "headers": headers,
        "path": "/",
        "query_string": b"",
        "scheme": "http",
        "server": server,
    }
    return Request(scope)


@pytest.mark.parametrize("host", ["127.0.0.1:3000", "127.0.0.1", "localhost:3000", "localhost", "[::1]:3000", "[::1]"])
def test_hosts_of_this_machine(host: str) -> None:
    check_host(host_request(host))
    check_host(host_request(host, origin=f"http://{host}"))


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:3000", "10.0.0.1:3000", "localhost.example.org", "[::2]:3000", "", ":"]
)
def test_other_hosts(host: str) -> None:
    """A web page elsewhere that makes its name point here (DNS rebinding) still sends its own name."""
    with pytest.raises(Refusal) as caught:
        check_host(host_request(host))
    assert caught.value.code == "forbidden"


@pytest.mark.parametrize("origin", ["http://example.org", "null", "http://127.0.0.1:4000", "https://127.0.0.1:3000", ""])
def test_other_origins(origin: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_host(host_request("127.0.0.1:3000", origin=origin))
    assert caught.value.code == "forbidden"


def test_requests_over_a_network() -> None:
    with pytest.raises(Refusal) as caught:
        check_host(host_request("127.0.0.1:3000", server=("10.0.0.1", 3000)))
    assert caught.value.code == "forbidden"


@pytest.mark.parametrize("name", ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"])
def test_requests_through_a_proxy(name: str) -> None:
    """Who reaches a proxy on this machine chooses the Host that it hands on, but not what it adds."""
    with pytest.raises(Refusal) as caught:
        check_host(host_request("127.0.0.1:3000", **{name: "192.0.2.7"}))
    assert caught.value.code == "forbidden"
