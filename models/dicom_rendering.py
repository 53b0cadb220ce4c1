"""From the DICOM header to a :class:`~models.image.Rendering`: LUTs, windows, palettes and inversion, by pydicom's functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from models.dicom_header import stated
from models.dicom_pixels import PixelHeader
from models.errors import Refusal
from models.image import Rendering, shown_values

_CHAIN = (
    *("PhotometricInterpretation", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "WindowCenter"),
    *("WindowWidth", "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence"),
)


def rendering(header: Dataset, facts: PixelHeader) -> Rendering:
    """Return how stored values are displayed.

    The chain is evaluated by pydicom's own functions; tables and sigmoids once for every possible stored value.

    Raises
    ------
    Refusal
        ``inconsistent_image`` if the chain gives no finite values, or one value for everything;
        ``unsupported_transfer_syntax`` for look-up tables over 32-bit values.
    """
    if facts.samples == 3:
        return Rendering(0, 2**facts.stored - 1)
    lowest = -(1 << facts.stored - 1) if facts.signed else 0
    highest = lowest + (1 << facts.stored) - 1
    if facts.photometric == "PALETTE COLOR":
        palette = apply_color_lut(np.arange(lowest, highest + 1).astype(facts.dtype), header)[:, :3]
        return Rendering(0, 2 ** (8 * palette.dtype.itemsize) - 1, lowest, palette.astype(np.float32))
    chain = Dataset()
    for keyword in _CHAIN:
        if keyword in header:
            chain.add(header[keyword])
    linear = not ("ModalityLUTSequence" in chain or "VOILUTSequence" in chain or stated(chain, "VOILUTFunction") == "SIGMOID")
    if facts.stored > 16 and not linear:
        raise Refusal("unsupported_transfer_syntax", "Look-up tables over more than 16 bits are not read here.")
    # A linear chain is monotone, so its two ends bound it; otherwise every value is tried
    domain: NDArray[Any] = np.array([lowest, highest]) if linear else np.arange(lowest, highest + 1)
    try:
        shown = np.asarray(shown_values(domain.astype(facts.dtype), chain), dtype=np.float64)
    except (ValueError, TypeError, OverflowError, NotImplementedError, AttributeError) as error:
        raise Refusal("inconsistent_image", "The header's look-up table or window is malformed.") from error
    low, high = float(shown.min()), float(shown.max())
    if not np.isfinite([low, high]).all() or low == high:
        raise Refusal("inconsistent_image", "The header's rescaling or window leaves no image.")
    invert = facts.photometric == "MONOCHROME1"
    if linear:
        return Rendering(low, high, chain=chain, invert=invert)
    return Rendering(low, high, lowest, (low + high - shown if invert else shown).astype(np.float32))
