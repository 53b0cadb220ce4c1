"""A real Orthanc: what arrives comes back with our results, once, whatever is killed.

Rows 14, 15, 16, 17, 20 and 23 of docs/reliability.md.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from models.example import chest_phantom
from service.dicomweb import Archive
from service.settings import Settings
from tests.conftest import require
from tests.e2e.orthancs import PASSWORD, ROOT, SECONDS, USER, Door, Orthanc, Watcher, complaints, once, reports, until
from tests.models.dicom_files import written
from tests.service.archives import chest
from tests.service.discs import draw_discs

STUDY = int(os.environ.get("OVERREAD_INSTANCES", "40"))
NAMES = {
    "ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "ISO_IR 100": "Buc^Jérôme",
}


def described(number: int, **attributes: Any) -> bytes:
    """A chest X-ray with the attributes that every patient and study has."""
    given = {"PatientBirthDate": "19700101", "PatientSex": "F", "StudyDate": "20260101", "StudyTime": "120000", "StudyID": "1"}
    given |= {
        "AccessionNumber": "CANARYACC",
        "ReferringPhysicianName": "CANARY^DOCTOR",
        "SeriesNumber": 1,
        "InstanceNumber": number,
    }
    given |= {"PatientName": "CANARY^NAME", "PatientID": "CANARYID"}
    return chest(number, **(given | attributes))


def finish(watch: Callable[..., Watcher], url: str, **settings: Any) -> None:
    watcher = watch(url, "--once", **settings)
    assert watcher.process.wait(300) == 0, watcher.log.read_text()[-2000:]


def test_a_study_comes_back_with_our_results_once(
    empty: Orthanc, watch: Any, files: Any, ask: Any, tmp_path: Path, package: Path
) -> None:
    named = [described(number, SpecificCharacterSet=sets, PatientName=name) for number, (sets, name) in enumerate(coded(), 2)]
    for tool in ("dciodvfy", "dcentvfy"):
        require(tool)
    sources = files(chest_phantom(), described(1), *named)
    for _ in range(20):
        empty.send(sources[0])
    empty.send(*sources)
    finish(watch, empty.url, PACS_RESULTS="sr,seg,sc")
    finish(watch, empty.url, PACS_RESULTS="sr,seg,sc")
    ours = empty.ours()
    assert Counter(tags["Modality"] for tags in ours) == {"SR": 5, "OT": 5}
    assert len({tags["SeriesInstanceUID"] for tags in ours}) == 10
    theirs = {tags["StudyInstanceUID"]: tags for tags in empty.instances() if tags["Modality"] == "DX"}
    assert Counter(tags["StudyInstanceUID"] for tags in ours) == dict.fromkeys(theirs, 2)
    for tags in ours:
        for name in ("PatientName", "PatientID", "AccessionNumber"):
            assert tags.get(name, "") == theirs[tags["StudyInstanceUID"]].get(name, "")
    assert {tags["PatientName"] for tags in ours} >= set(NAMES.values())
    for tags in ours:
        stored = tmp_path / f"{tags['_id']}.dcm"
        stored.write_bytes(empty.client.get(f"/instances/{tags['_id']}/file").content)
        if tags["StudyInstanceUID"] == str(pydicom.dcmread(sources[0]).StudyInstanceUID):
            assert complaints("dciodvfy", stored) <= complaints("dciodvfy", sources[0])
            assert complaints("dcentvfy", sources[0], stored) == set()
        trace(stored, ask(tmp_path / "state", TRACE), package)
    check_identity(tmp_path, empty)


def coded() -> list[tuple[Any, str]]:
    """Return character sets as their attribute has them, with a name in each."""
    return [(["", sets] if sets.startswith("ISO 2022") else sets, name) for sets, name in NAMES.items()]


TRACE = (
    "SELECT o.sop_instance_uid, m.sha256, m.name, m.version, v.verdict, r.image_sha256, v.triage_sha256 FROM pacs_objects o "
    "JOIN results r ON r.id = o.result_id JOIN models m ON m.sha256 = r.model_sha256 "
    "JOIN pacs_instances i ON i.id = o.instance_id "
    "JOIN verdicts v ON v.result_id = r.id AND v.sop_instance_uid = i.sop_instance_uid"
)


def trace(stored: Path, rows: list[tuple[str, ...]], package: Path) -> None:
    """Find an object's model, settings and input from its UID alone (row 23)."""
    report = pydicom.dcmread(stored)
    ((_, sha256, name, version, verdict, image, limits),) = [row for row in rows if row[0] == report.SOPInstanceUID]
    assert report.DeviceSerialNumber == sha256
    assert f"{name} {version}" in report.SoftwareVersions
    assert verdict in {"accept", "review", "refuse"}
    assert len(image) == len(limits) == 64


def check_identity(folder: Path, orthanc: Orthanc) -> None:
    """Look for names and UIDs where they do not belong (row 17)."""
    log = (folder / "watch.log").read_text()
    assert "archive_instance" in log, "the control: there is something to look at"
    marks = {"CANARY", "2.25."} | {tags["_id"] for tags in orthanc.instances()}
    assert [mark for mark in marks if mark in log] == []
    others = [path for path in (folder / "state").rglob("*") if path.is_file() and not path.name.startswith("overread.sqlite3")]
    assert [path for path in others if b"CANARY" in path.read_bytes() or "2.25" in path.name] == []


def test_objects_come_back_as_a_segmentation(
    empty: Orthanc, watch: Any, make_segmenter: Callable[..., Path], tmp_path: Path
) -> None:
    """Sent by STOW-RS, with the client that the watch has."""
    discs = np.asarray(draw_discs())
    source = pydicom.dcmread(io.BytesIO(described(1, Modality="SM", WindowCenter=128, WindowWidth=256)))
    source.Rows, source.Columns = discs.shape[:2]
    source.SamplesPerPixel, source.PhotometricInterpretation, source.PlanarConfiguration = 3, "RGB", 0
    source.BitsAllocated, source.BitsStored, source.HighBit = 8, 8, 7
    source.PixelData = discs.tobytes()
    source["PixelData"].VR = "OB"
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    settings = Settings(pacs_url=f"{empty.url}/dicom-web", pacs_user=USER, pacs_password_file=password)
    archive = Archive(settings)
    archive.store({str(source.SOPInstanceUID): written(source)})
    archive.close()
    finish(watch, empty.url, models=make_segmenter("nuclei"), PACS_RESULTS="sr,seg,sc")
    assert Counter(tags["Modality"] for tags in empty.ours()) == {"SR": 1, "SEG": 1, "OT": 1}
    (mask,) = [tags for tags in empty.ours() if tags["Modality"] == "SEG"]
    stored = pydicom.dcmread(io.BytesIO(empty.client.get(f"/instances/{mask['_id']}/file").content))
    assert stored.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert 0 < np.count_nonzero(stored.pixel_array) < discs.shape[0] * discs.shape[1]


def test_the_archive_is_killed_within_its_stable_age(empty: Orthanc, watch: Any, files: Any) -> None:
    watcher = watch(empty.url)
    empty.send(*files(*(described(number) for number in range(1, 4))))
    until(lambda: sum(reports(empty).values()) >= 1)
    empty.kill()
    empty.start()
    empty.send(*files(*(described(number) for number in range(4, 7))))
    until(lambda: reports(empty) == once(range(1, 7)))
    assert watcher.stop() == 0
    finish(watch, empty.url)
    assert reports(empty) == once(range(1, 7))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_watch_is_killed_while_it_stores(
    empty: Orthanc, door: Door, watch: Any, files: Any, ask: Any, tmp_path: Path, moment: str
) -> None:
    killed: list[Watcher] = []

    def kill(method: str, _: str) -> None:
        if method == "POST" and not killed:
            killed.append(watcher)
            watcher.process.kill()
            watcher.process.wait(30)
            if moment == "before":
                raise ConnectionAbortedError  # what was sent must not arrive all the same

    setattr(door, moment, kill)
    empty.send(*files(*(described(number) for number in range(1, 4))))
    watcher = watch(door.url)
    until(lambda: bool(killed) and killed[0].process.poll() is not None)
    (predicted,) = ask(tmp_path / "state", "SELECT count(*) FROM results")[0]
    assert predicted >= 1, "it was predicted and committed"
    assert ask(tmp_path / "state", "SELECT count(*) FROM pacs_objects") == [(0,)], "and not noted as stored"
    assert sum(reports(empty).values()) == (0 if moment == "before" else 1)
    finish(watch, door.url)
    assert reports(empty) == once(range(1, 4))


def test_the_archive_is_away_for_a_while(empty: Orthanc, door: Door, watch: Any, files: Any, ask: Any, tmp_path: Path) -> None:
    """A large study, in the middle of which the archive goes and comes back."""
    one_study = {"StudyInstanceUID": "2.25.999", "SeriesInstanceUID": "2.25.998"}
    empty.send(*files(*(described(number, **one_study) for number in range(1, STUDY + 1))))
    stored = itertools.count(1)

    def leave(method: str, _: str) -> None:
        """Go away right after a quarter of the reports, however quick the others would follow."""
        door.open = door.open and not (method == "POST" and next(stored) >= STUDY // 4)

    door.after = leave
    watcher = watch(door.url)
    until(lambda: not door.open)
    until(lambda: "archive_pause" in watcher.log.read_text())
    assert 0 < reports(empty)["2.25.999"] < STUDY
    assert ask(tmp_path / "state", "SELECT count(*) FROM pacs_instances WHERE state = 'failed'") == [(0,)]
    door.after, door.open = lambda method, path: None, True
    until(lambda: reports(empty)["2.25.999"] == STUDY, 300)
    assert watcher.stop() == 0
    finish(watch, door.url)
    found = [tags for tags in empty.ours() if tags["Modality"] == "SR"]
    assert len(found) == len({tags["SOPInstanceUID"] for tags in found}) == STUDY
    attempts = ask(tmp_path / "state", "SELECT max(attempts) FROM pacs_instances")[0][0]
    assert attempts <= 2


def test_an_archive_that_redirects_leads_nowhere(empty: Orthanc, door: Door, watch: Any, files: Any, listener: Any) -> None:
    empty.send(*files(described(1)))
    door.redirect = listener.url
    watcher = watch(door.url)
    until(lambda: "archive_pause" in watcher.log.read_text())
    assert listener.heard == []
    door.redirect = ""
    until(lambda: reports(empty) == once(range(1, 2)))


def test_what_cannot_be_analysed_is_listed_and_replayed(empty: Orthanc, watch: Any, files: Any, tmp_path: Path) -> None:
    odd = [
        described(1, PixelData=b"12"),
        described(2, NumberOfFrames=2, PixelData=b"\0" * (4 * 64 * 80)),
        described(3, PixelSpacing=[0, 0]),
        described(4, Modality="CT"),
    ]
    empty.send(*files(*odd))
    watcher = watch(empty.url, "--once")
    assert watcher.process.wait(300) == 1, "a failure is seen in the exit code"
    assert reports(empty) == once(range(3, 4))
    listing = watch(empty.url, "--failures")
    assert listing.process.wait(SECONDS) == 1
    assert "inconsistent_image" in listing.log.read_text()
    assert watch(empty.url, "--replay").process.wait(SECONDS) == 0
    assert "1 will be tried again" in listing.log.read_text()
    assert "2.25." not in listing.log.read_text()


def test_the_printed_configuration_is_the_one_that_was_tested() -> None:
    text = (ROOT / "docs" / "pacs.md").read_text()
    printed = text.partition("```json\n")[2].partition("```")[0]
    assert printed == (ROOT / "deploy" / "orthanc.json").read_text()


def test_the_verifier_sees_a_broken_object(tmp_path: Path) -> None:
    """The control of the first test."""
    require("dciodvfy")
    broken = pydicom.dcmread(io.BytesIO(chest_phantom()))
    del broken.PatientID
    broken.save_as(tmp_path / "broken.dcm")
    assert complaints("dciodvfy", tmp_path / "broken.dcm")
