"""Regions of whole slides: the same pixels as an independent reader gives, one identity, and no more decoded than is needed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from wsidicom import WsiDicom
from wsidicom.codec import Jpeg2kSettings, JpegSettings

from models import dicom_slide
from models.errors import Refusal
from models.image import Box
from models.imaging import Image, read_image
from models.segmenter import display_values
from tests.models.slides import (
    EXPLICIT,
    IMPLICIT,
    JPEG,
    JPEG2000,
    JPEG2000_LOSSY,
    SPACING,
    TILE,
    codestream,
    noise,
    pixel_data,
    slide_bytes,
    tiles_of,
    tissue,
)

ROWS, COLUMNS = 150, 210
SLIDE = noise(ROWS, COLUMNS)
REGIONS: tuple[Box, ...] = ((50, 30, 120, 100), (64, 64, 64, 64), (0, 0, COLUMNS, ROWS), (209, 149, 1, 1), (63, 127, 3, 2))
SYNTAXES = (EXPLICIT, IMPLICIT, JPEG, JPEG2000, JPEG2000_LOSSY)


def cut(pixels: Any, region: Box) -> Any:
    x, y, width, height = region
    return pixels[y : y + height, x : x + width]


def read(data: bytes, region: Box = REGIONS[0]) -> Image:
    return read_image(data, region=region)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_regions_are_what_an_independent_reader_gives(tmp_path: Path, syntax: str, sparse: bool) -> None:
    data = slide_bytes(SLIDE, syntax, sparse=sparse)
    (tmp_path / "slide.dcm").write_bytes(data)
    with WsiDicom.open(tmp_path / "slide.dcm") as other:
        for region in REGIONS:
            image = read(data, region)
            assert (image.rows, image.columns, image.region) == (ROWS, COLUMNS, region)
            assert image.spacing_mm == (SPACING, SPACING)
            assert np.array_equal(image.pixels, np.asarray(other.read_region(region[:2], 0, region[2:])))
            if syntax in (EXPLICIT, IMPLICIT, JPEG2000):
                assert np.array_equal(image.pixels, cut(SLIDE, region))


@pytest.mark.parametrize(("table", "fragments"), [("basic", 1), ("none", 1), ("extended", 1), ("basic", 3), ("none", 3)])
@pytest.mark.parametrize("syntax", [JPEG, JPEG2000])
def test_frames_are_found_with_and_without_offset_tables(syntax: str, table: str, fragments: int) -> None:
    reference, other = read(slide_bytes(SLIDE, syntax)), read(slide_bytes(SLIDE, syntax, table=table, fragments=fragments))
    assert np.array_equal(other.pixels, reference.pixels)
    assert other.sha256 == reference.sha256


@pytest.mark.parametrize("settings", [JpegSettings(quality=95), Jpeg2kSettings(levels=[0])])
@pytest.mark.parametrize("table", ["bot", "eot", "empty"])
def test_slides_that_another_writer_made(tmp_path: Path, data_root: Path, settings: Any, table: str) -> None:
    stained = tissue(data_root)[:300, :500]
    (tmp_path / "slide.dcm").write_bytes(slide_bytes(stained))
    with WsiDicom.open(tmp_path / "slide.dcm") as mine:
        (written,) = mine.save(tmp_path / "saved", transcoding=settings, force_transcoding=True, offset_table=table)
    region = (30, 70, 333, 222)
    image = read(Path(written).read_bytes(), region)
    with WsiDicom.open(written) as theirs:
        assert np.array_equal(image.pixels, np.asarray(theirs.read_region(region[:2], 0, region[2:])))
    difference = np.abs(image.pixels.astype(int) - cut(stained, region))
    assert difference.mean() < 6
    assert image.spacing_mm == pytest.approx((SPACING, SPACING))


def test_frames_of_a_sparse_slide_lie_where_it_says() -> None:
    order = [11, 3, 6, 5, 1, 7, 2, 10]
    for undefined, syntax in itertools.product((False, True), (EXPLICIT, IMPLICIT)):
        data = slide_bytes(SLIDE, syntax, sparse=True, kept=order, undefined=undefined)
        for region in ((70, 10, 130, 118), (128, 128, 82, 22)):
            assert np.array_equal(read(data, region).pixels, cut(SLIDE, region))
    swapped = slide_bytes(SLIDE, sparse=True, kept=[3, 11, *order[2:]])
    assert read(swapped, (200, 100, 1, 1)).sha256 != read(data, (200, 100, 1, 1)).sha256


def test_only_touched_tiles_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = dicom_slide.decode_pixels

    def count(*arguments: Any) -> Any:
        decoded.append(len(arguments[0]))
        return real(*arguments)

    monkeypatch.setattr(dicom_slide, "decode_pixels", count)
    for region, tiles in (((64, 64, 64, 64), 1), ((63, 64, 64, 64), 2), ((63, 63, 66, 66), 9), ((200, 140, 10, 10), 1)):
        decoded.clear()
        read(slide_bytes(SLIDE, JPEG), region)
        assert len(decoded) == tiles


def test_a_damaged_tile_matters_where_the_region_touches_it() -> None:
    def damage(file: Dataset) -> None:
        frames = [codestream(tile, JPEG) for tile in tiles_of(SLIDE)]
        pixel_data(file, [b"\xff\xd8\xff" + bytes(99), *frames[1:]], "basic")

    data = slide_bytes(SLIDE, JPEG, damage)
    read(data, (64, 0, 10, 10))
    with pytest.raises(Refusal, match="not_decodable"):
        read(data, (63, 0, 10, 10))


# Identity


def test_a_slide_has_one_identity_whatever_is_read_of_it() -> None:
    data = slide_bytes(SLIDE, JPEG)
    digests = {read(data, region).sha256 for region in REGIONS}
    assert len(digests) == 1
    same = [
        slide_bytes(SLIDE, JPEG, PatientName="Other^Name", SOPInstanceUID="2.25.9"),
        slide_bytes(SLIDE, JPEG, sparse=True),
        slide_bytes(SLIDE, JPEG, ContainerIdentifier="C2"),
    ]
    assert {read(item).sha256 for item in same} == digests


def test_whatever_changes_the_slide_changes_its_identity() -> None:
    far = SLIDE.copy()
    far[149, 209] ^= 1  # outside the region

    def coarser(file: Dataset) -> None:
        file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.001, 0.001]

    changed = [
        slide_bytes(SLIDE),
        slide_bytes(far),
        slide_bytes(SLIDE, change=coarser),
        slide_bytes(SLIDE, Modality="XC"),
        slide_bytes(SLIDE, TotalPixelMatrixColumns=COLUMNS - 1),
        slide_bytes(SLIDE, sparse=True, kept=[1, 0, *range(2, 12)]),
        slide_bytes(SLIDE, sparse=True, kept=list(range(11))),
        slide_bytes(SLIDE, JPEG2000),
    ]
    region = (66, 66, 20, 20)
    assert len({read(item, region).sha256 for item in changed}) == len(changed)


def test_where_its_frames_lie_and_end_is_part_of_its_identity() -> None:
    """The bytes of all frames together are the same."""

    def exchanged(file: Dataset) -> None:
        groups = file.PerFrameFunctionalGroupsSequence
        file.PerFrameFunctionalGroupsSequence = [*groups[:10], groups[11], groups[10]]

    region, streams = (66, 66, 20, 20), [codestream(tile, JPEG) for tile in tiles_of(SLIDE)]
    streams = [stream + bytes(len(stream) % 2) for stream in streams]
    first, second = [streams[0] + streams[1], *streams[2:]], [streams[0], streams[1] + streams[2], *streams[3:]]
    assert (
        read(slide_bytes(SLIDE, sparse=True), region).sha256
        != read(slide_bytes(SLIDE, change=exchanged, sparse=True), region).sha256
    )
    digests = set()
    for frames in (first, second):
        data = slide_bytes(
            SLIDE, JPEG, lambda file, frames=frames: pixel_data(file, frames, "none"), sparse=True, kept=list(range(11))
        )
        digests.add(read(data, region).sha256)
    assert len(digests) == 2


# What is read of it afterwards


def test_display_values_are_in_pixels_of_the_slide() -> None:
    image = read(slide_bytes(SLIDE), (50, 30, 120, 100))
    assert np.array_equal(display_values(image, (60, 40, 20, 10)), cut(SLIDE, (60, 40, 20, 10)))
    for outside in ((0, 0, 10, 10), (49, 30, 5, 5), (160, 120, 20, 5)):
        with pytest.raises(ValueError, match="was not decoded there"):
            display_values(image, outside)


def test_without_a_spacing_there_is_none() -> None:
    def remove(file: Dataset) -> None:
        del file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence

    assert read(slide_bytes(SLIDE, change=remove)).spacing_mm is None


def test_tiles_are_as_the_slides_here_have_them() -> None:
    """The control of all the others: which tile is where, by hand."""
    tiles = tiles_of(SLIDE)
    assert len(tiles) == 12
    assert np.array_equal(tiles[5], SLIDE[TILE : 2 * TILE, TILE : 2 * TILE])
    assert (tiles[3][:, COLUMNS - 3 * TILE :] == 255).all()
