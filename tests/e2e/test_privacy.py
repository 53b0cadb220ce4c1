"""No identity in logs, metrics, errors or temporary files (row 17 of docs/reliability.md)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pydicom
import pytest

UID = "1.2.826.0.1.3680043.9.7777.1234567890"
OTHER_UIDS = "1.2.826.0.1.3680043.9.7778.4242"
MARK = "CANARY"
NUMBER = "77442277"

IDENTITY: dict[str, Any] = {
    "SOPInstanceUID": UID,
    "StudyInstanceUID": OTHER_UIDS + ".1",
    "SeriesInstanceUID": OTHER_UIDS + ".2",
    "FrameOfReferenceUID": OTHER_UIDS + ".3",
    "PatientName": "CANARY^NAME",
    "PatientID": "CANARYID" + NUMBER,
    "AccessionNumber": "CANARYACC",
    "InstitutionName": "CANARY HOSPITAL",
    "StationName": "CANARY STATION",
    "ReferringPhysicianName": "CANARY^DOCTOR",
    "ImageComments": "CANARY comment",
    "PatientBirthDate": "CANARYBD",
    "StudyDescription": "CANARY study",
}
FAULTS: list[dict[str, Any]] = [
    {},
    {"Modality": "CANARYMODALITY"},
    {"BodyPartExamined": "CANARYPART"},
    {"ViewPosition": "CANARYVIEW"},
    {"PatientAge": "CANARYAGE"},
    {"SpecificCharacterSet": "CANARYCHARSET"},
    {"PhotometricInterpretation": "CANARY"},
    {"WindowCenter": "CANARY", "WindowWidth": "CANARY"},
    {"RescaleSlope": "CANARY"},
    {"PixelSpacing": "CANARY\\CANARY"},
    {"NumberOfFrames": "CANARY"},
    {"Rows": None},
    {"BitsStored": 99},
    {"PixelData": b"CANARY"},
    {"Rows": 60_000, "Columns": 60_000},
]


def found(content: bytes, *, uid: bool = True) -> list[str]:
    """Return the canaries in some bytes; the SOP Instance UID counts only if ``uid``."""
    marks = [MARK, NUMBER, OTHER_UIDS] + ([UID] if uid else [])
    forms = [form for mark in marks for form in (mark.encode(), mark.encode("utf-16-le"))]
    return [repr(form) for form in forms if form.lower() in content.lower()]


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


class Watch:
    """Looks into folders again and again, so that a file which is there for a moment only is seen as well."""

    def __init__(self, *folders: Path) -> None:
        self.seen: set[str] = set()
        self._folders = folders
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.is_set():
            for folder in self._folders:
                self.seen |= {str(path) for path in folder.rglob("*")}
            self._stop.wait(0.01)

    def stop(self) -> set[str]:
        self._stop.set()
        self._thread.join()
        return self.seen


def private(data: bytes) -> bytes:
    """Put a private block with canaries into a DICOM file."""
    dataset = pydicom.dcmread(BytesIO(data))
    block = dataset.private_block(0x0009, "CANARY MAKER", create=True)
    block.add_new(0x01, "LO", "CANARY private")
    block.add_new(0x02, "UI", OTHER_UIDS + ".4")
    stream = BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def picture(kind: str) -> bytes:
    stream = BytesIO()
    image = PIL.Image.fromarray(np.random.default_rng(7).integers(0, 255, (90, 90), dtype=np.uint8))
    if kind == "PNG":
        text = PIL.PngImagePlugin.PngInfo()
        text.add_text("Comment", "CANARY text")
        image.save(stream, kind, pnginfo=text)
    else:
        image.save(stream, kind, comment=b"CANARY comment")
    return stream.getvalue()


def form(name: str, file_name: str, body: bytes, media_type: str) -> tuple[bytes, str]:
    head = f'--bb\r\nContent-Disposition: form-data; name="{name}"; filename="{file_name}"\r\nContent-Type: {media_type}\r\n'
    return head.encode() + b"X-CANARY: CANARY\r\n\r\n" + body + b"\r\n--bb--\r\n", "multipart/form-data; boundary=bb"


def send_everything(url: str, draw_dicom: Callable[..., bytes]) -> Iterator[httpx.Response]:
    """Send every canary in every place, well and badly formed."""
    headers = {
        "user-agent": "CANARY",
        "x-request-id": NUMBER,
        "x-patient": "CANARY^NAME",
        "cookie": "CANARY=1",
        "referer": "http://CANARY/",
    }
    client = httpx.Client(base_url=url, headers=headers, timeout=60)
    dicom = {"content-type": "application/dicom"}
    for number, fault in enumerate(FAULTS):
        body = draw_dicom(number, **(IDENTITY | fault))
        yield client.post("/v1/predict", content=body, headers=dicom)
        yield client.post("/v1/predict", content=body[: len(body) // 2], headers=dicom)
    good = private(draw_dicom(50, **{**IDENTITY, "PatientBirthDate": "19700101"}))
    yield client.post("/v1/predict", content=good, headers=dicom)
    yield client.post("/v1/predict", content=good.replace(b"1.2.840.10008.1.2.1\0", b"1.2.CANARY.8.1.2.1\0\0"), headers=dicom)
    for kind, media_type in (("PNG", "image/png"), ("JPEG", "image/jpeg")):
        yield client.post("/v1/predict", content=picture(kind), headers={"content-type": media_type})
        yield client.post("/v1/predict", content=picture(kind)[:-500], headers={"content-type": media_type})
    for name, media_type in (("image", "application/dicom"), ("CANARY", "application/dicom"), ("image", "image/CANARY")):
        body, content_type = form(name, "CANARY-NAME.dcm", good, media_type)
        yield client.post("/v1/predict", content=body, headers={"content-type": content_type})
        yield client.post("/v1/predict", content=body[:-30], headers={"content-type": content_type})
    study = {"content-type": 'multipart/related; type="application/dicom"; boundary=bb'}
    for part in (good, b"CANARY"):
        body = b"--bb\r\nContent-Type: application/dicom\r\nContent-Location: CANARY\r\n\r\n" + part + b"\r\n--bb--\r\n"
        yield client.post("/v1/dicomweb/studies", content=body, headers=study)
        yield client.post("/v1/dicomweb/studies", content=body[:-30], headers=study)
    yield client.post("/v1/dicomweb/studies?StudyInstanceUID=CANARY", content=good, headers=study)
    for path in (
        "/CANARY",
        "/v1/results/CANARY",
        "/v1/models?CANARY=1",
        "/v1/predict?model=CANARY",
        f"/v1/predict?patient={NUMBER}",
    ):
        yield client.get(path)
        yield client.post(path, content=good, headers=dicom)
    yield client.post("/v1/predict", content=b"CANARY", headers={"content-type": "CANARY/CANARY"})
    yield client.get("/v1/models", headers={"authorization": "Bearer CANARY"})
    yield client.get("/v1/models", headers={"origin": "http://CANARY.example"})
    client.close()


@pytest.fixture(scope="module")
def places(start_server: Callable[..., Any], package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A server with a folder for temporary files of its own."""
    temporary = tmp_path_factory.mktemp("temporary")
    names = ("TMPDIR", "TEMP", "TMP")
    return start_server(package, **dict.fromkeys(names, str(temporary))), temporary


def test_no_canary_leaves_the_answer_and_the_database(places: tuple[Any, Path], draw_dicom: Any, send_raw: Any) -> None:
    server, temporary = places
    watch = Watch(temporary, server.state)
    answers = list(send_everything(server.url, draw_dicom))
    send_raw(server.url, b"GET /CANARY CANARY\r\nCANARY\r\n\r\n")
    seen = watch.stop()
    statuses = {answer.status_code for answer in answers}
    assert {200, 400, 401, 403, 404, 405, 415, 422} <= statuses, "each kind of answer must have been met"
    assert not {status for status in statuses if status >= 500}
    for answer in answers:
        assert found(answer.content, uid=answer.status_code != 200) == [], answer.content
    assert any(UID in answer.text for answer in answers), "the SOP Instance UID belongs into the answer"
    assert found(server.log.read_bytes()) == []
    assert found(httpx.get(f"{server.url}/metrics", timeout=60).content) == []
    database = {path for path in files_below(server.state) if path.name.startswith("overread.sqlite3")}
    assert database
    for path in files_below(server.state, temporary):
        assert found(path.read_bytes(), uid=path not in database) == [], path
    for name in seen:
        assert found(name.encode()) == [], name
    assert not [
        name for name in seen if name.startswith(str(temporary)) and Path(name).suffix in {".dcm", ".png", ".jpg", ".tmp"}
    ]


def test_the_checks_see_planted_canaries(tmp_path: Path) -> None:
    assert found(b"read CANARY^NAME")
    assert found("canary".encode("utf-16-le"))
    assert found(UID.encode())
    assert not found(UID.encode(), uid=False)
    assert not found(b"nothing here")
    watch = Watch(tmp_path)
    planted = tmp_path / "CANARY.dcm"
    planted.touch()
    end = time.monotonic() + 60
    while str(planted) not in watch.seen:
        assert time.monotonic() < end
        time.sleep(0.01)
    planted.unlink()
    assert str(planted) in watch.stop()
