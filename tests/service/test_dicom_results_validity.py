"""Objects about real files of many vendors, checked by dicom3tools: no error beyond the source's own, no unknown warning."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from service.dicom_pictures import secondary_capture, segmentation_object
from service.dicom_report import structured_report
from service.dicom_results import dicom_bytes
from tests.conftest import ROOT, require
from tests.service.dicom_sources import (
    COMMIT,
    all_objects,
    classified,
    errors,
    header_of,
    labels_of,
    problems,
    segmented,
    source_bytes,
)

KINDS = ("SOPClassUID", "Manufacturer", "PhotometricInterpretation", "FrameOfReferenceUID", "PatientName", "Laterality")


def sources(folder: Path) -> Iterator[tuple[str, bytes, Image]]:
    """Read the real files that can be read, one of each kind."""
    seen = set()
    with (folder / "manifest.csv").open() as manifest:
        for row in csv.DictReader(manifest):
            data = (folder / row["image"]).read_bytes()
            try:
                image = read_image(data)
            except Refusal:
                continue
            kind = tuple(str(header_of(image).get(keyword)) for keyword in KINDS)
            if kind not in seen:
                seen.add(kind)
                yield row["image"], data, image


def known_warnings() -> list[str]:
    """Read the list in the document: what each warning must contain."""
    text = (ROOT / "docs" / "dicom-results.md").read_text()
    found = re.findall(r"^- `([^`]+)`", text.partition("## Warnings of the validator")[2].partition("\n## ")[0], re.MULTILINE)
    assert found
    return found


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of real files that are odd themselves
def test_real_sources(data_root: Path, tmp_path: Path) -> None:
    require("dciodvfy")
    known, used, read, refused = known_warnings(), set(), 0, set()
    for name, data, image in sources(data_root / "dicom"):
        header = header_of(image)
        try:
            objects = [
                structured_report(header, segmented(image), COMMIT),
                segmentation_object(header, segmented(image), COMMIT, labels_of(image)),
                secondary_capture(image, classified(image), COMMIT),
            ]
        except Refusal:
            refused.add(name)
            continue
        read += 1
        of_source = problems(data, tmp_path)
        for written in objects:
            found = problems(dicom_bytes(written), tmp_path) - of_source
            assert not errors(found), (name, written.Modality)
            for line in found:
                used |= (fits := {item for item in known if item in line})
                assert fits, (name, written.Modality, line)
    assert read >= 25
    assert refused == {"JPEGLSNearLossless_08.dcm", "SC_rgb_jls_lossy_sample.dcm", "bad_sequence.dcm"}
    assert used == set(known), "a warning that does not come is not known"


def test_a_study_with_our_objects_is_consistent(tmp_path: Path) -> None:
    require("dcentvfy")

    def check(name: str, data: bytes) -> str:
        files = {"source": source_bytes(), name: data}
        for file, content in files.items():
            (tmp_path / file).write_bytes(content)
        found = subprocess.run(
            ["dcentvfy", *(str(tmp_path / file) for file in files)], capture_output=True, text=True, errors="replace", timeout=60
        )
        return found.stdout + found.stderr

    written = all_objects(read_image(source_bytes()))
    for name, item in written.items():
        assert "Error" not in check(name, dicom_bytes(item)), name
    item.PatientID = "another"
    assert "Error" in check("wrong", dicom_bytes(item))
