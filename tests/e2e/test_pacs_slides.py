"""A slide's way through a real Orthanc: sent, noted by the watch, analysed where somebody says, and annotated in its study."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.ann import annread

from tests.conftest import ROOT, require
from tests.e2e.orthancs import Orthanc, Watcher, complaints
from tests.models.slides import JPEG, slide_bytes, tissue

REGION = (300, 200, 400, 300)
KNOWN = "Only valid for AnnotationCoordinateType of 3D"
"""The one error that docs/dicom-results.md lists."""


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    for tool in ("Orthanc", "storescu", "dciodvfy", "dcentvfy"):
        require(tool)
    orthanc = Orthanc(tmp_path)
    yield orthanc
    orthanc.close()


def test_a_slide_comes_back_with_annotations(
    orthanc: Orthanc, make_segmenter: Callable[..., Path], data_root: Path, tmp_path: Path
) -> None:
    stained, models, state = tissue(data_root), make_segmenter("nuclei"), tmp_path / "state"
    (tmp_path / "slide.dcm").write_bytes(slide_bytes(stained, JPEG))
    assert complaints("dciodvfy", tmp_path / "slide.dcm") == set()
    assert orthanc.client.post("/instances", content=(tmp_path / "slide.dcm").read_bytes()).status_code == 200
    watch(orthanc, state, models, tmp_path)
    assert "region_required" in (tmp_path / "watch.log").read_text()
    assert orthanc.ours() == []

    fetched, results = tmp_path / "fetched", tmp_path / "results"
    fetched.mkdir()
    (slide,) = orthanc.instances()
    (fetched / "1.dcm").write_bytes(orthanc.client.get(f"/instances/{slide['_id']}/file").content)
    known = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    settings = {"STATE": str(state), "MODELS": str(models), "PACS_RESULTS": "sr,sc,ann", "THREADS": "1"}
    command = [sys.executable, "-m", "models.cli", "folder", str(fetched), str(results), "--region", ",".join(map(str, REGION))]
    environment = known | {f"OVERREAD_{name}": value for name, value in settings.items()}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
    send = ["storescu", "-R", "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dicom), *map(str, results.glob("*.dcm"))]
    subprocess.run(send, check=True, timeout=120)

    assert sorted(tags["Modality"] for tags in orthanc.ours()) == ["ANN", "OT", "SR"]
    (ours,) = [tags for tags in orthanc.ours() if tags["Modality"] == "ANN"]
    assert ours["StudyInstanceUID"] == slide["StudyInstanceUID"]
    assert ours["SeriesInstanceUID"] != slide["SeriesInstanceUID"]
    (tmp_path / "stored.dcm").write_bytes(orthanc.client.get(f"/instances/{ours['_id']}/file").content)
    stored = annread(tmp_path / "stored.dcm")
    outlines = stored.get_annotation_group(number=1).get_graphic_data("2D")
    x, y, width, height = REGION
    assert len(outlines) > 20
    points = np.concatenate(outlines)
    assert points.min(0).tolist() >= [x, y]
    assert (points.max(0) <= (x + width, y + height)).all()
    assert darker_within(stained, outlines)
    assert all(KNOWN in line for line in complaints("dciodvfy", tmp_path / "stored.dcm"))
    assert complaints("dcentvfy", tmp_path / "slide.dcm", tmp_path / "stored.dcm") == set()

    watch(orthanc, state, models, tmp_path)
    assert len(orthanc.ours()) == 3, "nothing is made of our own objects"


def watch(orthanc: Orthanc, state: Path, models: Path, folder: Path) -> None:
    settings: dict[str, Any] = {"PACS_RESULTS": "sr,ann"}
    watcher = Watcher(orthanc.url, state, models, folder / "watch.log", "--once", **settings)
    assert watcher.process.wait(120) == 0, watcher.log.read_text()[-2000:]


def darker_within(stained: Any, outlines: list[Any]) -> bool:
    """Tell whether the outlines lie on the dark nuclei of the slide itself; beside them, they would not."""
    grey = stained.mean(axis=2)

    def mean(shift: int) -> float:
        boxes = [(outline.min(0).astype(int) + shift, outline.max(0).astype(int) + shift) for outline in outlines]
        return float(np.mean([grey[top:bottom, left:right].mean() for (left, top), (right, bottom) in boxes]))

    return mean(0) < min(mean(20), mean(-20)) - 5
