"""Tokens are replaced and revoked while the service runs, and sessions end with theirs."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

import service.access
from models.errors import Refusal
from service.access import Access, Caller, name_digest
from service.server import Server
from service.store import Store
from service.tokens import add_token, list_tokens, main, revoke_token, rotate_token

OWN = {"x-overread-request": "page"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tokens.json"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file before every request."""
    monkeypatch.setattr(service.access, "LOOK_SECONDS", 0.0)


@pytest.fixture
def caller(make_site: Any, connect: Any, tokens: dict[str, str]) -> Any:
    return connect(make_site())


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def status(caller: Any, token: str) -> int:
    return int(caller.get("/v1/models", headers=bearer(token)).status_code)


def test_a_revoked_token_opens_nothing_any_more(caller: Any, file: Path, tokens: dict[str, str]) -> None:
    assert status(caller, tokens["annotator"]) == 200
    revoke_token(file, "annotator")
    assert [status(caller, tokens[name]) for name in ("annotator", "operator")] == [401, 200]


def test_without_looking_the_revoked_token_would_go_on(
    caller: Any, file: Path, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    monkeypatch.setattr(Access, "follow", lambda _: None)
    revoke_token(file, "annotator")
    assert status(caller, tokens["annotator"]) == 200


def test_a_rotated_token_is_another_with_the_same_rights(caller: Any, file: Path, tokens: dict[str, str]) -> None:
    new = rotate_token(file, "annotator")
    assert [status(caller, token) for token in (tokens["annotator"], new)] == [401, 200]
    assert caller.get("/metrics", headers=bearer(new)).status_code == 403
    assert new not in file.read_text()


def test_a_token_may_go_on_for_a_while(caller: Any, file: Path, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr("service.tokens.time.time", lambda: now[0])
    second = rotate_token(file, "device", overlap_minutes=60)
    assert [status(caller, token) for token in (tokens["device"], second)] == [200, 200]
    assert list_tokens(file)[-2].endswith("until 2027-01-15T09:00Z")
    now[0] += 3601
    assert [status(caller, token) for token in (tokens["device"], second)] == [401, 200]
    third = rotate_token(file, "device", overlap_minutes=60)
    assert [status(caller, token) for token in (tokens["device"], second, third)] == [401, 200, 200]
    revoke_token(file, "device")
    assert [status(caller, token) for token in (second, third)] == [401, 401]


@pytest.mark.parametrize("change", [rotate_token, revoke_token])
def test_sessions_end_with_their_token(caller: Any, file: Path, tokens: dict[str, str], change: Any) -> None:
    response = caller.request("POST", "/v1/session", json={"token": tokens["annotator"]}, headers=OWN)
    cookie = {"cookie": response.headers["set-cookie"].partition(";")[0]}
    assert caller.get("/v1/models", headers=cookie).status_code == 200
    change(file, "annotator")
    assert caller.get("/v1/models", headers=cookie).json()["code"] == "session_expired"


def test_the_first_token_closes_an_open_service(make_site: Any, connect: Any, file: Path) -> None:
    caller = connect(make_site())
    assert caller.get("/v1/models").status_code == 200
    token = add_token(file, "a", "operator")
    assert caller.get("/v1/models").status_code == 401
    assert status(caller, token) == 200


@pytest.mark.parametrize("content", [None, "", "{", '{"tokens": []}', '{"tokens": [{"name": "a"}]}'])
def test_a_file_that_breaks_changes_nothing(caller: Any, file: Path, tokens: dict[str, str], content: str | None) -> None:
    before = file.read_text()
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert caller.get("/v1/models").status_code == 401, "it must never open"
    assert status(caller, tokens["device"]) == 200
    file.write_text(before)
    revoke_token(file, "device")
    assert status(caller, tokens["device"]) == 401, "a file that was mended is followed again"


def test_a_revocation_that_could_not_be_read_at_once_is_taken_over_later(
    caller: Any, file: Path, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    revoke_token(file, "device")
    with monkeypatch.context() as broken:

        def no_descriptor(_: Path) -> str:
            raise OSError(errno.EMFILE, "Too many open files")

        broken.setattr(Path, "read_text", no_descriptor)
        assert status(caller, tokens["device"]) == 200
    assert status(caller, tokens["device"]) == 401


def test_a_token_of_an_unknown_site_is_not_taken_over(caller: Any, file: Path, tokens: dict[str, str]) -> None:
    strange = add_token(file, "b", "device", "nowhere")
    assert [status(caller, token) for token in (strange, tokens["device"])] == [401, 200]


def test_the_only_token_stays(file: Path) -> None:
    add_token(file, "a", "operator")
    before = file.read_bytes()
    with pytest.raises(Refusal, match="only token"):
        revoke_token(file, "a")
    for change in (rotate_token, revoke_token):
        with pytest.raises(Refusal, match="no token of that name"):
            change(file, "b")
    assert file.read_bytes() == before
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_names_that_are_none(file: Path, name: str) -> None:
    with pytest.raises(Refusal, match="64 printable"):
        add_token(file, name, "operator")


def test_a_token_has_a_limit_of_its_own(make_site: Any, connect: Any, file: Path) -> None:
    small, free, usual = (
        add_token(file, name, "operator", limit_per_minute=limit) for name, limit in (("s", 2), ("f", 0), ("u", None))
    )
    caller = connect(make_site(rate_limit_per_minute=4))
    found = {token: [status(caller, token) for _ in range(6)].count(200) for token in (small, free, usual)}
    assert found == {small: 2, free: 6, usual: 4}
    rotated = rotate_token(file, "s")
    assert Access.read(file).identify(f"Bearer {rotated}") == Caller("s", "operator", limit_per_minute=2)


@pytest.mark.dialects
def test_the_command(environment: pytest.MonkeyPatch, where: Path | Server, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--name", "ct", "--role", "device", "--limit", "60"])
    main(["--name", "anna", "--role", "annotator"])
    first = capsys.readouterr().out.split()
    main(["--rotate", "ct"])
    second = capsys.readouterr().out.strip()
    assert second not in first
    main(["--list"])
    shown = capsys.readouterr().out
    assert [line.split("\t")[:4] for line in shown.splitlines()] == [["anna", "annotator", "", ""], ["ct", "device", "", "60"]]
    assert not any(token in shown for token in [*first, second])
    main(["--revoke", "anna"])
    with pytest.raises(Refusal, match="only token"):
        main(["--revoke", "ct"])
    store = Store(where)
    with store.reading() as connection:
        rows = connection.exec_driver_sql("SELECT action, subject, role FROM audit ORDER BY id").all()
    store.close()
    names = {name: name_digest(name) for name in ("ct", "anna")}
    assert rows == [
        ("token_created", names["ct"], "command"),
        ("token_created", names["anna"], "command"),
        ("token_rotated", names["ct"], "command"),
        ("token_revoked", names["anna"], "command"),
    ]


@pytest.mark.parametrize("arguments", [["--name", "a"], ["--rotate", "a", "--role", "device"], [], ["--list", "--revoke", "a"]])
def test_half_a_command_is_misuse(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
