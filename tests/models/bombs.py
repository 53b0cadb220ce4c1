"""Files that are small and want to become large; decodes one and reports time and memory: run as a process of its own.

``python tests/models/bombs.py NAME [--plain]``: by Overread, or as a plain reader would.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import time
import zlib
from collections.abc import Callable

import pydicom
from PIL import Image as Pillow

from models.errors import Refusal
from models.imaging import read_image
from tests.models.dicom_files import DEFLATED, EXPLICIT, element, raw_file, raw_header
from tests.models.memory import forget_peak, megabytes

MEGABYTES = 500


def deflated(prefix: bytes, each: bytes = b"") -> bytes:
    """``prefix`` and half a gigabyte of zeros, ``each`` at every megabyte; deflated without being whole in memory."""
    engine = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    megabyte = each + bytes((1 << 20) - len(each))
    parts = [engine.compress(prefix), *(engine.compress(megabyte) for _ in range(MEGABYTES)), engine.flush()]
    return raw_file(b"")[:132] + element(2, 0x10, "UI", DEFLATED.encode()) + b"".join(parts)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    engine = zlib.compressobj(9)
    rows = [engine.compress(bytes(1 + width) * 16) for _ in range(height // 16)]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"".join([*rows, engine.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """The header of a large JPEG over the data of a small one."""
    file = io.BytesIO()
    Pillow.new("L", (8, 8)).save(file, "JPEG")
    data = file.getvalue()
    where = data.index(b"\xff\xc0") + 5
    return data[:where] + struct.pack(">HH", height, width) + data[where + 4 :]


def scans() -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    Pillow.new("L", (2048, 2048)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 2000 + data[-2:]


def rle() -> bytes:
    frame = struct.pack("<16I", 2, 64, 2_000_064, *[0] * 13) + b"\x81\x00" * 2_000_000
    items = element(0xFFFE, 0xE000, "UN", b"")[:4] + bytes(4) + struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame
    pixel_data = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return raw_file(raw_header(100, 100) + pixel_data, "1.2.840.10008.1.2.5")


def nested() -> bytes:
    """Sequences within sequences, a hundred thousand deep, of undefined length."""
    start = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return raw_file(start * 100_000)


def items(count: int, tag: tuple[int, int], defined: bool) -> bytes:
    """A sequence of empty items before an image's own elements."""
    body = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * count
    head = struct.pack("<HH2sHI", *tag, b"SQ", 0, len(body) if defined else 0xFFFFFFFF)
    return raw_file(head + body + (b"" if defined else struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)) + raw_header(16, 16))


BOMBS: dict[str, Callable[[], bytes]] = {
    "deflated element": lambda: deflated(struct.pack("<HH2sHI", 9, 0x10, b"OB", 0, MEGABYTES << 20)),
    "deflated pixels": lambda: deflated(raw_header(100, 100) + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, MEGABYTES << 20)),
    "deflated header": lambda: deflated(b"", struct.pack("<HH2sHI", 9, 0x10, b"OB", 0, (1 << 20) - 12)),
    "huge header": lambda: raw_file(raw_header(65535, 65535) + element(0x7FE0, 0x10, "OW", b"", 0xFFFFFFFE)),
    "million frames": lambda: raw_file(raw_header(16, 16, 1_000_000) + element(0x7FE0, 0x10, "OW", b"", 0xFFFFFFFE)),
    "nested sequences": nested,
    "million items": lambda: items(1_000_000, (0x0008, 0x1140), defined=False),
    "million items of a look-up table": lambda: items(900_000, (0x0028, 0x3000), defined=True),
    "million elements": lambda: raw_file(element(0x0008, 0x1030, "LO", b"") * 1_000_000 + raw_header(16, 16)),
    "million values": lambda: raw_file(raw_header(16, 16) + element(0x0028, 0x0030, "DS", b"1\\" * 30_000)),
    "million unused values": lambda: raw_file(
        raw_header(16, 16) + struct.pack("<HH2sHI", 0x0040, 0xA30A, b"UC", 0, 8_000_000) + b"1\\" * 4_000_000
    ),
    "rle": rle,
    "png": lambda: png(30_000, 30_000),
    "jpeg": lambda: jpeg(65_500, 65_500),
    "jpeg scans": scans,
}
PLAIN = ("deflated pixels", "png")
"""Where a plain reader shows what would have happened."""


def plain(name: str, data: bytes) -> None:
    if name == "png":
        Pillow.MAX_IMAGE_PIXELS = None
        Pillow.open(io.BytesIO(data)).load()
    else:
        pydicom.dcmread(io.BytesIO(data))


def main() -> int:
    name = sys.argv[1]
    data = BOMBS[name]()
    # What is only loaded at the first use is loaded before anything is measured
    read_image(raw_file(raw_header(4, 4) + element(0x7FE0, 0x10, "OW", bytes(range(16)) * 2), EXPLICIT))
    before = forget_peak()
    code, start = "", time.process_time()  # not wall time: other processes must not count
    if "--plain" in sys.argv:
        plain(name, data)
    else:
        try:
            read_image(data)
        except Refusal as refusal:
            code = refusal.code
    seconds = time.process_time() - start
    grown = megabytes("VmHWM") - before
    json.dump({"code": code, "seconds": seconds, "grown_mb": grown, "bytes": len(data)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
