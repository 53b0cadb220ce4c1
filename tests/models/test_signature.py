"""Who let a package into use: a signature holds for every byte of it, and openssl says the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from models.batch import load_model
from models.errors import Refusal
from models.signature import SIGNATURE, main, read_private_key, read_public_keys, sign, verify
from tests.conftest import tiny_card, tiny_graph


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)


def make_keys(folder: Path, name: str = "release") -> tuple[Path, Path]:
    """Make a pair of keys as the documents say."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", str(private)).returncode == 0
    assert openssl("pkey", "-in", str(private), "-pubout", "-out", str(public)).returncode == 0
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path)


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "package"))


def test_a_signed_package_is_taken_and_openssl_agrees(copied: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    trusted = read_public_keys([public])
    with pytest.raises(Refusal, match="package_untrusted"):
        load_model(copied, trusted)
    assert main([str(copied), "--key", str(private)]) == 0
    assert load_model(copied, trusted).card.name == "tiny"
    arguments = ("-verify", "-pubin", "-inkey", str(public), "-rawin", "-in", str(copied / "card.json"))
    shown = openssl("pkeyutl", *arguments, "-sigfile", str(copied / SIGNATURE))
    assert shown.returncode == 0, shown.stderr
    assert len((copied / SIGNATURE).read_bytes()) == 64


def test_another_key_is_not_trusted_and_one_of_several_is_enough(copied: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign(copied, read_private_key(keys[0]))
    _, other = make_keys(tmp_path, "other")
    with pytest.raises(Refusal, match="package_untrusted"):
        load_model(copied, read_public_keys([other]))
    load_model(copied, read_public_keys([other, keys[1]]))
    load_model(copied)  # without keys, packages need no signature


@pytest.mark.parametrize("place", range(0, 64, 7))
def test_a_flipped_bit_of_the_signature_is_seen(copied: Path, keys: tuple[Path, Path], place: int) -> None:
    sign(copied, read_private_key(keys[0]))
    raw = bytearray((copied / SIGNATURE).read_bytes())
    raw[place] ^= 4
    (copied / SIGNATURE).write_bytes(raw)
    with pytest.raises(Refusal, match="package_untrusted"):
        load_model(copied, read_public_keys([keys[1]]))


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"x" * 65])
def test_what_is_no_signature(copied: Path, keys: tuple[Path, Path], content: bytes) -> None:
    (copied / SIGNATURE).write_bytes(content)
    with pytest.raises(Refusal, match="package_untrusted"):
        load_model(copied, read_public_keys([keys[1]]))


def test_a_signature_of_another_package_is_none(copied: Path, make_package: object, keys: tuple[Path, Path]) -> None:
    sign(copied, read_private_key(keys[0]))
    other = tiny_card(tiny_graph(poison=2.0))
    with pytest.raises(Refusal, match="package_untrusted"):
        verify(copied, other, read_public_keys([keys[1]]))


def test_a_changed_package_is_not_signed(copied: Path, keys: tuple[Path, Path]) -> None:
    graph = copied / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"x")
    with pytest.raises(Refusal, match="package_invalid"):
        sign(copied, read_private_key(keys[0]))
    assert not (copied / SIGNATURE).exists()


def test_a_key_with_a_password(copied: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked.pem"
    openssl("pkey", "-in", str(keys[0]), "-aes256", "-passout", "pass:secret", "-out", str(locked))
    monkeypatch.setattr("getpass.getpass", lambda _: "secret")
    sign(copied, read_private_key(locked))
    load_model(copied, read_public_keys([keys[1]]))
    monkeypatch.setattr("getpass.getpass", lambda _: "wrong")
    with pytest.raises(Refusal, match="config_invalid"):
        read_private_key(locked)


def test_what_is_no_key(keys: tuple[Path, Path], tmp_path: Path) -> None:
    rsa, text = tmp_path / "rsa.pem", tmp_path / "text.pem"
    openssl("genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(rsa))
    openssl("pkey", "-in", str(rsa), "-pubout", "-out", str(tmp_path / "rsa.pub"))
    text.write_text("nothing")
    for file in (rsa, text, tmp_path / "missing", keys[1]):
        with pytest.raises(Refusal, match="config_invalid"):
            read_private_key(file)
    for file in (tmp_path / "rsa.pub", text, tmp_path / "missing", keys[0]):
        with pytest.raises(Refusal, match="config_invalid"):
            read_public_keys([file])
