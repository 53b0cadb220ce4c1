"""Each real DICOM file is rendered as pydicom renders it, or refused with a code; docs/dicom.md says which and why.

``python -m tests.models.test_dicom_corpus DATA`` prints the document's tables.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import defaultdict
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from models.dicom_header import CODINGS, SAMPLES
from models.dicom_syntaxes import SYNTAXES
from models.errors import Refusal
from models.imaging import read_image
from tests.conftest import ROOT

DOCUMENT = ROOT / "docs" / "dicom.md"
TWINS = {
    # pydicom does not swap the 16-bit words of a big-endian palette; the same image lies there in little endian too
    "OBXXXX1A_expb.dcm": "OBXXXX1A.dcm",
}
OTHER_DECODER = {"HTJ2KLossless_08_RGB.dcm": imagecodecs.htj2k_decode}
"""No plugin of pydicom's that is installed reads it: another decoder than ours gives the expected pixels."""
NO_DECODER = {"JPGExtended.dcm": "JPEG-LL.dcm"}
"""Lossy 12-bit JPEG, which no plugin reads: the same image, coded without loss, bounds what is expected."""


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".csv")


def expected(path: Path) -> tuple[NDArray[np.float64], str]:
    """What pydicom makes of a file, without an inversion, and its photometric interpretation."""
    file = pydicom.dcmread(path.with_name(TWINS.get(path.name, path.name)))
    photometric = file.PhotometricInterpretation
    if path.name in OTHER_DECODER:
        frame = next(generate_frames(file.PixelData, number_of_frames=1))
        return OTHER_DECODER[path.name](frame).astype(np.float64), photometric
    pixels = file.pixel_array
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, file)[..., :3]
    elif file.SamplesPerPixel == 1:
        pixels = apply_voi_lut(apply_modality_lut(pixels, file), file)
    return pixels.astype(np.float64), photometric


@pytest.mark.filterwarnings("ignore")
def test_every_file_is_rendered_as_pydicom_does_or_refused(data_root: Path) -> None:
    wrong, read = [], 0
    for path in files(data_root / "dicom"):
        try:
            image = read_image(path.read_bytes())
        except Refusal:
            continue
        read += 1
        if path.name in NO_DECODER:
            whole = expected(path.with_name(NO_DECODER[path.name]))[0]
            if (
                np.corrcoef(image.rendered().ravel(), whole.ravel())[0, 1] < 0.98
                or abs(image.rendered().mean() - whole.mean()) > 1
            ):
                wrong.append(path.name)
            continue
        shown, photometric = expected(path)
        if photometric == "MONOCHROME1":
            assert image.rendering.invert
            shown = image.rendering.low + image.rendering.high - shown
        if image.rendered().shape != shown.shape or not np.allclose(image.rendered(), shown, rtol=1e-6, atol=1e-2):
            wrong.append(path.name)
    assert wrong == []
    assert read > 70


@pytest.mark.filterwarnings("ignore")
def test_the_comparison_can_fail(data_root: Path) -> None:
    """Control: one stored value changed by one is seen."""
    path = data_root / "dicom" / "MR_small.dcm"
    data = bytearray(path.read_bytes())
    data[data.index(b"\xe0\x7f\x10\x00OW") + 12] ^= 1
    changed = read_image(bytes(data)).rendered()
    assert not np.allclose(changed, expected(path)[0], rtol=1e-6, atol=1e-2)


def test_every_file_meant_to_fail_is_refused(data_root: Path) -> None:
    """What the manifest says cannot be decoded is refused, but for what other decoders can."""
    with (data_root / "dicom" / "manifest.csv").open(newline="") as lines:
        failing = [row["image"] for row in csv.DictReader(lines) if row["pixel_array"].startswith("ERR")]
    assert len(failing) >= 7
    for name in set(failing) - set(NO_DECODER):
        with pytest.raises(Refusal):
            read_image((data_root / "dicom" / name).read_bytes())


def syntax_table() -> list[str]:
    kinds = {
        "native": "as it is",
        "deflated": "inflated no further than the header allows",
        "rle": "imagecodecs",
        "jpeg": "libjpeg-turbo (Pillow, imagecodecs)",
        "jpegls": "CharLS (imagecodecs)",
        "jpeg2000": "OpenJPEG (Pillow, imagecodecs)",
    }
    rows = [f"| `{uid}` | {syntax.name} | {kinds[syntax.coding]} |" for uid, syntax in SYNTAXES.items()]
    return ["| transfer syntax | name | decoder |", "| --- | --- | --- |", *rows]


def photometric_table() -> list[str]:
    everywhere = "every one"
    rows = [f"| `{name}` | {samples} | {', '.join(CODINGS.get(name, (everywhere,)))} |" for name, samples in SAMPLES.items()]
    return ["| photometric interpretation | samples | codings |", "| --- | --- | --- |", *rows]


def corpus_table(folder: Path) -> list[str]:
    """The real files, grouped by outcome."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in files(folder):
        try:
            image = read_image(path.read_bytes())
        except Refusal as refusal:
            groups[f"refused: `{refusal.code}`", refusal.detail].append(path.name)
        else:
            assert image.header is not None
            file = pydicom.dcmread(io.BytesIO(path.read_bytes()), stop_before_pixels=True)
            groups["read", SYNTAXES[file.file_meta.TransferSyntaxUID].name].append(path.name)
    rows = [
        f"| {outcome} | {why} | {' '.join(f'`{name}`' for name in names)} |" for (outcome, why), names in sorted(groups.items())
    ]
    return ["| outcome | transfer syntax, or why | files |", "| --- | --- | --- |", *rows]


@pytest.mark.filterwarnings("ignore")
def test_the_document_says_what_is_read_and_what_is_refused(data_root: Path) -> None:
    lines = DOCUMENT.read_text().splitlines()
    for table in (syntax_table(), photometric_table(), corpus_table(data_root / "dicom")):
        start = lines.index(table[0])
        assert lines[start : start + len(table)] == table
        assert not any(line.startswith("|") for line in lines[start + len(table) :][:1])


if __name__ == "__main__":
    for part in (syntax_table(), photometric_table(), corpus_table(Path(sys.argv[1]))):
        print("\n".join(part) + "\n")
