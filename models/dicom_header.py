"""The DICOM image header: what is kept of it, what must hold within it, and the few values that are derived from it."""

from __future__ import annotations

import io
import math
from datetime import date
from typing import Any, BinaryIO, cast

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from models.dicom_file import Counted
from models.dicom_identity import JUDGED
from models.dicom_pixels import PixelHeader
from models.dicom_syntaxes import Syntax
from models.errors import Refusal
from models.image import Limits

SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
"""Photometric interpretation -> samples a pixel. Whatever is not here is refused."""
CODINGS = {
    "YBR_FULL_422": ("native", "deflated", "jpeg"),
    "YBR_ICT": ("jpeg2000",),
    "YBR_RCT": ("jpeg2000",),
    "PALETTE COLOR": ("native", "deflated", "rle", "jpegls", "jpeg2000"),
}
"""Where a photometric interpretation may occur, if not everywhere (PS3.5 section 8.2)."""
_LUTS = ("ModalityLUTSequence", "VOILUTSequence")
_PALETTES = tuple(
    f"{kind}{colour}PaletteColorLookupTableData" for kind in ("", "Segmented") for colour in ("Red", "Green", "Blue")
)
LONGEST = 16_384
"""Bytes of a value that is kept. A text of numbers is converted at some microseconds a number; only palettes are longer."""
_DAYS = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}


def flatten(raw: Dataset, syntax: Syntax, limits: Limits) -> Dataset:
    """Return the standard top-level elements of a data set, converted, so that no later access can fail.

    Sequences are left out, except the look-up tables (first item, as plain numbers): sequences nest, and reading deep ones
    copies their bytes once a level. Private elements, overlays and curves, and elements that cannot be converted are left
    out too.

    Raises
    ------
    Refusal
        ``inconsistent_image`` if an element that decides how the image is rendered or judged cannot be read;
        ``multi_frame`` for an object whose look-up tables lie in functional groups.
    """
    flat = Dataset()
    flat.set_original_encoding(syntax.implicit, True, "iso8859")
    if "SharedFunctionalGroupsSequence" in raw or "PerFrameFunctionalGroupsSequence" in raw:
        raise Refusal("multi_frame", "Multi-frame objects, with functional groups, are not read here.")
    for tag in list(raw.keys()):
        if tag.is_private or tag.group >= 0x5000 or _vr(raw, tag) in ("SQ", "UN"):
            continue
        if _length(raw, tag) > LONGEST and tag not in _PALETTE_TAGS:
            if tag in _JUDGED_TAGS:
                raise Refusal("inconsistent_image", "An attribute that the image depends on is too long.")
            continue
        try:
            element = raw[tag]
            if element.VR in ("DS", "IS") and isinstance(element.value, str) and element.value.strip():
                raise ValueError("text where a number belongs")  # which pydicom hands on as it is
            flat.add(element)
        # Any element of a malformed file can fail to convert, in as many ways as pydicom has value representations
        except Exception as error:
            if tag in _JUDGED_TAGS:
                raise Refusal("inconsistent_image", "An attribute that the image depends on cannot be read.") from error
    for keyword in _LUTS:
        _count_items(raw, Tag(keyword))
        if raw.get(keyword):
            table = _table(raw[keyword].value[0], syntax, limits)
            flat.add(DataElement(Tag(keyword), "SQ", Sequence([table])))
    for keyword in _PALETTES:
        if keyword in flat and syntax.big_endian:
            words = np.frombuffer(flat[keyword].value, ">u2")
            flat[keyword].value = words.astype("<u2").tobytes()
    return flat


_JUDGED_TAGS = frozenset(Tag(keyword) for keyword in JUDGED)
_PALETTE_TAGS = frozenset(Tag(keyword) for keyword in _PALETTES)


def _length(raw: Dataset, tag: BaseTag) -> int:
    value = _raw_value(raw, tag)
    return 0 if value is None else len(value)


def _raw_value(raw: Dataset, tag: BaseTag) -> bytes | None:
    """Return the bytes of an element that pydicom has not converted yet; None of others."""
    element: Any = raw.get_item(tag)
    return element.value if isinstance(element, RawDataElement) and isinstance(element.value, bytes) else None


def _vr(raw: Dataset, tag: BaseTag) -> str:
    element = raw.get_item(tag)
    vr = None if element is None else element.VR
    if vr in (None, "UN"):
        try:
            return str(dictionary_VR(tag))
        except KeyError:
            return "UN"
    return str(vr)


def _count_items(raw: Dataset, tag: BaseTag) -> None:
    """Refuse a sequence of defined length that holds too much: pydicom converts it when it is asked for, all at once."""
    value = _raw_value(raw, tag)
    if value is not None:
        element: Any = raw.get_item(tag)
        counted = cast(BinaryIO, Counted(io.BytesIO(value)))
        read_sequence(counted, element.is_implicit_VR, element.is_little_endian, len(value), "iso8859")


def _table(item: Dataset, syntax: Syntax, limits: Limits) -> Dataset:
    descriptor = [int(value) for value in item.LUTDescriptor]
    data: Any = item.LUTData
    if len(data) > limits.max_header_bytes or len(descriptor) != 3:
        raise Refusal("inconsistent_image", "A look-up table is malformed.")
    if isinstance(data, bytes):
        data = np.frombuffer(data, ">u2" if syntax.big_endian else "<u2").tolist()
    values = [int(value) for value in data] if isinstance(data, list | MultiValue) else [int(data)]
    if len(values) < (descriptor[0] or 1 << 16):
        raise Refusal("inconsistent_image", "A look-up table is shorter than its descriptor says.")
    table = Dataset()
    table.add(DataElement(Tag("LUTDescriptor"), "SS" if descriptor[1] < 0 else "US", descriptor))
    table.add(DataElement(Tag("LUTData"), "US", values))
    return table


def number_in(header: Dataset, keyword: str, default: int | None = None) -> int:
    """Return an integer attribute, or the default where it is absent or empty.

    Raises
    ------
    Refusal
        ``inconsistent_image`` if it is not there or not one number.
    """
    value = header.get(keyword)
    if value is None or value == "":
        value = default
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal("inconsistent_image", f"{keyword} is missing or not one number.")
    return int(value)


def pixel_header(header: Dataset, coding: str, limits: Limits) -> PixelHeader:
    """Check the attributes that describe the pixels against each other and against the limits.

    Parameters
    ----------
    header : Dataset
        From :func:`flatten`.
    coding : str
        ``Syntax.coding``.
    limits : Limits

    Raises
    ------
    Refusal
        ``inconsistent_image``, ``unsupported_transfer_syntax``, ``multi_frame`` or ``image_too_large``.
    """
    photometric = str(header.get("PhotometricInterpretation", "")).strip()
    rows, columns = number_in(header, "Rows"), number_in(header, "Columns")
    samples, frames = number_in(header, "SamplesPerPixel"), number_in(header, "NumberOfFrames", 1)
    allocated, stored = number_in(header, "BitsAllocated"), number_in(header, "BitsStored")
    high, signed = number_in(header, "HighBit"), number_in(header, "PixelRepresentation")
    if photometric not in SAMPLES or coding not in CODINGS.get(photometric, (coding,)):
        raise Refusal("unsupported_transfer_syntax", "The photometric interpretation is not read here.")
    if samples != SAMPLES[photometric]:
        raise Refusal("inconsistent_image", "SamplesPerPixel does not fit the photometric interpretation.")
    if rows < 1 or columns < 1 or frames < 1:
        raise Refusal("inconsistent_image", "Rows, Columns or NumberOfFrames is not positive.")
    if frames > 1:
        raise Refusal("multi_frame")
    if rows * columns * samples > limits.max_pixels:
        raise Refusal("image_too_large")
    if allocated not in (8, 16, 32):
        raise Refusal("unsupported_transfer_syntax", "Pixels are read with 8, 16 or 32 bits allocated only.")
    if not 1 < stored <= allocated or high != stored - 1 or signed not in (0, 1):
        raise Refusal("inconsistent_image", "BitsAllocated, BitsStored, HighBit and PixelRepresentation contradict each other.")
    if samples == 3 and (signed or (photometric != "RGB" and stored != 8)):
        raise Refusal("unsupported_transfer_syntax", "Colour is read as unsigned RGB, or as YBR of 8 bits.")
    if photometric == "PALETTE COLOR" and allocated == 32:
        raise Refusal("unsupported_transfer_syntax", "Palettes are read with 8 or 16 bits allocated only.")
    if photometric == "YBR_FULL_422" and coding != "jpeg" and columns % 2:
        raise Refusal("inconsistent_image", "YBR_FULL_422 needs an even number of columns.")
    needs_planar = samples == 3 and coding in ("native", "deflated")
    planar = number_in(header, "PlanarConfiguration", None if needs_planar else 0)
    if planar not in (0, 1) or (planar and photometric == "YBR_FULL_422"):
        raise Refusal("inconsistent_image", "PlanarConfiguration is neither 0 nor 1, or does not fit.")
    if header.get("PixelPresentation") in ("MIXED", "COLOR"):
        raise Refusal("unsupported_transfer_syntax", "Grey images with a supplemental palette are not read here.")
    shape = str(header.get("PresentationLUTShape", "") or "").strip()
    if (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        raise Refusal("inconsistent_image", "PresentationLUTShape contradicts the photometric interpretation.")
    return PixelHeader(rows, columns, samples, photometric, allocated, stored, bool(signed), planar)


def has_embedded_overlay(raw: Dataset, facts: PixelHeader) -> bool:
    """Tell whether overlays lie in the unused bits of the pixels (retired, PS3.3 C.9.2): those bits are masked."""
    for tag in raw.keys():  # noqa: SIM118  # iterating a Dataset itself converts every element
        if 0x6000 <= tag.group <= 0x60FF and tag.element == 0x0102:
            position = raw[tag].value
            embedded = Tag(tag.group, 0x3000) not in raw and isinstance(position, int)
            if embedded and facts.stored <= position < facts.allocated:
                return True
    return False


def spacing_mm(header: Dataset) -> tuple[float, float] | None:
    """Return (row, column) spacing in mm from PixelSpacing, else ImagerPixelSpacing; None unless both are positive."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        value = header.get(keyword)
        if isinstance(value, MultiValue) and len(value) == 2:
            row, column = float(value[0]), float(value[1])
            if 0 < row < math.inf and 0 < column < math.inf:
                return row, column
    return None


def stated(header: Dataset, keyword: str) -> str:
    """Return a code string in capitals, stripped; empty if it is absent or not a single value."""
    value = header.get(keyword)
    return value.strip().upper() if isinstance(value, str) else ""


def age_years(header: Dataset) -> float | None:
    """Return the patient's age at the study, in years: PatientAge, else from birth date and study date; else None."""
    age = stated(header, "PatientAge")
    if len(age) == 4 and age[:3].isdigit() and age[3] in _DAYS:
        return int(age[:3]) / _DAYS[age[3]]
    born, studied = _date(header.get("PatientBirthDate")), _date(header.get("StudyDate"))
    if born is None or studied is None or studied < born:
        return None
    years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    return float(years) if years >= 2 else (studied - born).days / 365.25


def _date(value: Any) -> date | None:
    text = str(value or "").strip()
    if len(text) != 8 or not text.isdigit():
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None
