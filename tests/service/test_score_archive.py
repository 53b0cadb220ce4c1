"""What an archive is said to hold, and its bytes: folders, discs, DICOMweb; and what a lost mount is told from."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from models.batch import MAX_FILE_BYTES
from models.errors import Refusal
from service import score_archive
from service.score_archive import Folder, Web, open_source
from service.settings import Settings
from tests.service.archives import chest
from tests.service.peers import Peer

SETTINGS = Settings()
DISC = Path(str(get_testdata_file("DICOMDIR"))).parent


def code(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    assert "Müller" not in str(caught.value), "a name is told"
    return caught.value.code


@pytest.fixture
def folder(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    root = tmp_path / "Müller"
    (root / "b").mkdir(parents=True)
    for name in ("b/2.png", "a.PNG", "1.2.840.113619.2", "noending", "b/x.dcm"):
        (root / name).write_bytes(draw(len(name)))
    for name in ("notes.txt", ".hidden.png", "DICOMDIR", "dicomdir"):
        (root / name).write_bytes(b"none")
    os.mkfifo(root / "pipe.png")  # to open it would wait for ever
    return root


def test_a_folder_is_listed_in_one_order_and_read(folder: Path) -> None:
    source = open_source(str(folder), SETTINGS)
    assert source.names() == [b"1.2.840.113619.2", b"a.PNG", b"b/2.png", b"b/x.dcm", b"noending"]
    content = source.read(b"b/2.png")
    assert content.data == (folder / "b" / "2.png").read_bytes()
    assert content.sha256 == hashlib.sha256(content.data).hexdigest()
    assert "Müller" in source.key


def test_names_that_are_no_text_are_read_by_their_bytes(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"bytes")
    source = Folder(folder)
    assert b"\xff.png" in source.names()
    assert source.read(b"\xff.png").data == b"bytes"


def test_a_file_too_large_has_a_digest_alone(folder: Path) -> None:
    with (folder / "huge.dcm").open("wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    content = Folder(folder).read(b"huge.dcm")
    assert content.data is None
    assert len(content.sha256) == 64


def test_a_lost_file_is_told_from_a_lost_folder(folder: Path) -> None:
    source = Folder(folder)
    (folder / "a.PNG").unlink()
    assert code(lambda: source.read(b"a.PNG")) == "not_decodable"
    shutil.rmtree(folder / "b")
    assert code(lambda: source.read(b"b/2.png")) == "folder_unavailable"
    (folder / "b").mkdir()  # as an unmounted folder below the archive's
    assert code(lambda: source.read(b"b/2.png")) == "folder_unavailable"
    for path in folder.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    assert code(lambda: source.read(b"noending")) == "folder_unavailable"
    assert code(source.names) == "data_invalid"
    folder.rmdir()
    assert code(lambda: source.read(b"noending")) == "folder_unavailable"
    assert code(source.names) == "folder_unavailable"
    assert code(lambda: open_source(str(folder), SETTINGS)) == "data_invalid"


@pytest.mark.parametrize("name", ["ESTALE", "ENOTCONN"])
def test_a_dead_mount_is_no_bad_file(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(getattr(errno, name), "dead")

    monkeypatch.setattr(Path, "open", fail)
    assert code(lambda: Folder(folder).read(b"a.PNG")) == "folder_unavailable"


def test_a_disc_is_listed_by_its_dicomdir() -> None:
    """This disc lists what lies in the folders of its three patients, and nothing else of what is beside it."""
    source = open_source(str(DISC / "DICOMDIR"), SETTINGS)
    patients = [path for path in DISC.iterdir() if path.is_dir() and path.name.isdecimal()]
    files = [path for patient in patients for path in patient.rglob("*") if path.is_file()]
    assert source.names() == sorted(path.relative_to(DISC).as_posix().encode() for path in files)
    assert (len(patients), len(files)) == (3, 31)
    assert source.read(source.names()[0]).data == (DISC / source.names()[0].decode()).read_bytes()
    assert b"DICOMDIR" not in Folder(DISC).names()


def test_a_disc_shown_in_small_letters_and_one_that_lacks_files(tmp_path: Path) -> None:
    index = pydicom.dcmread(DISC / "DICOMDIR")
    images = [record for record in index.DirectoryRecordSequence if record.DirectoryRecordType == "IMAGE"]
    images[0].ReferencedFileID = ["IMAGES", "ONE"]
    images[1].RecordInUseFlag = 0
    index.save_as(tmp_path / "dicomdir")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one").write_bytes(b"1")
    source = open_source(str(tmp_path / "dicomdir"), SETTINGS)
    names = source.names()
    assert b"images/one" in names
    assert len(names) == 30
    assert source.read(b"images/one").data == b"1"
    lost = next(name for name in names if name != b"images/one")
    assert code(lambda: source.read(lost)) == "not_decodable"


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("parts", [["..", "X"], ["A/B"], [""], "..", ["", "ETC"]])
def test_a_disc_leads_nowhere_else(tmp_path: Path, parts: Any) -> None:
    index = pydicom.dcmread(DISC / "DICOMDIR")
    image = next(record for record in index.DirectoryRecordSequence if record.DirectoryRecordType == "IMAGE")
    image.ReferencedFileID = parts
    index.save_as(tmp_path / "DICOMDIR")
    assert code(open_source(str(tmp_path / "DICOMDIR"), SETTINGS).names) == "data_invalid"


def test_what_is_no_disc(tmp_path: Path, draw: Callable[..., bytes]) -> None:
    for content in (draw(1), chest(1), b""):
        (tmp_path / "file").write_bytes(content)
        assert code(open_source(str(tmp_path / "file"), SETTINGS).names) in {"data_invalid", "not_decodable"}


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    monkeypatch.setattr(score_archive, "PAUSES", (0.0, 0.0))
    peer = Peer()
    yield peer
    peer.close()


def instance(number: int) -> dict[str, Any]:
    uids = {"0020000D": f"1.1.{number}", "0020000E": f"1.2.{number}", "00080018": f"1.3.{number}"}
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}


def test_an_address_is_listed_page_by_page_and_read(peer: Peer) -> None:
    peer.json("/web/instances?limit=200&offset=0", [instance(2), instance(1)])
    peer.json("/web/instances?limit=200&offset=2", [instance(2)])
    peer.json("/web/instances?limit=200&offset=3", [])
    path = "/studies/1.1.1/series/1.2.1/instances/1.3.1"
    peer.answers[f"/web{path}"] = (200, "application/dicom", b"bytes")
    source = open_source(f"{peer.url}/web", SETTINGS)
    names = source.names()
    assert names == [path[1:].encode(), b"studies/1.1.2/series/1.2.2/instances/1.3.2"]
    travelled = pickle.loads(pickle.dumps(source))
    assert travelled.read(names[0]).data == b"bytes"
    assert code(lambda: travelled.read(names[1])) == "not_found"
    peer.answers[f"/web{path}"] = (500, "text/plain", b"")
    assert code(lambda: source.read(names[0])) == "archive_refused"


def test_an_address_that_is_away_is_asked_again_and_then_told(peer: Peer) -> None:
    peer.answers["/web/instances?limit=200&offset=0"] = (503, "text/plain", b"")
    source = open_source(f"{peer.url}/web", SETTINGS)
    assert code(source.names) == "archive_unavailable"
    assert len(peer.asked) == 3


def held(peer: Peer, *numbers: int) -> Any:
    """Return the source of an archive that has instances of these numbers, and their names."""
    peer.json("/web/instances?limit=200&offset=0", [instance(number) for number in numbers])
    peer.json(f"/web/instances?limit=200&offset={len(numbers)}", [])
    peer.json(PROBE, [instance(numbers[0])])
    source = open_source(f"{peer.url}/web", SETTINGS)
    for name in source.names():
        peer.answers[f"/web/{name.decode()}"] = (200, "application/dicom", name)
    peer.asked.clear()
    return source


PROBE = "/web/studies?limit=1"


@pytest.mark.parametrize("status", [403, 503, 302])
@pytest.mark.parametrize("first", [0, 1])
def test_one_instance_that_is_never_given_is_told_from_an_archive_that_is_away(peer: Peer, status: int, first: int) -> None:
    """A row that says so, and the run goes on; whether it is the first that the process asks for or a later one."""
    source = held(peer, 1, 2, 3)
    names = source.names()
    bad = names.pop(first)
    peer.answers[f"/web/{bad.decode()}"] = (status, "text/plain", b"")
    for name in names[:first]:
        assert source.read(name).data == name
    assert code(lambda: source.read(bad)) == "archive_refused"
    assert [source.read(name).data for name in names] == names
    assert len([path for _, path, *_ in peer.asked if bad.decode() in path]) == 2, "tried twice, not without end"


def test_an_archive_that_gives_nothing_any_more_is_away_though_it_answers(peer: Peer) -> None:
    """Rows that say so of each instance would be there to stay."""
    source = held(peer, 1, 2, 3)
    names = source.names()
    source.read(names[0])
    for name in names:
        peer.answers[f"/web/{name.decode()}"] = (503, "text/plain", b"")
    assert code(lambda: source.read(names[1])) == "archive_unavailable"
    peer.answers[f"/web/{names[1].decode()}"] = (200, "application/dicom", b"back")
    assert source.read(names[1]).data == b"back"


def test_an_archive_that_lets_nobody_in_is_away(peer: Peer) -> None:
    source = held(peer, 1, 2)
    for path in list(peer.answers):
        peer.answers[path] = (401, "text/plain", b"")
    assert code(lambda: source.read(b"studies/1.1.1/series/1.2.1/instances/1.3.1")) == "archive_unavailable"


def test_an_archive_that_is_back_after_a_while_has_given_it(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = held(peer, 1, 2)
    name = source.names()[0]
    path = f"/web/{name.decode()}"
    peer.asked.clear()
    fine = dict(peer.answers)
    peer.answers = {path: (503, "text/plain", b""), PROBE: (503, "text/plain", b"")}

    def wait(_: float) -> None:  # the archive itself calls it before each answer
        if len(peer.asked) == 3:
            peer.answers = fine

    monkeypatch.setattr(score_archive.time, "sleep", wait)
    assert source.read(name).data == name
    assert [asked == path for _, asked, *_ in peer.asked] == [True, False, False, True]


def test_an_archive_that_ignores_offset_is_not_listed_for_ever(peer: Peer) -> None:
    for offset in (0, 2, 4, 6):
        peer.json(f"/web/instances?limit=200&offset={offset}", [instance(1), instance(2)])
    with pytest.raises(Refusal, match="offset") as caught:
        open_source(f"{peer.url}/web", SETTINGS).names()
    assert caught.value.code == "archive_refused"
    assert len(peer.asked) == 3


def test_no_redirect_is_followed_and_no_other_host_is_asked(peer: Peer) -> None:
    peer.answers["/web/instances?limit=200&offset=0"] = (302, "text/plain", b"")
    peer.location = f"{peer.url}/elsewhere"
    assert code(open_source(f"{peer.url}/web", SETTINGS).names) == "archive_unavailable"
    assert {path for _, path, *_ in peer.asked} == {"/web/instances?limit=200&offset=0"}
    assert code(lambda: open_source("https://archive.example/web", SETTINGS)) == "config_invalid"


def test_modalities_of_the_settings_are_asked_for(peer: Peer) -> None:
    for modality, number in (("CR", 1), ("DX", 2)):
        peer.json(f"/web/instances?Modality={modality}&limit=200&offset=0", [instance(number)])
        peer.json(f"/web/instances?Modality={modality}&limit=200&offset=1", [])
    source = open_source(f"{peer.url}/web", Settings(pacs_modalities=("CR", "DX")))
    assert isinstance(source, Web)
    assert len(source.names()) == 2
    assert source.key != open_source(f"{peer.url}/web", SETTINGS).key
