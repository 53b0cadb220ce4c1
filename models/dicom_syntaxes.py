"""The transfer syntaxes that are read, and what each allows (DICOM PS3.5 annex A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Coding = Literal["native", "deflated", "rle", "jpeg", "jpegls", "jpeg2000"]


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax that is read.

    Attributes
    ----------
    name : str
    coding : Coding
    implicit, big_endian : bool
        Of the data set.
    processes : tuple of int
        JPEG: start-of-frame markers that may occur. JPEG 2000: 0, or 1 for high-throughput coding.
    lossless : bool
        Whether the syntax promises reversible coding.
    predictor : int
        JPEG lossless, first-order prediction: the one selection value; 0 for any.
    """

    name: str
    coding: Coding
    implicit: bool = False
    big_endian: bool = False
    processes: tuple[int, ...] = ()
    lossless: bool = False
    predictor: int = 0


SYNTAXES: dict[str, Syntax] = {
    "1.2.840.10008.1.2": Syntax("Implicit VR Little Endian", "native", implicit=True),
    "1.2.840.10008.1.2.1": Syntax("Explicit VR Little Endian", "native"),
    "1.2.840.10008.1.2.1.99": Syntax("Deflated Explicit VR Little Endian", "deflated"),
    "1.2.840.10008.1.2.2": Syntax("Explicit VR Big Endian", "native", big_endian=True),
    "1.2.840.10008.1.2.5": Syntax("RLE Lossless", "rle", lossless=True),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG Baseline (Process 1)", "jpeg", processes=(0xC0,)),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG Extended (Process 2 and 4)", "jpeg", processes=(0xC0, 0xC1)),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG Lossless (Process 14)", "jpeg", processes=(0xC3,), lossless=True),
    "1.2.840.10008.1.2.4.70": Syntax(
        "JPEG Lossless, First-Order Prediction (Process 14, Selection Value 1)",
        "jpeg",
        processes=(0xC3,),
        lossless=True,
        predictor=1,
    ),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", "jpegls", processes=(0xF7,), lossless=True),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Lossy (Near-Lossless)", "jpegls", processes=(0xF7,)),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 (Lossless Only)", "jpeg2000", processes=(0,), lossless=True),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", "jpeg2000", processes=(0,)),
    "1.2.840.10008.1.2.4.201": Syntax("High-Throughput JPEG 2000 (Lossless Only)", "jpeg2000", processes=(1,), lossless=True),
    "1.2.840.10008.1.2.4.202": Syntax(
        "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)", "jpeg2000", processes=(1,), lossless=True
    ),
    "1.2.840.10008.1.2.4.203": Syntax("High-Throughput JPEG 2000", "jpeg2000", processes=(1,)),
}
"""Transfer syntax UID -> how it is read. Whatever is not here is refused."""
