"""Nobody reaches what is not theirs (row 19 of docs/reliability.md)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access import ACCESS, LOOK_SECONDS, ROLES
from service.tokens import add_token, revoke_token
from tests.conftest import ROOT
from tests.ports import free_port
from tests.routes import URLS

DOCS = ROOT / "docs" / "access.md"
Table = dict[tuple[str, str, str], bool]


def documented(text: str) -> Table:
    """Read the table: (method, route, role) to whether it is allowed."""
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    roles = [cell.strip() for cell in head.strip("|").split("|")[1:]]
    table: Table = {}
    for row in rows:
        name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        method, route = name.strip("`").split(" ")
        table |= {(method, route, role): cell == "yes" for role, cell in zip(roles, cells, strict=True)}
    return table


def observed(url: str, tokens: dict[str, str]) -> Table:
    """Ask each route as each role, and see whether it answers."""
    table: Table = {}
    for role, token in [*tokens.items(), ("public", "")]:
        for method, route in ACCESS:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            response = httpx.request(method, url + URLS[route], headers=headers, timeout=60)
            if response.status_code in {401, 403}:
                assert response.status_code == (401 if role == "public" else 403)
                assert response.json()["code"] == ("unauthenticated" if role == "public" else "forbidden")
            table[method, route, role] = response.status_code not in {401, 403}
    return table


@pytest.fixture(scope="module")
def guarded(
    start_server: Callable[..., Any], package: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, str]]:
    """A server with a token of each role."""
    state = tmp_path_factory.mktemp("guarded")
    tokens = {role: add_token(state / "tokens.json", role, role) for role in ROLES}
    return start_server(package, state=state), tokens


def test_the_document_is_the_table_in_the_code() -> None:
    expected = {(method, route, role): role in roles for (method, route), roles in ACCESS.items() for role in ("public", *ROLES)}
    assert documented(DOCS.read_text()) == expected


def test_the_server_does_what_the_document_says(guarded: tuple[Any, dict[str, str]]) -> None:
    server, tokens = guarded
    assert observed(server.url, tokens) == documented(DOCS.read_text())


def test_the_comparison_sees_a_planted_right(guarded: tuple[Any, dict[str, str]]) -> None:
    server, tokens = guarded
    planted = DOCS.read_text().replace("| `GET /metrics` | | | |", "| `GET /metrics` | | yes | |")
    assert planted != DOCS.read_text()
    assert observed(server.url, tokens) != documented(planted)
    assert observed(server.url, tokens | {"device": tokens["operator"]}) != documented(DOCS.read_text())


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "Bearer", "Basic b3BlcmF0b3I6", "Bearer \xff", "Bearer ovr_" + "A" * 43, "x" * 10_000]
)
def test_a_wrong_token_opens_nothing(guarded: tuple[Any, dict[str, str]], header: str) -> None:
    server, _ = guarded
    for method, route in ACCESS:
        url = server.url + URLS[route]
        response = httpx.request(method, url, headers={"authorization": header.encode("latin-1")}, timeout=60)
        assert response.status_code == (200 if route == "/healthz" else 401)


def test_refused_callers_leave_nothing(guarded: tuple[Any, dict[str, str]], draw: Any, ask: Any) -> None:
    server, tokens = guarded
    before = ask(server.state, "SELECT count(*) FROM results")
    for token in ("wrong", tokens["annotator"]):
        headers = {"content-type": "image/png", "authorization": f"Bearer {token}"}
        assert httpx.post(f"{server.url}/v1/predict", content=draw(1), headers=headers, timeout=60).status_code in {401, 403}
    assert ask(server.state, "SELECT count(*) FROM results") == before


def test_no_token_is_on_disk_or_in_the_log(guarded: tuple[Any, dict[str, str]]) -> None:
    server, tokens = guarded
    for file in [server.log, *(path for path in server.state.rglob("*") if path.is_file())]:
        content = file.read_bytes()
        assert not any(token.encode() in content for token in tokens.values()), file.name


def test_a_token_is_revoked_in_every_worker_while_they_run(
    start_server: Callable[..., Any], package: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("revoked") / "tokens.json"
    tokens = {name: add_token(file, name, "operator") for name in ("stays", "goes")}
    server = start_server(package, state=file.parent, workers=2, OVERREAD_THREADS="1")

    def answers(name: str) -> set[int]:
        headers = {"authorization": f"Bearer {tokens[name]}", "connection": "close"}  # any worker may take the next one
        return {httpx.get(f"{server.url}/v1/models", headers=headers, timeout=60).status_code for _ in range(12)}

    assert answers("goes") == {200}
    revoke_token(file, "goes")
    end = time.monotonic() + LOOK_SECONDS  # a worker that looked right before it was revoked does not look again until then
    while time.monotonic() < end:
        answers("goes")
    assert answers("goes") == {401}
    assert answers("stays") == {200}


def test_an_open_service_answers_this_machine_only(server: Any) -> None:
    url = f"{server.url}/v1/models"
    assert httpx.get(url, timeout=60).status_code == 200
    assert httpx.get(url, headers={"origin": server.url}, timeout=60).status_code == 200
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}, {"host": "10.0.0.1:3000"}):
        response = httpx.get(url, headers=headers, timeout=60)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden"), headers


COMMANDS = {
    "overread serve": ["-m", "models.cli", "serve"],
    "bentoml serve": ["-m", "bentoml", "serve", "service.app:Overread"],
}


def serve(command: str, host: str, package: Path, state: Path) -> tuple[int | None, str, bool]:
    """Start a server; return its exit code within two minutes (None: it went on), what it wrote, and whether it got ready."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    environment |= {"OVERREAD_STATE": str(state), "OVERREAD_MODELS": str(package), "BENTOML_DO_NOT_TRACK": "True"}
    environment |= {"BENTOML_HOME": str(state / "bentoml")}
    process = subprocess.Popen(
        [sys.executable, *COMMANDS[command], "--host", host, "--port", str(port)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    ready = False
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end and not ready:
        try:
            ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code in {200, 401}
        except httpx.TransportError:
            time.sleep(0.1)
    code = process.poll()
    if code is None:
        process.terminate()
    output, _ = process.communicate(timeout=120)
    return code, output, ready


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_network_without_tokens_is_refused_at_the_start(command: str, package: Path, tmp_path: Path) -> None:
    code, output, ready = serve(command, "0.0.0.0", package, tmp_path)
    assert code is not None, "it must end, not start again for ever"
    assert not ready
    assert "[config_invalid] Listening on anything but loopback needs tokens" in output
    if command == "overread serve":
        assert code == 2
        assert not (tmp_path / "overread.sqlite3").exists()


def test_with_tokens_it_starts_there(package: Path, tmp_path: Path) -> None:
    add_token(tmp_path / "tokens.json", "a", "operator")
    code, _, ready = serve("bentoml serve", "0.0.0.0", package, tmp_path)
    assert (code, ready) == (None, True)


def test_the_socket_of_a_loopback_server_is_on_loopback(server: Any) -> None:
    port = int(server.url.rpartition(":")[2])
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    assert listening == ["0100007F"]
