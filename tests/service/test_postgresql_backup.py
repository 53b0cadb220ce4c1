"""The lines of docs/postgresql.md that make a database, back it up and restore it, run as they are printed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from service.analysis import Site
from service.audit import Who
from service.erasure import Asked, Eraser
from service.promotion import Desk
from service.tables import metadata
from service.tokens import add_token
from tests.conftest import ROOT
from tests.postgresql import Cluster, binaries
from tests.service.packages import write
from tests.service.scans import ALL, ask, scan, take

PAGE = (ROOT / "docs" / "postgresql.md").read_text()
BACKUP, RESTORE = re.findall(r"^```sh\n(.*?)^```", PAGE.partition("\n## Backup and restore\n")[2], re.DOTALL | re.MULTILINE)
CREATE = re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
NAME = "clerk"
"""The page's role and database, called otherwise: the tests' own role may do anything, and that one may not."""


@dataclass
class Place:
    """A database of a role of its own, a state folder, and where backups go."""

    cluster: Cluster
    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def url(self) -> str:
        return self.cluster.url(NAME).replace("overread@", f"{NAME}@")

    def create(self) -> None:
        """Make the database by the page's SQL; the role is there the second time."""
        for statement in CREATE.replace("overread", NAME).strip().split("\n"):
            if statement.startswith("CREATE DATABASE") or not self.cluster.ask(
                f"SELECT 1 FROM pg_roles WHERE rolname = '{NAME}'"
            ):
                self.cluster.ask(statement)

    def drop(self) -> None:
        self.cluster.ask(f"DROP DATABASE IF EXISTS {NAME}")

    def run(self, block: str) -> None:
        """Run a block of the page, but for where backups go."""
        password = self.folder / "database-password"
        password.write_text("choose one\n")
        environment = os.environ | {
            "PATH": f"{binaries()}:{os.environ['PATH']}",
            "OVERREAD_DATABASE_URL": self.url,
            "OVERREAD_DATABASE_PASSWORD_FILE": str(password),
            "OVERREAD_STATE": str(self.state),
        }
        script = "set -euo pipefail\n" + block.replace("/backups", str(self.folder))
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def rows(self) -> dict[str, set[str]]:
        """Return every row of every table."""
        names = (*metadata.tables, "alembic_version")
        return {name: {str(row) for row in self.cluster.ask(f"SELECT * FROM {name}", NAME)} for name in names}

    def files(self) -> dict[str, tuple[int, str]]:
        """Return mode and digest of every file of the state folder."""
        found = (path for path in self.state.rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.state)): (path.stat().st_mode & 0o777, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in found
        }


@pytest.fixture
def place(postgresql: Cluster, tmp_path: Path) -> Any:
    place = Place(postgresql, tmp_path)
    place.drop()
    place.create()
    yield place
    place.drop()


def fill(site: Site, token: str, second: Path) -> None:
    """Store something of nearly every kind."""
    for seed in range(3):
        take(site, scan(seed))
    sha256 = site.predictor(None).sha256
    assert site.loop.leases.take("anna", sha256, [2]) is not None
    label = site.loop.labels.subject(ask(site, "SELECT image_sha256 FROM items WHERE id = 1")[0][0], "tiny")
    assert label is not None
    site.loop.labels.add(label, "anna")
    site.sessions.open(token)
    Desk(site.settings, site.store).try_beside(second, "")
    site.lineup.refresh()
    site.health.advance()


# The control: of a backup without one of its tables, that is seen to be missing
@pytest.mark.parametrize("left_out", ["", "labels"])
def test_the_printed_lines_bring_back_every_row_and_file(
    place: Place, make_site: Callable[..., Site], tmp_path: Path, left_out: str
) -> None:
    token = add_token(place.state / "tokens.json", "otto", "operator")
    site = make_site(database_url=place.url, **ALL)
    fill(site, token, write(tmp_path / "second", "1.1.0"))
    (place.state / "overread.sqlite3").write_text("of before the migration")
    before, files = place.rows(), place.files()
    holding = {name for name, rows in before.items() if rows}
    assert holding >= {"results", "verdicts", "items", "leases", "labels", "kept_images", "promotions", "sessions", "site_health"}
    assert {path.split("/")[0] for path in files} >= {"kept", "packages", "tokens.json", "pseudonym.key"}
    place.run(BACKUP.replace("sessions ", f"sessions --exclude-table-data={left_out} ") if left_out else BACKUP)
    assert {(tmp_path / name).stat().st_mode & 0o077 for name in ("overread.dump", "overread-state.tar")} == {0}

    image = ask(site, "SELECT image_sha256 FROM items WHERE id = 2")[0][0]
    eraser = Eraser(site.store, site.loop.kept)
    eraser.erase(eraser.find(Asked(images=(image,))), Who("otto", "operator"))
    take(site, scan(7))
    assert place.rows() != before
    site.close()
    place.drop()
    place.state.rename(tmp_path / "gone")
    place.create()
    place.run(RESTORE)

    after = place.rows()
    assert {name for name in before if before[name] != after[name]} == {"sessions"} | ({left_out} - {""})
    assert place.files() == {name: kept for name, kept in files.items() if name != "overread.sqlite3"}
    if left_out:
        return
    assert after["sessions"] == set()
    again = make_site(database_url=place.url, **ALL)
    assert again.loop.kept.read(image) is not None
    assert take(again, scan(1)).stored.result["image_sha256"] in str(before["results"])
    take(again, scan(8))  # numbers go on where they were
    assert ask(again, "SELECT id FROM instances ORDER BY id") == [(number,) for number in range(1, 6)]
    for change in ("DELETE FROM audit", "TRUNCATE audit"):
        with pytest.raises(Refusal):
            ask(again, change)
    assert place.rows()["audit"] == before["audit"] != set()
