"""A backup is whole or none, and the state that is made of it is the one that was."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from service import backup
from service.backup import MANIFEST, back_up, check, restore
from service.settings import Settings
from service.tokens import add_token
from tests.service.packages import settled, write
from tests.service.scans import ALL, ask, scan, take


@pytest.fixture
def site(make_site: Any, tmp_path: Path, desk: Any) -> Any:
    """A site with items, kept pixels, a candidate package, a token and a session."""
    desk.try_beside(write(tmp_path / "second", "1.1.0"), "")
    add_token(tmp_path / "state" / "tokens.json", "anna", "annotator")
    site = make_site(**ALL)
    for number in range(3):
        take(site, scan(number))
    settled(site, 3)
    ask(site, "INSERT INTO sessions VALUES ('a', 'b', 4e9)")
    return site


@pytest.fixture
def made(site: Any, tmp_path: Path) -> Path:
    out = tmp_path / "backups" / "one"
    back_up(site.settings, out)
    return out


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of each file that a backup holds, without the database's and the locks."""
    wanted = ("kept", "packages", "tokens.json", "pseudonym.key")
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] in wanted]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != ".lock"}


def rows(file: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(file)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}


def test_the_restored_state_is_the_one_that_was(site: Any, made: Path, tmp_path: Path, make_site: Any) -> None:
    there = tmp_path / "elsewhere" / "state"
    restore(made, there)
    assert tree(there) == tree(site.settings.state)
    assert len([name for name in tree(there) if name.startswith("kept/")]) == 3
    assert any(name.startswith("packages/") for name in tree(there))
    before, after = rows(site.settings.database), rows(there / "overread.sqlite3")
    assert before.pop("sessions") != []
    assert after.pop("sessions") == []
    assert after["audit"][:-1] == before["audit"]
    assert after["audit"][-1][4] == "backup_restored"
    for name in ("audit", "sqlite_sequence"):
        before.pop(name, None), after.pop(name, None)
    assert after == before
    assert {path.name for path in there.iterdir()} <= {
        *("overread.sqlite3", "overread.lock", "kept", "packages", "tokens.json", "pseudonym.key"),
    }
    for path in there.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    again = make_site(**ALL, state=there)
    assert take(again, scan(1)).stored.result["created_at"] == take(site, scan(1)).stored.result["created_at"]


def test_the_backup_names_its_secrets_and_nothing_else_is_in_it(made: Path) -> None:
    manifest = json.loads((made / MANIFEST).read_text())
    assert manifest["secrets"] == ["pseudonym.key", "tokens.json"]
    assert {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()} == {MANIFEST, *manifest["files"]}
    assert not made.with_name("one.partial").exists()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


SPOILT: dict[str, Callable[[Path], Any]] = {
    "database": lambda made: flip(made / "overread.sqlite3"),
    "picture": lambda made: flip(next(made.glob("kept/*/*.png"))),
    "package": lambda made: flip(next(made.glob("packages/*/model.onnx"))),
    "secret": lambda made: flip(made / "pseudonym.key"),
    "missing": lambda made: next(made.glob("kept/*/*.png")).unlink(),
    "added": lambda made: (made / "kept" / "x.png").touch(),
    "link": lambda made: (made / "kept" / "x").symlink_to(made),
    "no manifest": lambda made: (made / MANIFEST).unlink(),
    "another schema": lambda made: (made / MANIFEST).write_text(
        (made / MANIFEST).read_text().replace('"schema_version": 1', '"schema_version": 2')
    ),
    "a way out": lambda made: (made / MANIFEST).write_text(
        (made / MANIFEST).read_text().replace('"tokens.json": {', '"../tokens.json": {')
    ),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_backup_is_refused(made: Path, tmp_path: Path, spoil: str) -> None:
    check(made)
    before = (made / MANIFEST).read_text()
    SPOILT[spoil](made)
    assert spoil not in {"another schema", "a way out"} or (made / MANIFEST).read_text() != before
    for attempt in (lambda: check(made), lambda: restore(made, tmp_path / "there")):
        with pytest.raises(Refusal, match="backup_invalid"):
            attempt()
    assert not (tmp_path / "there" / "overread.sqlite3").exists()


def test_a_state_that_is_there_is_never_overwritten(site: Any, made: Path, tmp_path: Path) -> None:
    before = tree(site.settings.state)
    with pytest.raises(Refusal, match="output_exists"):
        restore(made, site.settings.state)
    assert tree(site.settings.state) == before
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tokens.json").write_text("{}")
    with pytest.raises(Refusal, match="output_exists"):
        restore(made, tmp_path / "there")
    with pytest.raises(Refusal, match="output_exists"):
        back_up(site.settings, made)


def test_a_killed_restore_can_be_made_again(site: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    copies = backup.copy

    def killed_at(step: int) -> None:
        done = []

        def copy(source: Path, target: Path) -> Any:
            done.append(source)
            if len(done) > step:
                raise KeyboardInterrupt
            return copies(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(backup, "copy", copy)
            restore(made, there)

    for step in (0, 1, 3):
        with pytest.raises(KeyboardInterrupt):
            killed_at(step)
        assert not (there / "overread.sqlite3").exists()
    renames: list[Path] = []
    rename = Path.rename

    def die(self: Path, target: Path) -> Path:
        renames.append(self)
        if self.name == "overread.sqlite3":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            restore(made, there)
    assert len(renames) > 3
    restore(made, there)
    assert tree(there) == tree(site.settings.state)


def test_pixels_that_expired_meanwhile_are_no_loss(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = backup._snapshot

    def then_expire(store: Any, file: Path) -> list[str]:
        images = snapshot(store, file)
        site.loop.items.expire(_later(), 1)
        return images

    with monkeypatch.context() as patch:
        patch.setattr(backup, "_snapshot", then_expire)
        back_up(site.settings, tmp_path / "one")
    restore(tmp_path / "one", tmp_path / "there")
    assert len(list((tmp_path / "there" / "kept").rglob("*.png"))) == 2
    # The control: pixels that are gone though the database says that they are kept
    shutil.rmtree(site.settings.kept)
    with pytest.raises(Refusal, match="storage_unavailable"):
        back_up(site.settings, tmp_path / "two")
    assert not list(tmp_path.glob("two*"))


def _later() -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) + timedelta(days=31)


def test_a_killed_backup_is_replaced(site: Any, tmp_path: Path) -> None:
    part = tmp_path / "one.partial"
    part.mkdir()
    (part / "overread.sqlite3").write_text("half")
    with pytest.raises(Refusal, match="backup_invalid"):
        restore(part, tmp_path / "there")
    back_up(site.settings, tmp_path / "one")
    assert not part.exists()
    check(tmp_path / "one")


def test_a_database_of_a_newer_version_is_refused(site: Any, tmp_path: Path, made: Path) -> None:
    with closing(sqlite3.connect(made / "overread.sqlite3")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    manifest = json.loads((made / MANIFEST).read_text())
    manifest["files"]["overread.sqlite3"] = backup._digest(made / "overread.sqlite3").model_dump()
    (made / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Refusal, match="newer version"):
        restore(made, tmp_path / "there")
    assert not (tmp_path / "there" / "overread.sqlite3").exists()


def test_without_a_database_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="config_invalid"):
        back_up(Settings(state=tmp_path / "none"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
