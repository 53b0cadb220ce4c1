"""What tests of a running server share: raw sockets, DICOM with chosen attributes, the database, the metrics."""

from __future__ import annotations

import re
import socket
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.conftest import require
from tests.e2e.orthancs import Door, Orthanc, Watcher


def dicom(seed: int = 0, side: int = 80, **attributes: Any) -> FileDataset:
    """Draw a chest-like DX image as a data set; ``attributes`` are set, or removed where None."""
    rng = np.random.default_rng(seed)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality, data.BodyPartExamined, data.ViewPosition, data.PatientAge = "DX", "CHEST", "PA", "050Y"
    data.Rows = data.Columns = side
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = rng.integers(0, 4096, (side, side), dtype=np.uint16).tobytes()
    for name, value in attributes.items():
        if value is None:
            del data[name]
        elif isinstance(value, str | bytes):
            tag = Tag(name)
            raw = value.encode() if isinstance(value, str) else value
            raw += b" " * (len(raw) % 2)
            # Written as it stands, whatever the attribute's rules are.
            data[tag] = RawDataElement(tag, dictionary_VR(tag), len(raw), raw, 0, False, True)
        else:
            setattr(data, name, value)
    return data


@pytest.fixture(scope="session")
def draw_dicom() -> Callable[..., bytes]:
    """Return a function that draws a DICOM file: ``draw_dicom(seed, **attributes)``; it need not be valid."""

    def draw(seed: int = 0, side: int = 80, **attributes: Any) -> bytes:
        stream = BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of what is wrong on purpose
            dicom(seed, side, **attributes).save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    return draw


@pytest.fixture(scope="session")
def predict() -> Callable[..., httpx.Response]:
    """Return a function that sends an image: ``predict(server, body, media_type, **options)``."""

    def predict(server: Any, body: bytes, media_type: str = "image/png", **options: Any) -> httpx.Response:
        headers = {"content-type": media_type} | options.pop("headers", {})
        return httpx.post(f"{server.url}/v1/predict", content=body, headers=headers, timeout=60, **options)

    return predict


def query(state: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask a site's database."""
    connection = sqlite3.connect(state / "overread.sqlite3", timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


@pytest.fixture(scope="session")
def ask() -> Callable[[Path, str], list[tuple[Any, ...]]]:
    """Return a function that asks a site's database: ``ask(state, sql)``."""
    return query


@pytest.fixture(scope="session")
def metrics() -> Callable[..., dict[str, float]]:
    """Return a function that reads a server's metrics: ``metrics(server)`` -> series to value."""

    def read(server: Any, **options: Any) -> dict[str, float]:
        response = httpx.get(f"{server.url}/metrics", timeout=30, **options)
        assert response.status_code == 200
        lines = [line.rpartition(" ") for line in response.text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    return read


def exchange(url: str, data: bytes, seconds: float = 60, half_close: bool = True) -> bytes:
    """Send bytes on a connection of their own, and return all that comes back until the server closes it."""
    host, port = re.match(r"http://([^:/]+):(\d+)", url).groups()  # type: ignore[union-attr]
    received = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(65536):
                received += block
        except TimeoutError:
            raise
        except OSError:
            pass  # the server had enough and closed; what it said before counts
    return received


@pytest.fixture(scope="session")
def send_raw() -> Callable[..., bytes]:
    """Return :func:`exchange`: ``send_raw(url, data, seconds)``."""
    return exchange


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A real Orthanc, on the configuration that the documentation prints."""
    for tool in ("Orthanc", "storescu"):
        require(tool)
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"))
    yield orthanc
    orthanc.close()


@pytest.fixture
def empty(orthanc: Orthanc) -> Orthanc:
    """The Orthanc that the tests share, without what the one before left in it."""
    for patient in orthanc.client.get("/patients").json():
        orthanc.client.delete(f"/patients/{patient}")
    return orthanc


@pytest.fixture
def door(orthanc: Orthanc) -> Iterator[Door]:
    """A way to that Orthanc which a test can close."""
    door = Door(orthanc.http)
    yield door
    door.close()


@pytest.fixture
def watch(package: Path, tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    """Return a function that starts a watch on one and the same state: ``watch(url, *arguments, **settings)``."""
    started: list[Watcher] = []

    def start(url: str, *arguments: str, models: Path = package, **settings: str) -> Watcher:
        started.append(Watcher(url, tmp_path / "state", models, tmp_path / "watch.log", *arguments, **settings))
        return started[-1]

    yield start
    for watcher in started:
        watcher.kill()


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    """Return a function that writes instances to files."""

    def write(*contents: bytes) -> list[Path]:
        folder = tmp_path / "sent"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{len(list(folder.iterdir())) + number}.dcm" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return paths

    return write


class Listener:
    """A listener on loopback that counts who connects, and answers nothing."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(60)
                try:
                    self.heard.append(connection.recv(4096))
                except OSError:
                    self.heard.append(b"")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A listener that nobody should ever reach."""
    listener = Listener()
    yield listener
    listener.close()
