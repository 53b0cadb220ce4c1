"""All that there is of a patient goes, to the last byte; all else stays."""

from __future__ import annotations

import io
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models.errors import Refusal
from service import erase, erasure
from service.comparisons import Comparisons, Pair
from service.erasure import Asked, Eraser
from service.tables import metadata
from service.upkeep import Upkeep
from tests.service.archives import MemoryArchive, chest
from tests.service.scans import ALL, NONE, ask, scan, take

pytestmark = pytest.mark.dialects

UID = "1.2.826.0.1.3680043.424242.777"
PATIENT = "CANARY-PATIENT-77"


@pytest.fixture
def run(
    tmp_path: Path, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs the command: ``run(patients=text, uids=text, images=[], code=0)`` -> what it printed."""

    def run(patients: str = "", uids: str = "", images: tuple[str, ...] = (), code: int = 0, dry: bool = False) -> str:
        arguments = [part for digest in images for part in ("--image", digest)] + (["--dry-run"] if dry else [])
        if patients:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(patients.encode())))
            arguments += ["--patient-id-file", "-"]
        if uids:
            (tmp_path / "uids.txt").write_text(uids)
            arguments += ["--uid-file", str(tmp_path / "uids.txt")]
        assert erase.main(arguments) == code
        return capsys.readouterr().out

    return run


def dump(site: Any, without: tuple[str, ...] = ("audit",)) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table."""
    return {name: ask(site, f"SELECT * FROM {name}") for name in metadata.tables if name not in without}


def holding(site: Any, *needles: str) -> list[str]:
    """Return the tables in which any of these texts stands."""
    return [name for name, rows in dump(site).items() if any(needle in repr(rows) for needle in needles)]


def holders(state: Path, *needles: str) -> list[str]:
    """Return the files that hold any of these bytes."""
    files = [path for path in state.rglob("*") if path.is_file()]
    return [path.name for path in files if any(needle.encode() in path.read_bytes() for needle in needles)]


def test_all_of_a_patient_goes_and_nothing_else(open_desk: Any, run: Any, file: Path) -> None:
    desk = open_desk()
    mine = [desk.item(body=scan(n, PATIENT, SOPInstanceUID=f"{UID}.{n}")) for n in (1, 2, 3)]
    other = desk.item(body=scan(9, "B"))
    desk.label("anna", mine[0], "pneumonia")
    desk.label("anna", other, "pneumonia")
    held = desk.ask("ben", "POST", "/v1/worklist/lease", json={"item_id": mine[1]["item_id"]}).json()["lease_id"]
    desk.ask("ben", "POST", f"/v1/worklist/lease/{held}/skip", json={"reason": "unsure"})
    desk.ask("carla", "POST", "/v1/worklist/lease", json={"item_id": mine[2]["item_id"]})
    traces = [UID, *(item[name] for item in mine for name in ("image_sha256", "result_id"))]
    state = desk.site.settings.state
    assert set(holding(desk.site, *traces)) == {
        *("results", "instances", "verdicts", "kept_images", "items", "labels"),
    }
    assert set(holders(state, UID)) & {"overread.sqlite3", "overread.sqlite3-wal"}
    kept_before = {path.stem for path in (state / "kept").rglob("*.png")}
    others = {name: [row for row in rows if other["image_sha256"] in repr(row)] for name, rows in dump(desk.site).items()}
    assert run(PATIENT, dry=True) == "would remove 3 images\n"
    assert len(holding(desk.site, UID)) == 2
    shown = run(f"{PATIENT}\nnobody\n")
    assert shown.startswith("removed 3 images, 3 results, 1 labels\n")
    assert PATIENT not in shown
    assert UID not in shown
    assert holding(desk.site, *traces) == []
    assert holders(state, UID, PATIENT) == []
    assert kept_before - {path.stem for path in (state / "kept").rglob("*.png")} == {item["image_sha256"] for item in mine}
    assert {name: [row for row in rows if other["image_sha256"] in repr(row)] for name, rows in dump(desk.site).items()} == others
    assert [ask(desk.site, f"SELECT count(*) FROM {name}") for name in ("leases", "skips")] == [[(0,)], [(0,)]]
    rows = ask(desk.site, "SELECT action, subject, number FROM audit WHERE role = 'command' ORDER BY id")
    assert {row[0] for row in rows[:2]} == {"erasure_asked"}
    assert {row[1] for row in rows[2:]} == {item["image_sha256"] for item in mine}
    assert rows[2][0] == "image_erased"
    assert desk.item(body=scan(1, PATIENT, SOPInstanceUID=f"{UID}.1"))["image_sha256"] == mine[0]["image_sha256"]


def test_deleting_alone_would_leave_the_bytes(make_site: Any, file: Path) -> None:
    """The control of the test above: SQLite keeps what was deleted, unless it is told not to."""
    site = make_site(**NONE)
    for number in range(20):
        take(site, scan(number, PATIENT, SOPInstanceUID=f"{UID}.{number}"))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM instances")
        connection.execute("DELETE FROM verdicts")
        connection.commit()
    assert holding(site, UID) == []
    assert holders(site.settings.state, UID)
    assert Eraser(site.store, site.loop.kept).scrub()
    assert holders(site.settings.state, UID) == []


def test_a_number_of_two_issuers_needs_its_issuer(make_site: Any, run: Any) -> None:
    site = make_site(**NONE)
    replies = {issuer: take(site, scan(n, "P1", IssuerOfPatientID=issuer)) for n, issuer in enumerate(("east", "west"))}
    with pytest.raises(Refusal, match="Several issuers"):
        run("P1\n")
    assert len(ask(site, "SELECT 1 FROM results")) == 2
    run("P1\teast\n")
    assert ask(site, "SELECT id FROM results") == [(replies["west"].stored.result["id"],)]
    run("P1\n")  # now there is one
    assert ask(site, "SELECT id FROM results") == []


def test_what_has_no_patient_is_found_by_its_uid_or_digest(make_site: Any, run: Any, draw: Any) -> None:
    site = make_site(**ALL)
    take(site, scan(1, "", SOPInstanceUID=UID))
    digest = take(site, draw(2), "image/png").stored.result["image_sha256"]
    take(site, scan(3, "B", SOPInstanceUID=f"{UID}.3"))
    assert "have no patient noted" in run("nobody\n")
    run(uids=f"{UID}\r\n", images=(digest,))
    assert len(ask(site, "SELECT 1 FROM results")) == 1
    assert holding(site, digest) == []
    assert ask(site, "SELECT sop_instance_uid FROM instances") == [(f"{UID}.3",)]


def test_an_image_that_two_patients_have_stays_with_the_other(make_site: Any, run: Any) -> None:
    site = make_site(**ALL)
    same = [take(site, scan(1, patient, SOPInstanceUID=f"{UID}.{patient[1]}")) for patient in ("P1", "P2")]
    assert len({reply.stored.result["id"] for reply in same}) == 1
    assert "1 images stay" in run("P1\n")
    assert ask(site, "SELECT sop_instance_uid FROM verdicts") == ask(site, "SELECT sop_instance_uid FROM instances")
    assert ask(site, "SELECT sop_instance_uid FROM verdicts") == [(f"{UID}.2",)]
    theirs = ask(site, "SELECT patient FROM instances")
    assert ask(site, "SELECT patient FROM items") == theirs
    assert site.loop.kept.holds(same[0].stored.result["image_sha256"])
    run("P2\n")
    assert holding(site, UID, theirs[0][0]) == []
    assert not site.loop.kept.holds(same[0].stored.result["image_sha256"])


def test_the_patient_is_the_one_last_stated(make_site: Any, run: Any) -> None:
    """Archives merge and correct patients; the instance then comes again under the other number."""
    site = make_site(**ALL)
    for patient in ("wrong", "right"):
        take(site, scan(1, patient, SOPInstanceUID=UID))
    assert len(ask(site, "SELECT 1 FROM verdicts")) == 1
    run("right\n")
    assert ask(site, "SELECT 1 FROM results") == []


def test_what_the_watch_knows_goes_too(start: Any, make_site: Any, archive: MemoryArchive, run: Any) -> None:
    watch = start()
    for number in (1, 2):
        archive.arrive(chest(number, PatientID=f"P{number}"))
    watch.run(threading.Event(), once=True)
    site = make_site()
    assert len(ask(site, "SELECT 1 FROM pacs_objects")) == 2
    assert "1 objects of ours were stored in the archive" in run("P1\n")
    assert holding(site, "'2.25.1'", "'2.25.11'") == []
    assert len(ask(site, "SELECT 1 FROM pacs_objects")) == 1
    assert len(ask(site, "SELECT 1 FROM pacs_instances WHERE state = 'done'")) == 1
    watch.run(threading.Event(), once=True)
    assert len(ask(site, "SELECT 1 FROM results")) == 1, "what was erased is not fetched again by itself"


def test_killed_in_between_the_rest_is_found_again(make_site: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(**ALL)
    for number in range(4):
        take(site, scan(number, PATIENT))
    monkeypatch.setattr(erasure, "BATCH", 1)
    eraser = Eraser(site.store, site.loop.kept)
    found = eraser.find(Asked(((site.loop.pseudonyms.of_number(PATIENT, ""), False),)))
    removed: list[str] = []

    def die(image_sha256: str) -> None:
        if len(removed) == 2:
            raise KeyboardInterrupt
        removed.append(image_sha256)

    with monkeypatch.context() as patch:
        patch.setattr(site.loop.kept, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            eraser.erase(found, erasure.SERVICE)
    assert len(ask(site, "SELECT 1 FROM results")) == 2
    noted = ask(site, "SELECT subject FROM audit WHERE action = 'image_erased'")
    assert [subject for (subject,) in noted] == removed
    assert run(PATIENT).startswith("removed 2 images")
    assert ask(site, "SELECT 1 FROM results") == []
    assert run(images=tuple(removed)).startswith("removed 0 images")
    noted = ask(site, "SELECT subject FROM audit WHERE action = 'image_erased'")
    assert len(noted) == len(set(noted)) == 4, "what was erased before is not noted again"


def test_scans_that_take_the_numbers_of_erased_ones_are_counted(make_site: Any, run: Any) -> None:
    site = make_site(**NONE)
    for number in range(4):
        take(site, scan(number, PATIENT if number > 1 else "B"))
    assert site.health.advance() == 4
    newest = ask(site, "SELECT max(id) FROM verdicts")
    run(PATIENT)
    take(site, scan(8, "C"))
    if site.store.dialect == "sqlite":
        assert ask(site, "SELECT max(id) FROM verdicts") < newest, "a number is given again"
    assert site.health.advance() == 1
    (row,) = site.health.rows()
    assert row.drift.seen == 5


def test_an_item_that_is_scored_again_meanwhile_does_not_come_back(
    make_site: Any, make_package: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = take(make_site(**ALL), scan(1, PATIENT, SOPInstanceUID=UID)).stored.result["id"]
    site = make_site(**ALL, models=(make_package("tiny", poison=1.7),))
    record = site.store.record

    def late(*given: Any) -> Any:
        run(PATIENT)
        return record(*given)

    monkeypatch.setattr(site.store, "record", late)
    assert Upkeep(site).score_again() == 1
    assert holding(site, UID, key) == []
    assert ask(site, "SELECT 1 FROM results") == []


def test_a_candidate_does_not_bring_an_image_back(make_site: Any, run: Any) -> None:
    site = make_site(**NONE)
    row = take(site, scan(1, PATIENT)).stored.result
    theirs, pair = row | {"id": "c" * 64}, Pair("accept", "accept", same_findings=True)
    run(PATIENT)
    assert not Comparisons(site.store).add("tiny", row["id"], theirs, pair)
    assert ask(site, "SELECT 1 FROM results") == []


def test_copies_that_left_are_named(open_desk: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.label_commands import export_main

    desk = open_desk(readers=1)
    item = desk.item(body=scan(1, PATIENT))
    desk.label("anna", item, "pneumonia")
    monkeypatch.setenv("OVERREAD_MODELS", str(desk.site.settings.models[0]))
    assert "exported" not in run(PATIENT, dry=True)
    assert export_main(["--out", str(tmp_path / "labels")]) == 0
    assert "Copies left with labels or tasks that were exported" in run(PATIENT)


@pytest.mark.parametrize("text", ["\n\n", "\teast\n", "  ", "A\0\n\0"])
def test_a_file_without_a_patient_is_refused(make_site: Any, run: Any, text: str) -> None:
    make_site(**NONE)
    with pytest.raises(Refusal, match="data_invalid"):
        run(text)


@pytest.mark.usefixtures("run")
def test_an_identifier_is_never_an_argument(tmp_path: Path, make_site: Any) -> None:
    make_site(**NONE)
    for arguments in ([], [PATIENT], ["--patient-id", PATIENT], ["--patient-id-file", "-", "--uid-file", "-"]):
        with pytest.raises(SystemExit):
            erase.main(arguments)
    with pytest.raises(Refusal, match="config_invalid"):
        erase.main(["--image", UID])
    with pytest.raises(Refusal, match="data_invalid") as caught:
        erase.main(["--patient-id-file", str(tmp_path / PATIENT)])
    assert PATIENT not in str(caught.value)


def _age(site: Any, days: float) -> None:
    """Make what was stored ``days`` days older."""
    verdicts = metadata.tables["verdicts"]
    with site.store.writing() as connection:
        for number, created in connection.execute(sa.select(verdicts.c.id, verdicts.c.created_at)).all():
            older = created - timedelta(days=days)
            connection.execute(sa.update(verdicts).where(verdicts.c.id == number).values(created_at=older))


def test_results_go_when_they_are_too_old(make_site: Any) -> None:
    site = make_site(**ALL, result_days=60, keep_days=30)
    old, wanted = (take(site, scan(n)).stored.result for n in (1, 2))
    ask(site, "UPDATE items SET state = 'done' WHERE image_sha256 = ?", old["image_sha256"])
    upkeep = Upkeep(site)
    _age(site, 59)
    upkeep.sweep()
    assert len(ask(site, "SELECT 1 FROM results")) == 2
    _age(site, 2)
    new = take(site, scan(3)).stored.result
    ask(site, "UPDATE items SET state = 'done' WHERE image_sha256 = ?", new["image_sha256"])
    upkeep._sweep_at = 0.0
    upkeep.sweep()
    assert {row[0] for row in ask(site, "SELECT id FROM results")} == {wanted["id"], new["id"]}, "an open item is still wanted"
    assert holding(site, old["image_sha256"]) == []
    assert not site.loop.kept.holds(old["image_sha256"])
    assert ask(site, "SELECT actor, role, number FROM audit WHERE action = 'results_expired'") == [("overread", "service", 1)]


def test_without_the_setting_results_stay(make_site: Any) -> None:
    site = make_site(**NONE)
    take(site, scan(1))
    _age(site, 10_000)
    Upkeep(site).sweep()
    assert len(ask(site, "SELECT 1 FROM results")) == 1
