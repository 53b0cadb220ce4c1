"""The objects about a slide: annotations at the corners where they were drawn, and the report and picture beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.ann import annread
from pydicom.dataset import Dataset
from wsidicom import WsiDicom

from models.imaging import Image, read_image
from service.dicom_annotations import bulk_annotations, to_matrix
from service.dicom_pictures import secondary_capture
from service.dicom_report import structured_report
from service.dicom_results import dicom_bytes, is_ours
from tests.conftest import ROOT, require
from tests.models.slides import JPEG, SPACING, slide_bytes, tissue
from tests.service.dicom_sources import COMMIT, box, errors, header_of, problems, read_back, segmented
from tests.service.discs import check
from tests.service.drawn_slides import REGION, SLIDE, SQUARES, ask, corners, expected, squares


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
