"""What the settings say of an archive: which hosts are allowed, and with what credentials."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from models.errors import Refusal
from service.dicomweb import Archive, check_url
from service.settings import Settings
from tests.service.peers import Peer


def test_credentials_come_from_files(tmp_path: Path) -> None:
    password, token = tmp_path / "password", tmp_path / "token"
    password.write_text("secret word\n")
    token.write_text("abc")
    with closing(Peer()) as peer:
        peer.json("/changes?last", {"Changes": [], "Done": True, "Last": 0})
        to = {"pacs_url": f"{peer.url}/dicom-web", "pacs_orthanc_url": peer.url}
        for given in ({"pacs_user": "me", "pacs_password_file": password}, {"pacs_token_file": token}):
            with closing(Archive(Settings.model_validate(to | given))) as archive:
                archive.last_change()
        assert [headers["authorization"] for _, _, headers, _ in peer.asked] == ["Basic bWU6c2VjcmV0IHdvcmQ=", "Bearer abc"]
        token.write_text("two\nlines")
        for file in (token, tmp_path / "none"):
            with pytest.raises(Refusal, match="OVERREAD_PACS_TOKEN_FILE"):
                Archive(Settings.model_validate(to | {"pacs_token_file": file}))


@pytest.mark.parametrize(
    ("url", "secret", "allowed"),
    [
        ("http://127.0.0.1:8042", True, True),
        ("http://localhost/dicom-web", False, True),
        ("https://pacs.example:8043/x", True, True),
        ("http://pacs.example", False, True),
        ("http://pacs.example", True, False),
        ("https://other.example", False, False),
        ("https://pacs.example.other.example", False, False),
        ("https://user:word@pacs.example", False, False),
        ("https://pacs.example/?x=1", False, False),
        ("https://pacs.example:port", False, False),
        ("ftp://pacs.example", False, False),
        ("file:///etc/passwd", False, False),
        ("", False, False),
    ],
)
def test_hosts_are_allowed_by_name(url: str, secret: bool, allowed: bool) -> None:
    if allowed:
        check_url(url, ("pacs.example",), secret)
    else:
        with pytest.raises(Refusal) as caught:
            check_url(url, ("pacs.example",), secret)
        assert caught.value.code == "config_invalid"


def test_an_archive_without_an_address_or_with_broken_certificates(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    for settings in (Settings(), Settings(pacs_url="https://127.0.0.1:1/dicom-web", pacs_ca_file=broken)):
        with pytest.raises(Refusal) as caught:
            Archive(settings)
        assert caught.value.code == "config_invalid"
