"""The identity of a DICOM image: a digest of all that affects how it is rendered or judged, and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

_PALETTE = tuple(
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue", "Alpha")
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
JUDGED = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "PixelAspectRatio"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape", "PixelPresentation"),
    *_PALETTE,
    *("TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
    *("PixelSpacing", "ImagerPixelSpacing", "Modality", "BodyPartExamined", "ViewPosition"),
    "QualityControlSubject",
)
"""Attributes in the digest, beside the transfer syntax, the pixel data and the age in years."""


def digest(
    header: Dataset, transfer_syntax: str, age: float | None, stored: Iterable[bytes | memoryview], layout: str = ""
) -> str:
    """Return the SHA-256 of an image.

    Parameters
    ----------
    header : Dataset
        From ``models.dicom_header.flatten``.
    transfer_syntax : str
        UID.
    age : float or None, years
    stored : iterable of bytes or memoryview
        Pixel data without padding, piece by piece; of compressed data the fragments. How it is cut does not count.
    layout : str
        Of a slide: where its frames lie.

    Notes
    -----
    One line an attribute, ``keyword=value``, sorted; numbers as Python writes a float, so that "1" and "1.00" are equal; an
    empty attribute counts as absent. The pixel bytes follow after an empty line.
    """
    lines = [f"{keyword}={_canonical(header[keyword].value)}" for keyword in JUDGED if keyword in header]
    lines = sorted(line for line in lines if not line.endswith("="))
    lines.append(f"TransferSyntaxUID={transfer_syntax}")
    lines.append(f"age={'' if age is None else round(age, 2)}")
    if layout:
        lines.append(f"layout={layout}")
    engine = hashlib.sha256(("\n".join(lines) + "\n\n").encode())
    for piece in stored:
        engine.update(piece)
    return engine.hexdigest()


def _canonical(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Sequence):
        return ";".join(f"{element.keyword}:{_canonical(element.value)}" for item in value for element in item)
    if isinstance(value, MultiValue | list | tuple):
        return "\\".join(_canonical(part) for part in value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value).strip() if isinstance(value, str) else repr(float(value))
