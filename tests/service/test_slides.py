"""Whole slides through the service: by region, with one identity, and as annotations where they were seen."""

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
from pydicom.dataset import Dataset
from wsidicom import WsiDicom

from models.errors import Refusal
from models.imaging import Image, read_image
from service.dicom_annotations import bulk_annotations, to_matrix
from service.dicom_pictures import secondary_capture
from service.dicom_report import structured_report
from service.dicom_results import dicom_bytes, is_ours
from service.folders import main
from tests.conftest import ROOT, require
from tests.models.slides import JPEG, JPEG2000, SPACING, Pixels, noise, slide_bytes, tissue
from tests.service.archives import MemoryArchive, settle
from tests.service.dicom_sources import COMMIT, box, errors, header_of, problems, read_back, segmented
from tests.service.discs import check, decoded, png_of, refusal

REGION = (50, 30, 240, 180)
SQUARES = ((100, 70, 130, 95), (64, 128, 128, 192), (200, 40, 201 + 24, 41 + 24))
"""left, top, right, bottom in the slide: one within a tile, one a tile as it is, one over four tiles."""


def squares(outside: bool = False) -> Pixels:
    """A light slide of 400 x 300 pixels with dark squares; one more lies outside the region."""
    pixels = np.full((300, 400, 3), 235, np.uint8)
    for left, top, right, bottom in (*SQUARES, *([(320, 220, 350, 250)] if outside else [])):
        pixels[top:bottom, left:right] = 30
    return pixels


SLIDE = slide_bytes(squares(outside=True))
JPEG_SLIDE = slide_bytes(squares(outside=True), JPEG)


def ask(caller: Any, data: bytes = SLIDE, region: Any = REGION, query: str = "", **headers: str) -> Any:
    part = "" if region is None else "&region=" + ",".join(map(str, region))
    return caller.predict(data, "application/dicom", f"?model=nuclei{part}{query}", **headers)


def corners(polygon: Any) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in polygon}


def expected(square: tuple[int, int, int, int]) -> set[tuple[float, float]]:
    left, top, right, bottom = square
    return {(left, top), (right, top), (right, bottom), (left, bottom)}


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


# Annotations


def source() -> Image:
    return read_image(SLIDE, region=REGION)


def annotated(image: Image, **changes: Any) -> Any:
    return segmented(image, **({"region": REGION, "objects": [box(*SQUARES[0]), box(*SQUARES[1], 0.6)]} | changes))


def write(tmp_path: Path, item: Dataset) -> Path:
    file = tmp_path / "annotations.dcm"
    file.write_bytes(dicom_bytes(item))
    return file


def test_a_known_square_comes_back_at_its_corners(caller: Any, tmp_path: Path) -> None:
    """From pixels to the object and back, through two readers, and looked at in the slide's own pixels."""
    image, answer = source(), check(ask(caller))
    item = bulk_annotations(header_of(image), annotated(image, objects=answer["objects"]), COMMIT)
    group = annread(write(tmp_path, item)).get_annotation_group(number=1)
    found = group.get_graphic_data("2D")
    assert sorted(map(sorted, map(corners, found))) == sorted(map(sorted, map(expected, SQUARES)))
    pixels = squares()
    for polygon in found:
        (left, top), (right, bottom) = polygon.min(0).astype(int), polygon.max(0).astype(int)
        assert (pixels[top:bottom, left:right] == 30).all(), "the first pixel of the matrix lies between 0 and 1"
        assert (pixels[top - 1 : bottom + 1, left - 1 : right + 1] == 235).any()
        assert not (pixels[top + 1 : bottom + 1, left + 1 : right + 1] == 30).all(), "the control: a shift is seen"


def test_another_reader_finds_the_same_outlines(tmp_path: Path) -> None:
    (tmp_path / "slide.dcm").write_bytes(SLIDE)
    file = write(tmp_path, bulk_annotations(header_of(source()), annotated(source()), COMMIT))
    with WsiDicom.open([tmp_path / "slide.dcm", file]) as slide:
        (instance,) = slide.annotations
        groups = {group.label: group for group in instance.groups}
        outlines = [corners([(point.x, point.y) for point in item.geometry.points]) for item in groups["nucleus"].annotations]
    assert outlines == [expected(square) for square in SQUARES[:2]]
    assert set(groups) == {"nucleus", "analysed region"}


def test_the_region_is_annotated_too(tmp_path: Path) -> None:
    item = annread(write(tmp_path, bulk_annotations(header_of(source()), annotated(source()), COMMIT)))
    group = item.get_annotation_group(number=2)
    x, y, width, height = REGION
    assert corners(group.get_graphic_data("2D")[0]) == expected((x, y, x + width, y + height))


@pytest.mark.parametrize("measured", [True, False])
def test_each_object_has_its_area_and_its_score(tmp_path: Path, measured: bool) -> None:
    image = source()
    quantities = segmented(image).quantities
    assert quantities is not None
    answer = annotated(image, quantities=quantities.model_copy(update={"area_um2": quantities.area_px if measured else None}))
    group = annread(write(tmp_path, bulk_annotations(header_of(image), answer, COMMIT))).get_annotation_group(number=1)
    names, values, units = group.get_measurements()
    pixel = (1000 * SPACING) ** 2 if measured else 1
    assert [name.value for name in names] == ["42798000", "OBJECTSCORE"]
    assert [unit.value for unit in units] == ["um2" if measured else "{pixels}", "1"]
    assert values[:, 0] == pytest.approx([30 * 25 * pixel, 64 * 64 * pixel])
    assert values[:, 1] == pytest.approx([0.9, 0.6])


def test_who_made_it_and_of_what() -> None:
    image = source()
    header, answer = header_of(image), annotated(image)
    item = bulk_annotations(header, answer, COMMIT)
    assert dicom_bytes(item) == dicom_bytes(bulk_annotations(header, answer, COMMIT))
    back = read_back(item)
    assert is_ours(back)
    assert (back.Modality, back.SOPClassUID.name) == ("ANN", "Microscopy Bulk Simple Annotations Storage")
    assert (back.AnnotationCoordinateType, back.PixelOriginInterpretation) == ("2D", "VOLUME")
    assert back.ReferencedImageSequence[0].ReferencedSOPInstanceUID == header.SOPInstanceUID
    assert back.ReferencedImageSequence[0].ReferencedSOPClassUID == header.SOPClassUID
    assert (back.StudyInstanceUID, back.PatientID) == (header.StudyInstanceUID, header.PatientID)
    assert back.SeriesInstanceUID != header.SeriesInstanceUID
    (algorithm,) = back.AnnotationGroupSequence[0].AnnotationGroupAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (answer.model.name, answer.model.version)
    assert answer.model.sha256 in algorithm.AlgorithmParameters
    assert COMMIT.triage_sha256 in algorithm.AlgorithmParameters
    other = bulk_annotations(header, annotated(image, result_id="01" * 32), COMMIT)
    assert other.SOPInstanceUID != item.SOPInstanceUID
    assert other.SeriesInstanceUID != item.SeriesInstanceUID


def test_nothing_is_annotated_without_objects_or_without_a_slide() -> None:
    image = source()
    with pytest.raises(ValueError, match="objects of a slide"):
        bulk_annotations(header_of(image), annotated(image, objects=[]), COMMIT)
    header = header_of(image)
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    with pytest.raises(ValueError, match="objects of a slide"):
        bulk_annotations(header, segmented(image), COMMIT)


def test_positions_of_large_slides_are_exact() -> None:
    far = [(4_194_303.5, 199_999.0), (8_388_607.0, 0.5)]
    assert to_matrix(far).astype(float).tolist() == [list(point) for point in far]


def known(section: str) -> list[str]:
    text = (ROOT / "docs" / "dicom-results.md").read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    return [line.split("`")[1] for line in text.splitlines() if line.startswith("- `")]


def test_the_validator_finds_nothing_else(tmp_path: Path, data_root: Path) -> None:
    require("dciodvfy")
    stained = slide_bytes(tissue(data_root)[:300, :400], JPEG)
    assert problems(stained, tmp_path) == set()
    image = read_image(stained, region=REGION)
    header, answer = header_of(image), annotated(image)
    listed = {*known("The validator and annotations"), *known("Warnings of the validator")}
    used = set()
    for item in (
        bulk_annotations(header, answer, COMMIT),
        structured_report(header, answer, COMMIT),
        secondary_capture(image, answer, COMMIT),
    ):
        for line in problems(dicom_bytes(item), tmp_path):
            used |= (fits := {text for text in listed if text in line})
            assert fits, (item.Modality, line)
    assert set(known("The validator and annotations")) <= used, "what does not come is not known"
    broken = bulk_annotations(header, answer, COMMIT)
    assert "CommonZCoordinateValue" not in broken.AnnotationGroupSequence[0], "what the known error speaks of"
    del broken.AnnotationGroupSequence[0].AnnotationGroupUID
    assert errors(problems(dicom_bytes(broken), tmp_path)) - errors(
        problems(dicom_bytes(bulk_annotations(header, answer, COMMIT)), tmp_path)
    )


# The other objects


def test_a_report_refers_to_the_matrix() -> None:
    image = source()
    report = read_back(structured_report(header_of(image), annotated(image), COMMIT))
    found: list[Dataset] = []

    def collect(item: Dataset) -> None:
        if item.get("ValueType") == "SCOORD":
            found.append(item)
        for part in item.get("ContentSequence", []):
            collect(part)

    collect(report)
    assert {item.PixelOriginInterpretation for item in found} == {"VOLUME"}
    outlines = [corners(np.reshape(item.GraphicData, (-1, 2))) for item in found]
    for square in SQUARES[:2]:
        assert expected(square) in outlines, "not cut off at the size of a tile"


def test_a_picture_shows_the_region() -> None:
    image = source()
    capture = secondary_capture(image, annotated(image, doubtful_regions=[]), COMMIT)
    pixels = read_back(capture).pixel_array
    scale = 512 / REGION[2]
    left, top, right, bottom = ((value - REGION[number % 2]) * scale for number, value in enumerate(SQUARES[0]))
    green = np.argwhere((pixels[..., 1] > 200) & (pixels[..., 0] < 100) & (pixels[..., 2] < 150))
    within = green[(green[:, 0] < bottom + 5) & (green[:, 0] > top - 5) & (green[:, 1] > left - 5) & (green[:, 1] < right + 5)]
    assert np.allclose(within.min(0), (top, left), atol=1.5)
    assert np.allclose(within.max(0), (bottom, right), atol=1.5)


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
