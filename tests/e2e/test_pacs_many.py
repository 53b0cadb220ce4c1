"""A real Orthanc with many: results of twenty real sources, and a hundred studies of which most come while it is down.

Rows 14, 16 and 23 of docs/reliability.md.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from models.errors import Refusal
from models.image import Image
from service.dicom_pictures import secondary_capture, segmentation_object
from service.dicom_report import structured_report
from service.dicom_results import dicom_bytes
from service.dicomweb import Archive
from service.places import Place
from service.settings import Settings
from tests.conftest import require
from tests.e2e.orthancs import PASSWORD, SECONDS, USER, Orthanc, complaints, once, reports, until
from tests.e2e.test_pacs import TRACE
from tests.service.archives import chest
from tests.service.dicom_sources import COMMIT, classified, errors, header_of, labels_of, problems, segmented
from tests.service.test_dicom_results_validity import sources

SOURCES, STUDIES, EARLY = 20, 100, 10


@pytest.fixture
def archive(empty: Orthanc, tmp_path: Path) -> Iterator[Archive]:
    """The client that the watch has."""
    (tmp_path / "password").write_text(PASSWORD)
    settings = Settings(pacs_url=f"{empty.url}/dicom-web", pacs_user=USER, pacs_password_file=tmp_path / "password")
    archive = Archive(settings)
    yield archive
    archive.close()


def results(image: Image) -> list[Dataset]:
    header = header_of(image)
    return [
        structured_report(header, segmented(image), COMMIT),
        segmentation_object(header, segmented(image), COMMIT, labels_of(image)),
        secondary_capture(image, classified(image), COMMIT),
    ]


def written_for(folder: Path) -> Iterator[tuple[str, bytes, list[Dataset]]]:
    """Write the objects of every real source that can have some; two files may hold one instance."""
    seen = set()
    for name, data, image in sources(folder):
        uid = str(header_of(image).get("SOPInstanceUID"))
        try:
            objects = results(image)
        except Refusal:
            continue
        if uid not in seen:
            seen.add(uid)
            yield name, data, objects


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of real files that are odd themselves
def test_results_of_real_sources_come_back_from_the_archive(
    empty: Orthanc, archive: Archive, data_root: Path, tmp_path: Path
) -> None:
    for tool in ("dciodvfy", "dcentvfy"):
        require(tool)
    chosen = list(itertools.islice(written_for(data_root / "dicom"), SOURCES))
    assert len(chosen) == SOURCES
    for name, data, objects in chosen:
        assert empty.client.post("/instances", content=data).status_code == 200, name
        archive.store({str(item.SOPInstanceUID): dicom_bytes(item) for item in objects})
    assert len(empty.ours()) == 3 * SOURCES
    file = tmp_path / "source.dcm"
    for name, data, objects in chosen:
        file.write_bytes(data)
        of_source, alone = errors(problems(data, tmp_path)), complaints("dcentvfy", file)
        for item in objects:
            place = Place(
                "", *(str(item[keyword].value) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
            )
            back = archive.retrieve(place)
            assert pydicom.dcmread(io.BytesIO(back)) == pydicom.dcmread(io.BytesIO(dicom_bytes(item))), (name, item.Modality)
            assert errors(problems(back, tmp_path)) <= of_source, (name, item.Modality)
            stored = tmp_path / "stored.dcm"
            stored.write_bytes(back)
            assert complaints("dcentvfy", file, stored) <= alone, (name, item.Modality)


def test_a_broken_result_is_seen(empty: Orthanc, archive: Archive, data_root: Path, tmp_path: Path) -> None:
    """The control."""
    require("dciodvfy")
    _, data, (report, *_) = next(written_for(data_root / "dicom"))
    whole = errors(problems(data, tmp_path))
    report.PatientID, report.CompletionFlag = "another", ""
    archive.store({str(report.SOPInstanceUID): dicom_bytes(report)})
    (ours,) = empty.ours()
    back = empty.client.get(f"/instances/{ours['_id']}/file").content
    assert not errors(problems(back, tmp_path)) <= whole
    for name, content in (("source.dcm", data), ("stored.dcm", back)):
        (tmp_path / name).write_bytes(content)
    assert complaints("dcentvfy", tmp_path / "source.dcm", tmp_path / "stored.dcm") - complaints(
        "dcentvfy", tmp_path / "source.dcm"
    )


def count(orthanc: Orthanc) -> int:
    return int(orthanc.client.get("/statistics").json()["CountInstances"])


def test_a_hundred_studies_are_delivered_though_the_archive_is_down_for_a_while(
    empty: Orthanc, watch: Callable[..., Any], files: Callable[..., list[Path]], ask: Any, tmp_path: Path
) -> None:
    empty.send(*files(*(chest(number) for number in range(1, STUDIES + 1))))
    watcher = watch(empty.url)
    until(lambda: count(empty) >= STUDIES + EARLY)
    empty.kill()
    until(lambda: watcher.log.read_text().count("archive_pause") >= 2)
    (waiting,) = ask(tmp_path / "state", "SELECT count(*) FROM pacs_instances WHERE state = 'waiting'")
    assert waiting[0] > 0, "the control: it was down before all were done"
    empty.start()
    until(lambda: count(empty) >= 2 * STUDIES, 300)
    assert watcher.stop() == 0
    assert reports(empty) == once(range(1, STUDIES + 1))
    assert ask(tmp_path / "state", "SELECT max(attempts) <= 2 FROM pacs_instances") == [(1,)]
    assert watcher.log.read_text().count("archive_pause") < 20
    traced = {row[0]: row[1:] for row in ask(tmp_path / "state", TRACE)}
    ours = [tags for tags in empty.ours() if tags["Modality"] == "SR"]
    assert len(ours) == len(traced) == STUDIES
    for report in ours:  # model, settings and input from its UID alone
        model, name, version, verdict, image, limits = traced[report["SOPInstanceUID"]]
        assert report["DeviceSerialNumber"] == model
        assert f"{name} {version}" in report["SoftwareVersions"]
        assert verdict in {"accept", "review", "refuse"}
        assert len(image) == len(limits) == 64
    listing = watch(empty.url, "--failures")
    assert listing.process.wait(SECONDS) == 0, "none was given up"
