"""Slides that contradict themselves, or are not read: each refused with its code, before anything is decoded, and cheaply."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from models import dicom_slide
from models.errors import Refusal
from models.image import Box, Limits
from models.imaging import read_image
from tests.models.dicom_files import relabelled
from tests.models.slides import EXPLICIT, IMPLICIT, JPEG, JPEG2000, TILE, codestream, noise, pixel_data, slide_bytes, tiles_of

SLIDE = noise(150, 210)
REGION: Box = (70, 70, 20, 20)


def code(data: bytes, region: Box | None = REGION, **limits: int) -> str:
    with pytest.raises(Refusal) as caught:
        read_image(data, region=region, limits=Limits(**limits))
    return caught.value.code


class Decoded(BaseException):
    """No reader turns this into a code."""


@pytest.fixture
def nothing_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any) -> None:
        raise Decoded

    monkeypatch.setattr(dicom_slide, "decode_pixels", decode)


def in_group(keyword: str, value: int, frame: int = 2) -> Callable[[Dataset], None]:
    def change(file: Dataset) -> None:
        setattr(file.PerFrameFunctionalGroupsSequence[frame].PlanePositionSlideSequence[0], keyword, value)

    return change


def without_position(file: Dataset) -> None:
    del file.PerFrameFunctionalGroupsSequence[2].PlanePositionSlideSequence


def fewer_groups(file: Dataset) -> None:
    file.PerFrameFunctionalGroupsSequence = file.PerFrameFunctionalGroupsSequence[:-1]


def more_groups(file: Dataset) -> None:
    file.PerFrameFunctionalGroupsSequence = [*file.PerFrameFunctionalGroupsSequence, Dataset()]


def no_groups(file: Dataset) -> None:
    del file.PerFrameFunctionalGroupsSequence


SPARSE = {
    "a column before the first": (in_group("ColumnPositionInTotalImagePixelMatrix", 0), "inconsistent_image"),
    "a column beyond the last": (in_group("ColumnPositionInTotalImagePixelMatrix", 257), "inconsistent_image"),
    "a negative row": (in_group("RowPositionInTotalImagePixelMatrix", -63), "inconsistent_image"),
    "a row beyond the last": (in_group("RowPositionInTotalImagePixelMatrix", 193), "inconsistent_image"),
    "off the grid": (in_group("ColumnPositionInTotalImagePixelMatrix", 130), "multi_frame"),
    "two at one place": (in_group("ColumnPositionInTotalImagePixelMatrix", 65), "multi_frame"),
    "no position": (without_position, "inconsistent_image"),
    "a group too few": (fewer_groups, "inconsistent_image"),
    "a group too many": (more_groups, "inconsistent_image"),
    "no groups": (no_groups, "inconsistent_image"),
}


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("name", SPARSE)
def test_positions_of_a_sparse_slide(name: str, syntax: str, nothing_decoded: None) -> None:
    change, expected = SPARSE[name]
    for undefined in (False, True):
        assert code(slide_bytes(SLIDE, syntax, change, sparse=True, undefined=undefined)) == expected


FULL: dict[str, tuple[dict[str, Any], str]] = {
    "a frame too few": ({"NumberOfFrames": 11}, "inconsistent_image"),
    "a frame too many": ({"NumberOfFrames": 13}, "inconsistent_image"),
    "a million frames": ({"NumberOfFrames": 1_000_000}, "inconsistent_image"),
    "sizes of the matrix swapped": ({"TotalPixelMatrixRows": 65, "TotalPixelMatrixColumns": 150}, "inconsistent_image"),
    "a matrix of no size": ({"TotalPixelMatrixRows": 0}, "inconsistent_image"),
    "no matrix": ({"TotalPixelMatrixColumns": None}, "inconsistent_image"),
    "tiles of another size": ({"Rows": 32}, "inconsistent_image"),
    "a huge matrix and as many frames": (
        {"TotalPixelMatrixRows": 64_000, "TotalPixelMatrixColumns": 64_000, "NumberOfFrames": 1_000_000},
        "inconsistent_image",
    ),
    "several focal planes": ({"TotalPixelMatrixFocalPlanes": 3}, "multi_frame"),
    "several optical paths": ({"NumberOfOpticalPaths": 2}, "multi_frame"),
    "part of a concatenation": ({"ConcatenationUID": "2.25.1"}, "multi_frame"),
    "grey": ({"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}, "unsupported_transfer_syntax"),
    "a palette": ({"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"}, "unsupported_transfer_syntax"),
    "16 bits": ({"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}, "unsupported_transfer_syntax"),
    "three samples of one": ({"SamplesPerPixel": 1}, "inconsistent_image"),
    "a label": ({"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}, "not_tissue"),
    "an overview": ({"ImageType": ["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"]}, "not_tissue"),
    "no pixel data": ({"PixelData": None}, "no_pixel_data"),
}


@pytest.mark.parametrize("name", FULL)
def test_attributes_against_each_other(name: str, nothing_decoded: None) -> None:
    attributes, expected = FULL[name]
    assert code(slide_bytes(SLIDE, **attributes)) == expected
    if "SamplesPerPixel" not in attributes and "BitsAllocated" not in attributes:
        assert code(slide_bytes(SLIDE, JPEG, **attributes)) == expected


def test_what_is_asked_for(nothing_decoded: None) -> None:
    data = slide_bytes(SLIDE)
    assert code(data, None) == "region_required"
    for region in ((0, 0, 211, 10), (0, 141, 5, 10), (210, 0, 1, 1), (5, 5, 0, 5), (-1, 0, 5, 5)):
        assert code(data, region) == "bad_request"
    assert code(data, (0, 0, 100, 100), max_pixels=29_999) == "image_too_large"
    assert code(slide_bytes(SLIDE, JPEG2000), (0, 0, 100, 100), max_wavelet_pixels=29_999) == "image_too_large"
    assert code(data, REGION, max_pixels=TILE * TILE * 3 - 1) == "image_too_large", "a tile counts as an image does"
    assert code(slide_bytes(SLIDE, sparse=True, kept=[0, 5, 7]), (120, 70, 20, 20)) == "bad_request", "a tile is not there"


def frames_of(syntax: str) -> list[bytes]:
    return [codestream(tile, syntax) for tile in tiles_of(SLIDE)]


def with_frames(syntax: str, streams: list[bytes], table: str = "basic") -> bytes:
    return slide_bytes(SLIDE, syntax, lambda file: pixel_data(file, streams, table))


@pytest.mark.parametrize("table", ["basic", "none", "extended"])
@pytest.mark.parametrize("syntax", [JPEG, JPEG2000])
def test_frames_that_are_missing_or_too_many(syntax: str, table: str, nothing_decoded: None) -> None:
    frames = frames_of(syntax)
    assert code(with_frames(syntax, frames[:-1], table)) == "inconsistent_image"
    assert code(with_frames(syntax, [*frames, frames[0]], table)) == "inconsistent_image"


@pytest.mark.parametrize(("attribute", "sizes"), [("the size", (32, 64)), ("swapped sizes", (128, 32))])
def test_codestreams_of_another_size(attribute: str, sizes: tuple[int, int]) -> None:
    for syntax in (JPEG, JPEG2000):
        streams = frames_of(syntax)
        streams[5] = codestream(noise(*sizes), syntax)
        data = with_frames(syntax, streams)
        assert code(data) == "inconsistent_image"
        read_image(data, region=(0, 0, 20, 20))  # the control: the other tiles are as they were


def lie(data: bytes, tag: bytes, entry: int, change: int, width: int) -> bytes:
    """Change an entry of an offset table; ``tag`` is the bytes before its first one."""
    at = data.index(tag) + len(tag) + entry * width
    form = "<I" if width == 4 else "<Q"
    (value,) = struct.unpack_from(form, data, at)
    return data[:at] + struct.pack(form, value + change) + data[at + width :]


BASIC = struct.pack("<HHI", 0xFFFE, 0xE000, 4 * 12)
EXTENDED, LENGTHS = (struct.pack("<HH2sHI", 0x7FE0, number, b"OV", 0, 8 * 12) for number in (1, 2))


@pytest.mark.parametrize("entry", [0, 5, 11])
@pytest.mark.parametrize("change", [2, 100_000])
def test_offset_tables_that_lie(entry: int, change: int, nothing_decoded: None) -> None:
    basic, extended = slide_bytes(SLIDE, JPEG), slide_bytes(SLIDE, JPEG, table="extended")
    assert code(lie(basic, BASIC, entry, change, 4)) == "inconsistent_image"
    assert code(lie(extended, EXTENDED, entry, change, 8)) == "inconsistent_image"
    assert code(lie(extended, LENGTHS, entry, change, 8)) == "inconsistent_image"


def test_an_offset_table_that_names_the_frames_in_another_order(nothing_decoded: None) -> None:
    data = slide_bytes(SLIDE, JPEG)
    at = data.index(BASIC) + len(BASIC)
    first, second = data[at + 4 : at + 8], data[at + 8 : at + 12]
    assert first != second
    assert code(data[: at + 4] + second + first + data[at + 12 :]) == "inconsistent_image"


@pytest.mark.parametrize("syntax", [EXPLICIT, JPEG])
def test_files_that_end_early(syntax: str) -> None:
    data = slide_bytes(SLIDE, syntax, sparse=True)
    for keep in (0.05, 0.3, 0.9, 0.999):
        assert code(data[: int(len(data) * keep)]) in {"not_decodable", "no_pixel_data", "inconsistent_image"}


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"]
)
def test_other_transfer_syntaxes(syntax: str) -> None:
    assert code(relabelled(slide_bytes(SLIDE), syntax)) == "unsupported_transfer_syntax"


def test_compressed_and_uncompressed_are_not_mixed_up() -> None:
    assert code(relabelled(slide_bytes(SLIDE, JPEG), EXPLICIT)) in {"inconsistent_image", "unsupported_transfer_syntax"}
    native = slide_bytes(SLIDE, PhotometricInterpretation="YBR_FULL_422")
    assert code(relabelled(native, JPEG)) == "inconsistent_image"
    assert code(relabelled(slide_bytes(SLIDE), IMPLICIT)) == "inconsistent_image"


# What is made to be dear


def bomb(tag: tuple[int, int], items: int, undefined: bool) -> Callable[[bytes], bytes]:
    """Put a sequence of empty items before the pixel data (or in the place of the same sequence)."""
    content = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * items
    head = struct.pack("<HH2sHI", *tag, b"SQ", 0, 0xFFFFFFFF if undefined else len(content))
    whole = head + content + (struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if undefined else b"")

    def put(data: bytes) -> bytes:
        before = (0x5200, 0x9229, b"SQ") if tag[0] < 0x5200 else (0x7FE0, 0x0010, b"OB")
        at = data.index(struct.pack("<HH2s", *before))
        return data[:at] + whole + data[at:]

    return put


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("tag", [(0x0040, 0x0560), (0x5200, 0x9230)])
def test_a_million_items_are_refused_without_being_read(tag: tuple[int, int], undefined: bool, nothing_decoded: None) -> None:
    sparse = slide_bytes(SLIDE, sparse=tag[0] < 0x5200, DimensionOrganizationType="TILED_SPARSE")
    data = bomb(tag, 1_000_000, undefined)(sparse)
    tracemalloc.start()
    try:
        assert code(data) in {"image_too_large", "inconsistent_image"}
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 40_000_000


def test_fragments_without_end_are_refused(nothing_decoded: None) -> None:
    data = slide_bytes(SLIDE, JPEG)
    end = data.rindex(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    data = data[:end] + (struct.pack("<HHI", 0xFFFE, 0xE000, 2) + b"\0\0") * 1_000_000 + data[end:]
    assert code(data) == "inconsistent_image"


def test_functional_groups_beyond_the_limit(nothing_decoded: None) -> None:
    assert code(slide_bytes(SLIDE, sparse=True), max_header_bytes=1000) == "image_too_large"


def test_a_slide_is_not_taken_for_an_image(nothing_decoded: None) -> None:
    """The class of the data set counts, whatever the meta header says: then the functional groups are in the way."""
    data = slide_bytes(SLIDE)
    uid = b"1.2.840.10008.5.1.4.1.1.77.1.6"
    assert data.count(uid) == 2
    at = data.index(uid)
    other = b"1.2.840.10008.5.1.4.1.1.77.1.4"
    assert code(data[:at] + other + data[at + len(uid) :]) == "multi_frame"
    at = data.rindex(uid)
    assert code(data[:at] + other + data[at + len(uid) :]) == "inconsistent_image"


def test_mutated_slides_are_read_or_refused() -> None:
    """Any byte of the header may be wrong: there is an image or a code, and pixels only of the region's size."""
    rng = np.random.default_rng(0)
    codes = set()
    for sparse in (False, True):
        whole = slide_bytes(SLIDE, JPEG, sparse=sparse)
        end = whole.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OB"))
        for _ in range(150):
            data = bytearray(whole)
            for at in rng.integers(132, end + 200, 3):
                data[at] ^= 1 << int(rng.integers(8))
            try:
                image = read_image(bytes(data), region=REGION)
            except Refusal as refusal:
                codes.add(refusal.code)
            else:
                assert image.pixels.shape == (20, 20, 3)
    assert {"not_decodable", "inconsistent_image"} <= codes
