"""TLS to the archive: a real handshake, with authorities that the test makes; whoever is not the archive learns nothing."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from service.dicomweb import Archive
from service.settings import Settings
from tests.certificates import Authority
from tests.service.peers import Peer

LAST = {"Changes": [], "Done": True, "Last": 7}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "hospital")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture
def serve() -> Iterator[Callable[..., Peer]]:
    """Return a function that starts an archive: ``serve(certificate, callers)``; without a certificate, by plain HTTP."""
    started: list[Peer] = []

    def start(certificate: Path | None, callers: Path | None = None) -> Peer:
        context = None
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            if callers is not None:
                context.load_verify_locations(callers)
                context.verify_mode = ssl.CERT_REQUIRED
        started.append(Peer(context))
        started[-1].json("/changes?last", LAST)
        return started[-1]

    yield start
    for peer in started:
        peer.close()


def ask(peer: Peer, scheme: str = "https", host: str = "127.0.0.1", **settings: Any) -> int:
    """Ask an archive for its last change, as a watch with a token does."""
    url = f"{scheme}://{host}:{peer.server.server_address[1]}"
    given = {"pacs_url": f"{url}/dicom-web", "pacs_orthanc_url": url, "pacs_timeout_seconds": 10.0}
    archive = Archive(Settings.model_validate(given | settings))
    try:
        return archive.last_change().last
    finally:
        archive.close()


def refused(peer: Peer, **settings: Any) -> None:
    with pytest.raises(Refusal) as caught:
        ask(peer, **settings)
    assert caught.value.code == "archive_unavailable"
    assert "127.0.0.1" not in str(caught.value)
    assert peer.asked == [], "neither the token nor what was asked for was sent"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret")
    return tmp_path / "token"


def test_the_archive_of_the_right_authority_is_believed(serve: Any, ours: Authority, token: Path) -> None:
    peer = serve(ours.issue("127.0.0.1"))
    assert ask(peer, pacs_ca_file=ours.certificate, pacs_token_file=token) == 7
    assert peer.asked[0][2]["authorization"] == "Bearer secret"


def test_one_of_another_authority_is_not(serve: Any, ours: Authority, other: Authority, token: Path) -> None:
    peer = serve(other.issue("127.0.0.1"))
    refused(peer, pacs_ca_file=ours.certificate, pacs_token_file=token)
    refused(peer, pacs_token_file=token)  # nor by the system's authorities
    assert ask(peer, pacs_ca_file=other.certificate) == 7, "the control"


def test_one_of_another_name_is_not(serve: Any, ours: Authority, token: Path) -> None:
    peer = serve(ours.issue("localhost"))
    refused(peer, pacs_ca_file=ours.certificate, pacs_token_file=token)
    assert ask(peer, host="localhost", pacs_ca_file=ours.certificate) == 7, "the control"


def test_plain_http_is_not_taken_for_tls_nor_tls_for_plain_http(serve: Any, ours: Authority, token: Path) -> None:
    refused(serve(None), pacs_ca_file=ours.certificate, pacs_token_file=token)
    refused(serve(ours.issue("127.0.0.1")), scheme="http", pacs_token_file=token)


def test_an_archive_that_asks_for_a_certificate_gets_ours(serve: Any, ours: Authority, other: Authority) -> None:
    peer = serve(ours.issue("127.0.0.1"), callers=other.certificate)
    refused(peer, pacs_ca_file=ours.certificate)
    refused(peer, pacs_ca_file=ours.certificate, pacs_certificate_file=ours.issue("overread"))
    assert ask(peer, pacs_ca_file=ours.certificate, pacs_certificate_file=other.issue("overread")) == 7


def test_a_certificate_that_cannot_be_read_is_a_wrong_setting(serve: Any, ours: Authority) -> None:
    peer = serve(ours.issue("127.0.0.1"))
    with pytest.raises(Refusal) as caught:  # it has no key
        ask(peer, pacs_ca_file=ours.certificate, pacs_certificate_file=ours.certificate)
    assert caught.value.code == "config_invalid"
