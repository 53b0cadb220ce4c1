"""DICOM files made for tests: small, whole, and easy to spoil."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation

EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"


def ramp(rows: int = 24, columns: int = 32, bits: int = 12) -> NDArray[np.uint16]:
    """Grey values that use all of ``bits``."""
    return np.linspace(0, 2**bits - 1, rows * columns).reshape(rows, columns).astype(np.uint16 if bits > 8 else np.uint8)


def dataset(pixels: NDArray[Any], bits: int | None = None, photometric: str = "", **attributes: Any) -> Dataset:
    """A Digital X-Ray data set around native pixels; ``attributes`` are set last, and None removes one."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = DigitalXRayImageStorageForPresentation
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = UID("2.25.1")
    file.Modality, file.BodyPartExamined, file.ViewPosition = "DX", "CHEST", "PA"
    file.PatientName, file.PatientID, file.PatientAge = "Doe^Jane", "ID-1", "050Y"
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    file.PhotometricInterpretation = photometric or ("RGB" if pixels.ndim == 3 else "MONOCHROME2")
    if pixels.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = 8 * pixels.dtype.itemsize
    file.BitsStored = bits or file.BitsAllocated
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    file.PixelData = data + b"\x00" * (len(data) % 2)
    file["PixelData"].VR = "OW" if file.BitsAllocated > 8 else "OB"
    for keyword, value in attributes.items():
        if value is None:
            delattr(file, keyword)
        else:
            setattr(file, keyword, value)
    return file


def written(file: Dataset, syntax: str | None = None) -> bytes:
    if syntax is not None:
        file.file_meta.TransferSyntaxUID = UID(syntax)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: NDArray[Any], bits: int | None = None, photometric: str = "", **attributes: Any) -> bytes:
    return written(dataset(pixels, bits, photometric, **attributes))


def compressed(codestream: bytes, syntax: str, pixels: NDArray[Any], bits: int | None = None, **attributes: Any) -> bytes:
    """A file whose pixel data is a codestream that somebody else made of ``pixels``."""
    file = dataset(pixels, bits)
    file.PixelData = encapsulate([codestream])
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    for keyword, value in attributes.items():
        setattr(file, keyword, value)
    return written(file, syntax)


def relabelled(data: bytes, syntax: str) -> bytes:
    """The same file under another transfer syntax UID."""
    position = data.index(b"\x02\x00\x10\x00UI", 132)
    length = int.from_bytes(data[position + 6 : position + 8], "little")
    uid = syntax.encode() + b"\x00" * (len(syntax) % 2)
    spoiled = data[: position + 6] + len(uid).to_bytes(2, "little") + uid + data[position + 8 + length :]
    group = spoiled.index(b"\x02\x00\x00\x00UL\x04\x00", 132) + 8
    group_length = int.from_bytes(spoiled[group : group + 4], "little") + len(uid) - length
    return spoiled[:group] + group_length.to_bytes(4, "little") + spoiled[group + 4 :]


def element(group: int, number: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    """One explicit little-endian element, its length as told."""
    value += b"\x00" * (len(value) % 2)
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", group, number, vr.encode())
    return head + (struct.pack("<HI", 0, size) if vr in ("OB", "OW", "SQ", "UN") else struct.pack("<H", size)) + value


def raw_file(body: bytes, syntax: str = EXPLICIT) -> bytes:
    """A file of hand-written elements, deflated where the syntax says so."""
    if syntax == DEFLATED:
        engine = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        body = engine.compress(body) + engine.flush()
    return b"\x00" * 128 + b"DICM" + element(2, 0x10, "UI", syntax.encode()) + body


def raw_header(rows: int, columns: int, frames: int | None = None, samples: int = 1) -> bytes:
    """Elements up to the pixel data, 12 of 16 bits."""
    short = {0x100: 16, 0x101: 12, 0x102: 11, 0x103: 0}
    body = element(8, 0x60, "CS", b"DX") + element(0x28, 2, "US", struct.pack("<H", samples))
    body += element(0x28, 4, "CS", b"MONOCHROME2 ")
    if frames is not None:
        body += element(0x28, 8, "IS", f"{frames:<8}".encode())
    body += element(0x28, 0x10, "US", struct.pack("<H", rows)) + element(0x28, 0x11, "US", struct.pack("<H", columns))
    return body + b"".join(element(0x28, number, "US", struct.pack("<H", value)) for number, value in short.items())
