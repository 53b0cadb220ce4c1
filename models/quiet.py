"""Keep the readers' warnings and log lines out: they quote header values, and a warning must not decide what is read."""

from __future__ import annotations

import logging
import re
import warnings

_READERS = re.compile(r"pydicom\.|PIL\.|imagecodecs|models\.(dicom|image|imaging|preprocess)")


def silence_readers() -> None:
    """Ignore warnings that pydicom and Pillow raise, and pydicom's log lines, from now on.

    ``warnings.catch_warnings`` restores a process-wide list and so cannot be used by several threads at once. This adds one
    entry to that list, if it is not there, and never takes it away; readers call it each time because others may.
    """
    wanted = ("ignore", None, Warning, _READERS, 0)
    if wanted not in warnings.filters[:4]:
        warnings.filterwarnings("ignore", module=_READERS.pattern)
    logging.getLogger("pydicom").disabled = True
    pillow = logging.getLogger("PIL")
    if pillow.level != logging.WARNING:  # setting a level empties every logger's cache, which takes longer than a JPEG's header
        pillow.setLevel(logging.WARNING)  # its debug lines hold EXIF values
