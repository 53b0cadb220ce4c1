"""Who asks, and may they."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import service.access
from models.errors import Refusal
from service.access import ACCESS, ROLES, Access, Caller, check_bind, is_loopback
from service.tokens import add_token, main


def code_of(refusing: pytest.ExceptionInfo[Refusal]) -> str:
    return refusing.value.code


def test_the_token_never_stands_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "state" / "tokens.json"
    token = add_token(file, "scanner", "device")
    text = file.read_text()
    assert token not in text
    assert token.removeprefix("ovr_") not in text
    assert len(token) > 40
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert {each.name for each in file.parent.iterdir()} == {"tokens.json", "tokens.lock"}


def test_each_token_is_known_by_its_role(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens = {role: add_token(file, f"my {role}", role) for role in ROLES}
    access = Access.read(file)
    assert not access.open
    for role, token in tokens.items():
        assert access.identify(f"Bearer {token}") == Caller(f"my {role}", role)
        assert access.identify(f"bearer  {token} ") == Caller(f"my {role}", role)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer ovr_wrong", "Basic {token}", "{token}", "Bearer {token}x"])
def test_other_headers_are_refused(tmp_path: Path, header: str) -> None:
    file = tmp_path / "tokens.json"
    token = add_token(file, "a", "operator")
    with pytest.raises(Refusal) as caught:
        Access.read(file).identify(header.format(token=token))
    assert code_of(caught) == "unauthenticated"
    assert token not in str(caught.value)


def test_the_hash_is_not_a_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    add_token(file, "a", "operator")
    stored = json.loads(file.read_text())["tokens"][0]["sha256"]
    with pytest.raises(Refusal):
        Access.read(file).identify(f"Bearer {stored}")


def test_a_wrong_token_is_refused_where_none_is_needed() -> None:
    """Otherwise a typing error in the tokens file's place would go unnoticed for ever."""
    with pytest.raises(Refusal):
        Access({}).identify("Bearer ovr_something")


def test_without_tokens_everybody_is_the_operator() -> None:
    assert Access({}).identify(None) == Caller("", "operator")


def test_names_are_unique(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    add_token(file, "a", "device")
    before = file.read_bytes()
    with pytest.raises(Refusal) as caught:
        add_token(file, "a", "operator")
    assert code_of(caught) == "config_invalid"
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"tokens": []}',
        '{"tokens": {}}',
        '{"tokens": null}',
        '{"tokens": [{"name": "a", "sha256": "0"}]}',
        '{"tokens": [{"name": "a", "role": "admin", "sha256": "0"}]}',
        '{"tokens": [1]}',
    ],
)
def test_a_corrupt_file_never_opens_the_service(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(content)
    with pytest.raises(Refusal) as caught:
        Access.read(file)
    assert code_of(caught) == "config_invalid"
    with pytest.raises(Refusal):
        add_token(file, "b", "operator")
    assert file.read_text() == content


def test_bytes_that_are_no_text_never_open_the_service(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refusal):
        Access.read(file)


@pytest.mark.parametrize("route", sorted(ACCESS))
@pytest.mark.parametrize("role", [*ROLES, "public"])
def test_the_table_decides(route: tuple[str, str], role: str) -> None:
    access = Access({"x": Caller("x", "device")})
    caller = Caller("somebody", role)
    if role in ACCESS[route]:
        access.authorise(caller, *route)
    else:
        with pytest.raises(Refusal) as caught:
            access.authorise(caller, *route)
        assert code_of(caught) == ("unauthenticated" if role == "public" else "forbidden")


def test_only_harmless_routes_are_public() -> None:
    public = {route for (_, route), roles in ACCESS.items() if "public" in roles}
    assert public == {"/", "/healthz", "/readyz", "/v1/openapi.json", "/ui", "/ui/{file}", "/v1/session"}


def test_rate_limit_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(service.access.time, "monotonic", lambda: now[0])
    access = Access({}, limit_per_minute=3)
    one, other = Caller("one", "device"), Caller("other", "device")
    for _ in range(3):
        access.spend(one)
    with pytest.raises(Refusal) as caught:
        access.spend(one)
    assert code_of(caught) == "rate_limited"
    access.spend(other)  # callers do not share a bucket
    now[0] += 19
    with pytest.raises(Refusal):
        access.spend(one)
    now[0] += 1.5  # 20.5 s: one of three a minute is back
    access.spend(one)
    now[0] += 3600  # it never holds more than a minute's worth
    for _ in range(3):
        access.spend(one)
    with pytest.raises(Refusal):
        access.spend(one)


def test_no_limit_keeps_no_books() -> None:
    access = Access({})
    for _ in range(1000):
        access.spend(Caller("one", "device"))
    assert access._spent == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, Access({}))


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "[::]", "", "10.0.0.1", "example.org", "localhost.example.org", "::ffff:10.0.0.1", "127.0.0.1.example.org"],
)
def test_anything_else_needs_tokens(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(Refusal) as caught:
        check_bind(host, Access({}))
    assert code_of(caught) == "config_invalid"
    check_bind(host, Access({"0": Caller("a", "device")}))


def test_command_prints_the_token_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OVERREAD_STATE", str(tmp_path / "state"))
    assert main(["--name", "ct-1", "--role", "device"]) == 0
    token = capsys.readouterr().out.strip()
    assert Access.read(tmp_path / "state" / "tokens.json").identify(f"Bearer {token}").role == "device"
    with pytest.raises(SystemExit):
        main(["--name", "ct-2", "--role", "admin"])
