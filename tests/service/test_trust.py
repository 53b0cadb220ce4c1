"""With trusted keys, only packages that one of them signed are started, promoted, tried or rolled back to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from models.signature import SIGNATURE, read_private_key, sign
from service.promotion import Desk
from service.serve import main as serve
from service.settings import Settings, read_settings
from service.store import Store
from tests.models.test_signature import make_keys
from tests.service.packages import write

REASON = "It is a test."


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Any, Path]:
    private, public = make_keys(tmp_path)
    return read_private_key(private), public


@pytest.fixture
def first(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "first"))


def test_a_site_starts_with_signed_packages_only(make_site: Any, first: Path, keys: tuple[Any, Path]) -> None:
    with pytest.raises(Refusal, match="package_untrusted"):
        make_site(models=(first,), trusted_keys=(keys[1],))
    make_site(models=(first,))
    sign(first, keys[0])
    make_site(models=(first,), trusted_keys=(keys[1],))


def test_serve_refuses_before_anything_is_started(
    first: Path, keys: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(os, "execve", lambda *_: started.append("started"))
    for name, value in {"STATE": tmp_path / "state", "MODELS": first, "TRUSTED_KEYS": keys[1]}.items():
        monkeypatch.setenv(f"OVERREAD_{name}", str(value))
    with pytest.raises(Refusal, match="package_untrusted"):
        serve([])
    assert started == []
    sign(first, keys[0])
    serve([])
    assert started == ["started"]


def test_promotion_candidate_and_rollback(first: Path, keys: tuple[Any, Path], tmp_path: Path) -> None:
    sign(first, keys[0])
    settings = Settings.model_validate({"state": tmp_path / "state", "models": (first,), "trusted_keys": (keys[1],)})
    store = Store(settings.database)
    desk = Desk(settings, store)
    second = write(tmp_path / "second", "1.1.0")
    for step in (desk.promote, desk.try_beside):
        with pytest.raises(Refusal, match="package_untrusted"):
            step(second, REASON)
    assert not list(settings.packages.glob("[0-9a-f]*"))
    sign(second, keys[0])
    desk.try_beside(second, REASON)
    desk.promote(second, REASON)
    assert all((folder / SIGNATURE).exists() for folder in settings.packages.glob("[0-9a-f]*"))
    for copy in settings.packages.glob("*/" + SIGNATURE):
        copy.unlink()
    with pytest.raises(Refusal, match="package_untrusted"):
        desk.roll_back("tiny", REASON)
    desk.promote(second, REASON)  # it is current already; the copy gets its signature again
    assert len(list(settings.packages.glob("*/" + SIGNATURE))) == 1
    store.close()


def test_a_copy_is_loaded_with_its_signature(make_site: Any, first: Path, keys: tuple[Any, Path], tmp_path: Path) -> None:
    sign(first, keys[0])
    second = write(tmp_path / "second", "1.1.0")
    sign(second, keys[0])
    chosen = {"state": tmp_path / "state", "models": (first,), "trusted_keys": (keys[1],)}
    store = Store(Settings.model_validate(chosen).database)
    Desk(Settings.model_validate(chosen), store).promote(second, REASON)
    store.close()
    assert make_site(**chosen).lineup.current["tiny"].predictor.card.version == "1.1.0"
    next((tmp_path / "state" / "packages").glob(f"*/{SIGNATURE}")).unlink()
    for copy in (tmp_path / "state" / "packages").glob(f"*/{SIGNATURE}"):
        copy.unlink()
    with pytest.raises(Refusal, match="package_untrusted"):
        make_site(**chosen)


def test_keys_are_read_from_the_settings(keys: tuple[Any, Path], tmp_path: Path) -> None:
    assert read_settings({}).trusted() == ()
    both = read_settings({"OVERREAD_TRUSTED_KEYS": f"{keys[1]}:{keys[1]}"})
    assert len(both.trusted()) == 2
    with pytest.raises(Refusal, match="config_invalid"):
        read_settings({"OVERREAD_TRUSTED_KEYS": str(tmp_path / "missing")}).trusted()
