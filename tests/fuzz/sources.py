"""What the fuzzer damages: drawn DICOM files of every syntax that can be drawn, pictures, forms, and DICOMweb bodies."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pydicom
from pydicom.pixels import compress

from tests.models.dicom_files import DEFLATED, compressed, dataset, dicom, ramp, raw_file, raw_header, written
from tests.models.mutations import value_positions
from tests.models.slides import JPEG as TILES_OF_JPEG
from tests.models.slides import noise, slide_bytes

IMPLICIT, BIG_ENDIAN, RLE = (f"1.2.840.10008.1.2{end}" for end in ("", ".2", ".5"))
JPEG, LOSSLESS, LS, JPEG2000 = (f"1.2.840.10008.1.2.4.{end}" for end in (50, 57, 80, 90))
REGIONS = b'{"type": "Polygon", "coordinates": [[[0, 0], [20, 0], [20, 20], [0, 0]]]}'
EDGE = b"edge"


def _picture(form: str) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(noise(24, 32) if form == "JPEG" else ramp(24, 32, 8)).save(stream, form)
    return stream.getvalue()


def _run_lengths() -> bytes:
    file = dataset(ramp(24, 32, 12), 12)
    compress(file, RLE, generate_instance_uid=False)
    return written(file)


def _big_endian() -> bytes:
    file = dataset(ramp(24, 32, 12), 12)
    file.PixelData = ramp(24, 32, 12).astype(">u2").tobytes()
    file.file_meta.TransferSyntaxUID = pydicom.uid.UID(BIG_ENDIAN)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(stream, file, implicit_vr=False, little_endian=False, enforce_file_format=True)
    return stream.getvalue()


def _looked_up() -> bytes:
    """Of a modality LUT, a VOI LUT and windows."""
    rescaling, window = pydicom.Dataset(), pydicom.Dataset()
    for table, values in ((rescaling, np.arange(4096)[::-1]), (window, np.arange(4096) // 2)):
        table.LUTDescriptor, table.LUTData = [4096, 0, 16], values.astype("<u2").tobytes()
        table["LUTData"].VR = "OW"
    rescaling.ModalityLUTType = "US"
    return dicom(
        ramp(24, 32, 12), 12, ModalityLUTSequence=[rescaling], VOILUTSequence=[window], PhotometricInterpretation="MONOCHROME1"
    )


def _parts(head: str, *parts: tuple[str, bytes]) -> bytes:
    """Return a Content-Type, a line's end, and a body of its parts."""
    body = b"".join(b"--" + EDGE + b"\r\n" + header.encode() + b"\r\n\r\n" + part + b"\r\n" for header, part in parts)
    return head.encode() + b"\n" + body + b"--" + EDGE + b"--\r\n"


def images() -> dict[str, bytes]:
    """Files for :func:`models.imaging.read_image`."""
    grey, eight = ramp(24, 32, 12), ramp(24, 32, 8)
    colours = noise(24, 32)
    frames = dataset(ramp(48, 32, 12), 12, Rows=24, NumberOfFrames=2)
    return {
        "explicit": dicom(
            grey, 12, WindowCenter=2000, WindowWidth=3000, RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"
        ),
        "implicit": written(dataset(grey, 12), IMPLICIT),
        "big_endian": _big_endian(),
        "signed": dicom(ramp(24, 32, 12).astype(np.int16) - 2048, 16, PixelPaddingValue=-2048),
        "looked_up": _looked_up(),
        "colours": dicom(colours, 8),
        "palette": dicom(
            eight,
            8,
            "PALETTE COLOR",
            **{
                f"{colour}PaletteColorLookupTable{part}": value
                for colour in ("Red", "Green", "Blue")
                for part, value in (("Descriptor", [256, 0, 16]), ("Data", np.arange(256, dtype="<u2").tobytes()))
            },
        ),
        "frames": written(frames),
        "deflated": raw_file(
            raw_header(24, 32) + b"\xe0\x7f\x10\x00OW\x00\x00" + (1536).to_bytes(4, "little") + grey.tobytes(), DEFLATED
        ),
        "run_lengths": _run_lengths(),
        "jpeg": compressed(bytes(imagecodecs.jpeg8_encode(eight)), JPEG, eight, 8),
        "jpeg_lossless": compressed(bytes(imagecodecs.ljpeg_encode(grey, bitspersample=12)), LOSSLESS, grey, 12),
        "jpeg_ls": compressed(bytes(imagecodecs.jpegls_encode(grey)), LS, grey, 12),
        "jpeg2000": compressed(
            bytes(imagecodecs.jpeg2k_encode(grey, level=0, codecformat="j2k", bitspersample=12)), JPEG2000, grey, 12
        ),
        "slide": slide_bytes(noise(100, 140), TILES_OF_JPEG),
        "slide_sparse": slide_bytes(noise(100, 140), sparse=True, undefined=True),
        "png": _picture("PNG"),
        "picture": _picture("JPEG"),
    }


def forms() -> dict[str, bytes]:
    """A Content-Type and a body of a form, for :func:`service.wall.read_upload`."""
    image = 'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png'
    regions = 'Content-Disposition: form-data; name="regions"\r\nContent-Type: application/geo+json'
    head = "multipart/form-data; boundary=edge"
    return {
        "form": _parts(head, (image, _picture("PNG"))),
        "form_with_regions": _parts(head, (image, _picture("PNG")), (regions, REGIONS)),
        "raw": b"image/png\n" + _picture("PNG"),
    }


def related() -> dict[str, bytes]:
    """A Content-Type and a body of instances, for :func:`service.stow.receive`."""
    head = 'multipart/related; type="application/dicom"; boundary="edge"'
    small = dicom(ramp(4, 4, 8), 8)
    part = "Content-Type: application/dicom"
    other = f"Content-ID: <1>\r\n{part}; transfer-syntax=1.2.840.10008.1.2.1\r\nContent-Length: {len(small)}"
    return {
        "one": _parts(head, (part, small)),
        "three": _parts(head, (part, small), (other, small), ("Content-Type: image/jpeg", b"\xff\xd8\xff")),
        "empty": _parts(head, (part, b"")),
    }


MAKERS = {"image": images, "form": forms, "related": related}


@cache
def sources(target: str, folder: Path | None = None) -> dict[str, bytes]:
    """Return the sources of a target by name; those of real files begin with ``real/``."""
    found = dict(MAKERS[target]())
    if folder is not None and target == "image":
        files = sorted(path for path in folder.iterdir() if path.suffix != ".csv")
        found |= {f"real/{path.name}": path.read_bytes() for path in files}
    return found


def places(data: bytes, target: str) -> list[int]:
    """Return where damage is likely to matter: the values of a DICOM file, or the punctuation of a body."""
    if target == "image":
        return (value_positions(data) if data[128:132] == b"DICM" else []) or [0]
    return [index for index, byte in enumerate(data[:4096]) if byte in b'\r\n:;=-"']
