"""DICOM headers, renderings and identity, on made files."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from models.dicom_header import age_years
from models.errors import Refusal
from models.image import Limits
from models.imaging import Image, read_image
from tests.models.dicom_files import DEFLATED, compressed, dataset, dicom, element, ramp, raw_file, raw_header, written

PIXELS = ramp()


def read(**attributes: Any) -> Image:
    return read_image(dicom(PIXELS, 12, **attributes))


def table(values: list[int], first: int = 0, bits: int = 16) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = values
    item["LUTData"].VR = "US"
    return item


# Rendering: equal to pydicom's


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"RescaleSlope": "2.5", "RescaleIntercept": "-1024"},
        {"WindowCenter": "2000", "WindowWidth": "1500"},
        {"WindowCenter": ["100", "2000"], "WindowWidth": ["50", "1500"]},
        {"WindowCenter": "2000.5", "WindowWidth": "0.5", "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": "2000", "WindowWidth": "700", "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": "-1", "RescaleIntercept": "4095", "WindowCenter": "2000", "WindowWidth": "1500"},
        {"VOILUTSequence": [table([5, 4, 9, 1000] * 100, 1000)]},
        {"VOILUTSequence": [table(list(range(0, 4096, 2)), 17, 12)], "WindowCenter": "2000", "WindowWidth": "10"},
        {"ModalityLUTSequence": [table(list(range(4096)))]},
        {"ModalityLUTSequence": [table([7, 5, 900] * 1000, 100)], "WindowCenter": "300", "WindowWidth": "500"},
    ],
)
def test_it_equals_pydicom(attributes: dict[str, Any]) -> None:
    for bits, pixels in ((12, PIXELS), (12, (PIXELS.astype(np.int16) - 2048).astype(np.int16))):
        data = dicom(pixels, bits, **attributes)
        file = pydicom.dcmread(io.BytesIO(data))
        expected = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file)
        image = read_image(data)
        assert np.allclose(image.rendered(), expected, rtol=1e-6, atol=1e-2)
        if image.rendering.after_resizing:
            assert np.allclose(image.rendering.evaluate(image.pixels.astype(np.float32)), expected, rtol=1e-6, atol=1e-2)


def test_tables_and_sigmoids_are_not_for_interpolated_values() -> None:
    assert read(WindowCenter="2000", WindowWidth="1500").rendering.after_resizing
    assert not read(WindowCenter="2000", WindowWidth="1500", VOILUTFunction="SIGMOID").rendering.after_resizing
    assert not read(VOILUTSequence=[table([1, 2, 3])]).rendering.after_resizing
    assert not read(ModalityLUTSequence=[table([1, 2, 3])]).rendering.after_resizing


def test_monochrome1_turns_the_range_round() -> None:
    window = {"WindowCenter": "2000", "WindowWidth": "1500"}
    straight = read(**window)
    inverted = read(PhotometricInterpretation="MONOCHROME1", **window)
    assert np.allclose(inverted.rendered(), 4095 - straight.rendered(), atol=1e-3)
    assert np.allclose(inverted.rendering.evaluate(inverted.pixels), inverted.rendered(), atol=1e-2)


def test_a_palette_is_looked_up() -> None:
    lut = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype("<u2")
    colours = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, row in zip(("Red", "Green", "Blue"), lut, strict=True)
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", row.tobytes()))
    }
    data = dicom(ramp(bits=8), photometric="PALETTE COLOR", **colours)
    file = pydicom.dcmread(io.BytesIO(data))
    image = read_image(data)
    assert np.array_equal(image.rendered(), apply_color_lut(file.pixel_array, file))
    assert image.is_colour
    assert image.rendering.high == 65535
    grey = {**colours, **{f"{name}PaletteColorLookupTableData": lut[0].tobytes() for name in ("Red", "Green", "Blue")}}
    assert not read_image(dicom(ramp(bits=8), photometric="PALETTE COLOR", **grey)).is_colour


def test_ybr_full_422_shares_chroma_between_two_pixels() -> None:
    luma = ramp(4, 6, 8)
    native = np.full((4, 3, 4), 128, np.uint8)
    native[..., :2] = luma.reshape(4, 3, 2)
    file = dataset(np.zeros((4, 6, 3), np.uint8), photometric="YBR_FULL_422")
    file.PixelData = native.tobytes()
    image = read_image(written(file))
    assert np.abs(image.pixels.astype(int) - luma[:, :, None]).max() <= 1
    assert not image.is_colour


def test_overlays_in_unused_bits_are_masked_and_others_are_not_allowed() -> None:
    spoiled = PIXELS | np.uint16(0x8000)
    with pytest.raises(Refusal, match="inconsistent_image"):
        read_image(dicom(spoiled, 12))
    file = dataset(spoiled, 12)
    file.add_new(0x60000010, "US", 24)
    file.add_new(0x60000011, "US", 32)
    file.add_new(0x60000100, "US", 16)
    file.add_new(0x60000102, "US", 15)
    assert np.array_equal(read_image(written(file)).pixels, PIXELS)
    file.add_new(0x60003000, "OW", bytes(96))  # an overlay with data of its own explains no stray bits
    with pytest.raises(Refusal, match="inconsistent_image"):
        read_image(written(file))


# Codecs


@pytest.mark.parametrize("name", ["native", "big endian", "deflated", "rle", "jpeg lossless", "jpeg-ls", "jpeg 2000", "htj2k"])
@pytest.mark.parametrize("bits", [8, 12, 15, 16])
def test_lossless_syntaxes_are_bit_exact(name: str, bits: int) -> None:
    pixels = ramp(33, 47, bits)
    data = dicom(pixels, bits)
    if name == "deflated":
        data = written(dataset(pixels, bits), DEFLATED)
    elif name == "big endian":
        file = dataset(pixels, bits)
        file.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes() + b"\x00" * (pixels.nbytes % 2)
        file["PixelData"].VR = "OW" if bits > 8 else "OB"
        data = big_endian(file)
    elif name == "rle":
        file = dataset(pixels, bits)
        file.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
        data = written(file)
    elif name == "jpeg lossless":
        stream = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits)
        data = compressed(stream, "1.2.840.10008.1.2.4.70", pixels, bits)
    elif name == "jpeg-ls":
        stream = imagecodecs.jpegls_encode(pixels)
        data = compressed(stream, "1.2.840.10008.1.2.4.80", pixels, bits)
    elif name == "jpeg 2000":
        stream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=bits)
        data = compressed(stream, "1.2.840.10008.1.2.4.90", pixels, bits)
    elif name == "htj2k":
        stream = imagecodecs.htj2k_encode(pixels, reversible=True)
        data = compressed(stream, "1.2.840.10008.1.2.4.201", pixels, bits)
    image = read_image(data)
    assert np.array_equal(image.pixels, pixels)
    assert image.pixels.dtype == pixels.dtype


def big_endian(file: Dataset) -> bytes:
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    buffer = io.BytesIO()
    file.preamble = bytes(128)
    pydicom.dcmwrite(buffer, file, implicit_vr=False, little_endian=False)
    return buffer.getvalue()


def test_eight_bits_in_big_endian_words() -> None:
    pixels = ramp(6, 5, 8)
    file = dataset(pixels)
    words = pixels.tobytes() + b"\x00" * (pixels.size % 2)
    file.PixelData = np.frombuffer(words, "<u2").astype(">u2").tobytes()
    file["PixelData"].VR = "OW"
    assert np.array_equal(read_image(big_endian(file)).pixels, pixels)


def test_a_frame_may_come_in_fragments() -> None:
    stream = imagecodecs.jpegls_encode(PIXELS)
    whole = read_image(compressed(stream, "1.2.840.10008.1.2.4.80", PIXELS, 16))
    file = dataset(PIXELS, 16)
    file.PixelData = encapsulate([stream], fragments_per_frame=3)
    file["PixelData"].is_undefined_length = True
    parts = read_image(written(file, "1.2.840.10008.1.2.4.80"))
    assert np.array_equal(parts.pixels, whole.pixels)
    assert parts.sha256 == whole.sha256


def test_jpeg_2000_has_a_limit_of_its_own_after_reduction() -> None:
    pixels = ramp(256, 256, 12)
    stream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=12)
    data = compressed(stream, "1.2.840.10008.1.2.4.90", pixels, 12)
    limits = Limits(max_wavelet_pixels=128 * 128)
    with pytest.raises(Refusal, match="image_too_large"):
        read_image(data, limits=limits)
    assert read_image(data, target=(64, 64), limits=limits).rows == 256


def test_floating_point_pixels_are_refused() -> None:
    body = raw_header(4, 4) + element(0x7FE0, 0x0008, "OW", bytes(64))
    with pytest.raises(Refusal, match="unsupported_transfer_syntax"):
        read_image(raw_file(body))


def test_an_object_without_pixels_is_refused() -> None:
    with pytest.raises(Refusal, match="no_pixel_data"):
        read_image(raw_file(element(8, 0x60, "CS", b"SR")))


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1", "1.2.3"])
def test_unlisted_transfer_syntaxes_are_refused(uid: str) -> None:
    with pytest.raises(Refusal, match="unsupported_transfer_syntax"):
        read_image(raw_file(raw_header(4, 4), uid))


def test_a_deflated_file_that_is_cut_is_refused() -> None:
    data = written(dataset(PIXELS, 12), DEFLATED)
    assert np.array_equal(read_image(data).pixels, PIXELS)
    with pytest.raises(Refusal):
        read_image(data[:-200])


# Header


def test_the_header_keeps_what_results_need_and_nothing_that_can_fail() -> None:
    private = {0x00091001: ("LO", "secret"), 0x00090010: ("LO", "Someone")}
    file = dataset(PIXELS, 12, PixelSpacing=["0.2", "0.3"], StudyInstanceUID="2.25.9")
    for tag, (vr, value) in private.items():
        file.add_new(tag, vr, value)
    file.RequestAttributesSequence = [Dataset()]
    file.add_new(0x60003000, "OW", bytes(96))
    header = read_image(written(file)).header
    assert header is not None
    assert (header.PatientName, header.StudyInstanceUID, header.SOPInstanceUID) == ("Doe^Jane", "2.25.9", "2.25.1")
    assert not any(e.tag.is_private or e.VR == "SQ" or e.tag.group >= 0x5000 for e in header)
    assert "PixelData" not in header


def test_an_unreadable_element_is_left_out_unless_the_image_depends_on_it() -> None:
    bad = element(0x10, 0x1030, "DS", b"heavy!")  # PatientWeight
    start, end = raw_header(4, 4), element(0x7FE0, 0x10, "OW", bytes(range(0, 32)))
    end = end.replace(bytes(range(0, 32)), b"".join(bytes([i, i % 16]) for i in range(16)))
    image = read_image(raw_file(start[:10] + bad + start[10:] + end))
    assert image.header is not None
    assert "PatientWeight" not in image.header
    slope = element(0x28, 0x1053, "DS", b"steep!") + element(0x28, 0x1052, "DS", b"0 ")
    with pytest.raises(Refusal, match="inconsistent_image"):
        read_image(raw_file(start + slope + end))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PixelSpacing": ["0.2", "0.3"], "ImagerPixelSpacing": ["0.4", "0.4"]}, (0.2, 0.3)),
        ({"ImagerPixelSpacing": ["0.4", "0.4"]}, (0.4, 0.4)),
        ({"PixelSpacing": ["0", "0.3"]}, None),
        ({"PixelSpacing": ["-1", "-1"]}, None),
        ({}, None),
    ],
)
def test_spacing_is_positive_or_none(attributes: dict[str, Any], expected: tuple[float, float] | None) -> None:
    assert read(**attributes).spacing_mm == expected


@pytest.mark.parametrize(
    ("attributes", "years"),
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "026W"}, 26 * 7 / 365.25),
        ({"PatientAge": "010D"}, 10 / 365.25),
        ({"PatientAge": "45"}, None),
        ({"PatientBirthDate": "19700615", "StudyDate": "20200614"}, 49),
        ({"PatientBirthDate": "19700615", "StudyDate": "20200615"}, 50),
        ({"PatientBirthDate": "20200101", "StudyDate": "20200301"}, 60 / 365.25),
        ({"PatientBirthDate": "20210101", "StudyDate": "20200301"}, None),
        ({"PatientBirthDate": "19700230", "StudyDate": "20200301"}, None),
        ({}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_age(attributes: dict[str, str], years: float | None) -> None:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    assert age_years(header) == (None if years is None else pytest.approx(years))
