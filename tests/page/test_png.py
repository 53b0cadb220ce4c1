"""Numbers of a PNG in the browser: 16 bits stay 16 bits, whatever filter the file uses."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import pytest

READ = """async (text) => {
  const { readPng } = await import('/ui/png.js');
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const read = await readPng(new Blob([bytes]));
  return { ...read, grey: read.grey && [...read.grey], rgba: read.rgba && [...read.rgba] };
}"""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    distances = (abs(p - a), abs(p - b), abs(p - c))
    return (a, b, c)[distances.index(min(distances))]


def filtered(pixels: Any, filters: list[int]) -> bytes:
    """Write a 16-bit grey PNG whose lines use the given filters (PNG specification, section 9), with its data in pieces."""
    rows, columns = pixels.shape
    lines = pixels.astype(">u2").tobytes()
    stride = 2 * columns
    out = bytearray()
    for y, kind in enumerate(filters):
        line = lines[y * stride : (y + 1) * stride]
        above = lines[(y - 1) * stride : y * stride] if y else bytes(stride)
        out.append(kind)
        for i, byte in enumerate(line):
            a = line[i - 2] if i >= 2 else 0
            b = above[i]
            c = above[i - 2] if i >= 2 else 0
            out.append((byte - (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]) % 256)
    packed = zlib.compress(bytes(out))
    pieces = [packed[i : i + 7] for i in range(0, len(packed), 7)]
    head = struct.pack(">IIBBBBB", columns, rows, 16, 0, 0, 0, 0)
    body = b"".join(chunk(b"IDAT", piece) for piece in pieces)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def read(server: Any, browser: Any) -> Any:
    """Return a function that reads a PNG in the browser."""
    page = browser.new_page()
    page.goto(f"{server.url}/ui")
    yield lambda png: page.evaluate(READ, base64.b64encode(png).decode())
    page.close()


def test_every_filter_is_undone(read: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (6, 5), dtype=np.uint16)
    png = filtered(pixels, [0, 1, 2, 3, 4, 4])
    assert (np.asarray(PIL.Image.open(BytesIO(png))) == pixels).all(), "the file itself must be right"
    found = read(png)
    assert (found["width"], found["height"], found["levels"], found["rgba"]) == (5, 6, 65536, None)
    assert found["grey"] == pixels.ravel().tolist()
    wrong = read(
        filtered(pixels, [0, 1, 2, 3, 4, 4]).replace(b"IHDR", b"IHDR", 1)[:-12] + chunk(b"tEXt", b"a\0b") + chunk(b"IEND", b"")
    )
    assert wrong["grey"] == found["grey"], "chunks that are not known are passed over"


def test_what_the_service_writes_is_read(read: Any) -> None:
    from models.image import Image, Rendering
    from models.rendered import render

    pixels = np.random.default_rng(2).integers(0, 65536, (40, 33), dtype=np.uint16)
    image = Image(pixels, Rendering(0, 65535), 40, 33, None, "image/png", "0" * 64, None)
    assert read(render(image).png())["grey"] == pixels.ravel().tolist()


def test_eight_bits_and_colour(read: Any) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    for pixels in (grey, colour):
        stream = BytesIO()
        PIL.Image.fromarray(pixels).save(stream, "PNG")
        found = read(stream.getvalue())
        assert found["levels"] == 256
        if pixels.ndim == 2:
            assert found["grey"] == pixels.ravel().tolist()
        else:
            assert np.array(found["rgba"]).reshape(4, 6, 4)[..., :3].tolist() == pixels.tolist()


def test_what_is_cut_off_is_refused(read: Any) -> None:
    png = filtered(np.zeros((6, 5), np.uint16), [0] * 6)
    shorter = filtered(np.zeros((5, 5), np.uint16), [0] * 5)
    cut = png[:33] + shorter[33:]
    for broken in (cut, b"GIF89a" + bytes(100)):
        with pytest.raises(Exception, match=r"cut off|no PNG"):
            read(broken)
