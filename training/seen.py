"""Which images and patients a model has seen, kept so that nobody measures on them: of a run both, of a package the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.comparison import SEEN
from models.errors import Refusal

DIGITS = 16
"""Hexadecimal digits kept of a digest: two of a million images are alike by chance once in 40 million times."""


@dataclass(frozen=True)
class Seen:
    """Images and patients of the train and calibration splits, as the first digits of digests.

    ``patients`` is empty of a package: from a digest, a hospital's own number could be guessed.
    """

    images: frozenset[str]
    patients: frozenset[str] = frozenset()

    def holds(self, originals: Iterable[str], patient: str) -> bool:
        """Tell whether an image, by any of its digests, or its patient is among them."""
        return any(digest[:DIGITS] in self.images for digest in originals) or _digits(patient) in self.patients


def _digits(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()[:DIGITS]


def seen_document(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the document for rows (digest of the image, patient)."""
    listed = list(rows)
    return {
        "images": sorted({digest[:DIGITS] for digest, _ in listed}),
        "patients": sorted({_digits(patient) for _, patient in listed}),
    }


def together(first: dict[str, list[str]], second: dict[str, list[str]] | None) -> dict[str, list[str]]:
    """Return the document of what two documents hold; None, as of earlier versions, holds nothing."""
    return {name: sorted({*first[name], *(second or {}).get(name, ())}) for name in first}


def read_document(document: Any) -> Seen | None:
    """Read what :func:`seen_document` gave; None where there is nothing, as of earlier versions.

    Raises
    ------
    Refusal
        ``config_invalid`` if it is something else.
    """
    if document is None:
        return None
    try:
        return Seen(frozenset(map(str, document["images"])), frozenset(map(str, document.get("patients", ()))))
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal("config_invalid", "The list of the images that a model has seen does not validate.") from error


def package_bytes(seen: Seen, model_sha256: str) -> bytes:
    """Return the file that goes into a package: the images alone, and of which graph."""
    return (json.dumps({"model_sha256": model_sha256, "images": sorted(seen.images)}) + "\n").encode()


def read_seen(package: Path, model_sha256: str) -> Seen | None:
    """Read what a package's model has seen; None where the package does not say.

    Raises
    ------
    Refusal
        ``package_invalid`` if the file is damaged or another graph's.
    """
    try:
        document = json.loads((package / SEEN).read_bytes())
        if document["model_sha256"] == model_sha256:
            return read_document(document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, Refusal) as error:
        raise Refusal("package_invalid", f"{SEEN} cannot be read ({type(error).__name__}).") from error
    raise Refusal("package_invalid", f"{SEEN} is of another graph.")
