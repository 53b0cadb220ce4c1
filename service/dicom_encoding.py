"""The sequences of a report, encoded for a file: as pydicom does it, byte for byte, in a fraction of the time.

A report is a tree of 150 and more items. pydicom looks through all that is below an item for ambiguous elements before it writes
it, so it looks at an item as often as it is deep, and encodes every code anew; that took longer than the prediction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag

_ITEM = struct.pack("<HH", 0xFFFE, 0xE000)
_TEXTS = frozenset({"CS", "LO", "SH", "UI", "UT"})
"""What is worth remembering: codes, and what says how items are related. Numbers differ each time."""
_REMEMBERED = 4096

_Encodings = tuple[str, ...]


def encoded(dataset: Dataset) -> Dataset:
    """Return a data set with the same elements, whose sequences are bytes already; pydicom writes these as they are.

    Parameters
    ----------
    dataset : Dataset
        A report of ours: without elements of an ambiguous value representation, which pixels have. It is not changed.

    Returns
    -------
    Dataset
        With the same preamble and file meta information; to be written in Explicit VR Little Endian.
    """
    stated = dataset.get("SpecificCharacterSet", "iso8859")
    encodings = (stated,) if isinstance(stated, str) else tuple(stated)
    result = Dataset()
    for element in dataset:
        if element.VR == "SQ":
            content = _items(element.value, encodings)
            result[element.tag] = RawDataElement(element.tag, "SQ", len(content), content, 0, False, True)
        else:
            result[element.tag] = element
    result.preamble, result.file_meta = dataset.preamble, dataset.file_meta
    result.set_original_encoding(False, True, result._character_set)  # or pydicom would decode the bytes again
    return result


def _items(items: Iterable[Dataset], encodings: _Encodings) -> bytes:
    contents = [_content(item, encodings) for item in items]
    return b"".join(_ITEM + struct.pack("<L", len(content)) + content for content in contents)


def _content(item: Dataset, encodings: _Encodings) -> bytes:
    parts = []
    for element in item:
        if element.VR == "SQ":
            content = _items(element.value, encodings)
            parts.append(struct.pack("<HH2sHL", element.tag.group, element.tag.element, b"SQ", 0, len(content)) + content)
        elif element.VR in _TEXTS and isinstance(element.value, str):
            parts.append(_text(element.tag, element.VR, str(element.value), encodings))
        else:
            parts.append(_element(element, encodings))
    return b"".join(parts)


@lru_cache(_REMEMBERED)
def _text(tag: BaseTag, vr: str, value: str, encodings: _Encodings) -> bytes:
    return _element(DataElement(tag, vr, value, already_converted=True), encodings)


def _element(element: DataElement, encodings: _Encodings) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_data_element(buffer, element, list(encodings))
    return buffer.getvalue()
