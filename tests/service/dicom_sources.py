"""Small DICOM sources, answers about them, and what a validator finds wrong with an object."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from models.example import chest_phantom
from models.image import Image
from models.imaging import read_image
from service.dicom_pictures import secondary_capture, segmentation_object
from service.dicom_report import structured_report
from service.dicom_results import Commit, dicom_bytes
from service.schemas import (
    Answer,
    Distribution,
    FindingAnswer,
    ModelBlock,
    ObjectAnswer,
    Quantities,
    Quartiles,
    Reason,
    SegmentationAnswer,
    Tile,
)

ROWS, COLUMNS = 80, 96
COMMIT = Commit("cd" * 32, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
USE = {"statement": "Tests.", "population": "Drawn images.", "not_seen": "Everything.", "not_for": "diagnosis"}
MODEL = ModelBlock(name="tiny", version="1.0.0", sha256="ab" * 32, provider="CPUExecutionProvider", intended_use=USE)
_PHANTOM = chest_phantom()


def source_bytes(change: Callable[[Dataset], None] | None = None, **attributes: Any) -> bytes:
    """Return a part of the drawn chest, 80 rows of 96 columns, as a DICOM file; None deletes an attribute."""
    dataset = pydicom.dcmread(io.BytesIO(_PHANTOM))
    dataset.PixelData = np.ascontiguousarray(dataset.pixel_array[300 : 300 + ROWS, 420 : 420 + COLUMNS]).tobytes()
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    for keyword, value in attributes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    if change is not None:
        change(dataset)
    if "SOPClassUID" in dataset:
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def source(change: Callable[[Dataset], None] | None = None, **attributes: Any) -> Image:
    return read_image(source_bytes(change, **attributes))


def header_of(image: Image) -> Dataset:
    assert image.header is not None
    return image.header


def _about(image: Image) -> dict[str, Any]:
    uid = str(header_of(image).get("SOPInstanceUID")).strip()
    return {
        "result_id": "ef" * 32, "image_sha256": image.sha256, "sop_instance_uid": uid,
        "model": MODEL, "predicted_loss": 0.30000000000000004, "loss_percentile": 96.5, "domain_distance": 0.21,
        "domain_percentile": 12.25, "entropy": 0.4, "verdict": "review",
        "reasons": [Reason(code="predicted_loss_high", message="x"), Reason(code="uid_reused", message="x")],
    }  # fmt: skip


def classified(image: Image, **changes: Any) -> Answer:
    findings = [
        FindingAnswer(label="pneumonia", probability=0.1 + 0.2, operating_point=0.25, positive=True),
        FindingAnswer(label="nodule", probability=1 / 3, operating_point=0.5, positive=False),
    ]
    return Answer(**{"task": "classification", "findings": findings, "predicted_loss_unseen": None} | _about(image) | changes)


def labels_of(image: Image) -> np.ndarray[Any, Any]:
    """Two rectangles that touch, in the image's upper left part."""
    labels = np.zeros((image.rows, image.columns), np.int32)
    labels[1 : image.rows // 2, 2 : image.columns // 2] = 1
    labels[1 : image.rows // 2, image.columns // 2 : image.columns // 2 + 1] = 2
    return labels


def box(x: float, y: float, right: float, bottom: float, score: float = 0.9) -> ObjectAnswer:
    corners = [(x, y), (right, y), (right, bottom), (x, bottom)]
    return ObjectAnswer(polygon=corners, area=(right - x) * (bottom - y), score=score)


def segmented(image: Image, **changes: Any) -> SegmentationAnswer:
    """Return an answer that fits :func:`labels_of`."""
    half, middle = image.rows // 2, image.columns // 2
    shares, spread = {"q1": 1.0, "median": 1.0, "q3": 1.0}, {"mean": 1.0, "sd": None}
    distribution, quartiles = Distribution(**shares, **spread), Quartiles(**shares)
    quantities = Quantities(
        count=2, density_per_mm2=0.125, area_fraction=0.0625, area_px=distribution, eccentricity=distribution,
        solidity=distribution, nearest_neighbour_px=quartiles,
    )  # fmt: skip
    doubt = {"predicted_loss": 0.7, "loss_percentile": 99.0, "domain_distance": 0.5, "domain_percentile": 40.0}
    values = {
        "task": "segmentation", "region": None, "object_label": "nucleus", "quantities": quantities, "regions": None, "tiles": [],
        "objects": [box(2, 1, middle, half), box(middle, 1, middle + 1, half, 0.6)], "label_image": None, "overlay": None,
        "doubtful_regions": [Tile(x=0, y=0, width=image.columns, height=image.rows, **doubt)],
    }  # fmt: skip
    return SegmentationAnswer(**values | _about(image) | changes)


def all_objects(image: Image) -> dict[str, Dataset]:
    """Write one of each: two reports, a segmentation, two secondary captures."""
    header = header_of(image)
    return {
        "report": structured_report(header, classified(image), COMMIT),
        "report of objects": structured_report(header, segmented(image), COMMIT),
        "segmentation": segmentation_object(header, segmented(image), COMMIT, labels_of(image)),
        "picture": secondary_capture(image, classified(image), COMMIT),
        "picture of objects": secondary_capture(image, segmented(image), COMMIT),
    }


def read_back(dataset: Dataset) -> Dataset:
    return pydicom.dcmread(io.BytesIO(dicom_bytes(dataset)))


def problems(data: bytes, folder: Path) -> set[str]:
    """Return the lines in which ``dciodvfy`` complains, without item numbers."""
    file = folder / "object.dcm"
    file.write_bytes(data)
    found = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, errors="replace", timeout=60).stderr
    lines = [re.sub(r"\[\d+\]", "", line) for line in found.splitlines()]
    # A UID that is wrong in the source is repeated in references: the same complaint elsewhere
    return {re.sub(r"<.*> - (Illegal .*UID)", r"\1", line) for line in lines if line.startswith(("Error", "Warning"))}


def errors(found: set[str]) -> set[str]:
    return {line for line in found if line.startswith("Error")}
