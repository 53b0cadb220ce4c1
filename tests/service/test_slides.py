"""Whole slides through the service: by region, with one identity, and as annotations where somebody says which part."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.ann import annread
from wsidicom import WsiDicom

from models.errors import Refusal
from service.folders import main
from tests.conftest import ROOT
from tests.models.slides import JPEG2000, SPACING, noise, slide_bytes, tissue
from tests.service.archives import MemoryArchive, settle
from tests.service.discs import check, decoded, png_of, refusal
from tests.service.drawn_slides import JPEG_SLIDE, REGION, SLIDE, SQUARES, ask, corners, expected, squares

# HTTP


@pytest.mark.parametrize("data", [SLIDE, JPEG_SLIDE, slide_bytes(squares(True), JPEG2000, sparse=True)])
def test_a_region_is_predicted_in_pixels_of_the_slide(caller: Any, data: bytes) -> None:
    answer = check(ask(caller, data))
    assert answer["region"] == list(REGION)
    assert answer["sop_instance_uid"] == "2.25.401"
    assert len(answer["objects"]) == len(SQUARES)
    for square in SQUARES:
        assert any(expected(square) == corners(item["polygon"]) for item in answer["objects"])
    area_mm2 = REGION[2] * REGION[3] * SPACING**2
    assert answer["quantities"]["density_per_mm2"] == pytest.approx(len(SQUARES) / area_mm2)


def test_regions_of_one_slide_are_results_of_one_image(caller: Any) -> None:
    first, second = check(ask(caller)), check(ask(caller, region=(0, 0, 400, 300)))
    assert first["image_sha256"] == second["image_sha256"]
    assert first["result_id"] != second["result_id"]
    assert (len(first["objects"]), len(second["objects"])) == (3, 4)
    assert second["region"] == [0, 0, 400, 300], "of a slide, all of it is a region too"
    codes = {reason["code"] for answer in (first, second) for reason in answer["reasons"]}
    assert "uid_reused" not in codes
    assert ask(caller).text == ask(caller).text
    other = squares()
    other[299, 399] = 0  # outside the region
    changed = check(ask(caller, slide_bytes(other)))
    assert "uid_reused" in {reason["code"] for reason in changed["reasons"]}


def test_what_stands_beside_a_result(caller: Any) -> None:
    answer = check(ask(caller, query="&label_image=true&overlay=true"))
    labels = decoded(answer["label_image"])
    assert labels.shape == (REGION[3], REGION[2])
    left, top, right, bottom = SQUARES[0]
    inside = labels[top - REGION[1] : bottom - REGION[1], left - REGION[0] : right - REGION[0]]
    assert len(set(inside.ravel())) == 1
    assert inside[0, 0] > 0
    assert decoded(answer["overlay"]).shape == (REGION[3], REGION[2], 3)
    collection = check(ask(caller, accept="application/geo+json"), "application/geo+json")
    assert len(collection["features"]) == 3
    stored = caller.get(f"/v1/results/{answer['result_id']}")
    assert stored.json()["objects"] == answer["objects"]


@pytest.mark.parametrize(
    ("region", "query", "answered"),
    [
        (None, "", (422, "region_required")),
        ((390, 0, 11, 10), "", (400, "bad_request")),
        ((0, 0, 400, 301), "", (400, "bad_request")),
        ((0, 0, 10, 10), "", (422, "too_small")),
        (REGION, "&picture=true", (400, "bad_request")),
    ],
)
def test_what_cannot_be_answered(caller: Any, region: Any, query: str, answered: tuple[int, str]) -> None:
    assert refusal(ask(caller, region=region, query=query)) == answered


def test_a_classifier_takes_no_slide(caller: Any) -> None:
    assert refusal(caller.predict(SLIDE, "application/dicom")) == (422, "region_required")
    assert refusal(caller.predict(SLIDE, "application/dicom", "?region=0,0,64,64")) == (400, "bad_request")


def test_labels_and_overviews_are_no_tissue(caller: Any) -> None:
    label = slide_bytes(squares(), ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])
    assert refusal(ask(caller, label)) == (422, "not_tissue")


def test_the_shipped_model_finds_in_a_slide_what_it_finds_in_a_picture(make_site: Any, connect: Any, data_root: Path) -> None:
    caller = connect(make_site(models=(ROOT / "models" / "zoo" / "nuclei",)))
    stained = tissue(data_root)[:400, :400]
    picture = check(caller.predict(png_of(stained), "image/png", "?model=nuclei&region=70,90,250,240"))
    slide = check(ask(caller, slide_bytes(stained, JPEG2000), (70, 90, 250, 240)))
    assert len(slide["objects"]) > 10
    assert slide["objects"] == picture["objects"]
    assert slide["predicted_loss"] == picture["predicted_loss"]


# Folders and the archive


@pytest.fixture
def folders(tmp_path: Path, segmenter: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    results = {"STATE": tmp_path / "state", "MODELS": segmenter, "THREADS": 1, "PACS_RESULTS": "sr,seg,sc,ann"}
    for name, value in results.items():
        monkeypatch.setenv(f"OVERREAD_{name}", str(value))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "slide.dcm").write_bytes(JPEG_SLIDE)
    return tmp_path / "in", tmp_path / "out"


def test_a_folder_of_slides_becomes_annotations(folders: tuple[Path, Path]) -> None:
    source, out = folders
    (source / "label.dcm").write_bytes(slide_bytes(noise(64, 64), ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"]))
    assert main([str(source), str(out), "--region", ",".join(map(str, REGION))]) == 0
    names = sorted(path.name for path in out.glob("*.dcm"))
    assert names == ["overread-0001-sr.dcm", "overread-0002-ann.dcm", "overread-0003-ot.dcm"], "a slide has no segmentation"
    assert json.loads((out / "result.json").read_text())["skipped"] == {"not_tissue": 1}
    group = annread(out / names[1]).get_annotation_group(number=1)
    assert sorted(map(sorted, map(corners, group.get_graphic_data("2D")))) == sorted(map(sorted, map(expected, SQUARES)))
    first = {path.name: path.read_bytes() for path in out.glob("*.dcm")}
    assert main([str(source), str(out), "--region", ",".join(map(str, REGION))]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.dcm")} == first


def test_a_folder_without_a_region_passes_slides_over(folders: tuple[Path, Path]) -> None:
    source, out = folders
    assert main([str(source), str(out)]) == 0
    assert json.loads((out / "result.json").read_text()) == {
        "results": [], "objects": 0, "skipped": {"region_required": 1}, "failed": {},
    }  # fmt: skip
    with pytest.raises(Refusal, match="bad_request"):
        main([str(source), str(out), "--region", "1,2,3"])


def test_other_images_have_no_annotations(folders: tuple[Path, Path]) -> None:
    source, out = folders
    picture = pydicom.dcmread(io.BytesIO(SLIDE))
    for keyword in ("SharedFunctionalGroupsSequence", "TotalPixelMatrixRows", "TotalPixelMatrixColumns"):
        delattr(picture, keyword)
    picture.SOPClassUID = picture.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    picture.Rows, picture.Columns, picture.NumberOfFrames = 300, 400, 1
    picture.PixelData = squares().tobytes()
    pydicom.dcmwrite(source / "slide.dcm", picture)
    assert main([str(source), str(out)]) == 0
    assert sorted(path.name[14:] for path in out.glob("*.dcm")) == ["ot.dcm", "seg.dcm", "sr.dcm"]


def test_a_slide_in_the_archive_is_skipped_with_the_reason(
    start: Callable[..., Any], archive: MemoryArchive, segmenter: Path
) -> None:
    watch = start(models=(segmenter,), pacs_results=("sr", "ann"))
    archive.arrive(SLIDE)
    assert settle(watch)["skipped"] == 1
    with watch._site.store.reading() as connection:
        assert connection.exec_driver_sql("SELECT state, code FROM pacs_instances").all() == [("skipped", "region_required")]
    assert "retrieve" not in archive.calls, "gigabytes that nobody asked for"


def test_the_picture_is_one(tmp_path: Path) -> None:
    """The control of the slides here: their squares are what an independent reader shows."""
    (tmp_path / "slide.dcm").write_bytes(SLIDE)
    with WsiDicom.open(tmp_path / "slide.dcm") as slide:
        assert np.array_equal(np.asarray(slide.read_region((0, 0), 0, (400, 300))), squares(outside=True))
