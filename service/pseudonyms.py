"""What is derived from a secret of this site: a patient's pseudonym, and which scans fall into the random share."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from models.errors import Refusal
from models.image import Image

_BYTES = 32


def read_key(file: Path) -> bytes:
    """Return the site's secret, which is made where there is none yet.

    Parameters
    ----------
    file : Path
        It gets the mode 0600. Whoever has it can tell which pseudonym a known PatientID has.

    Raises
    ------
    Refusal
        ``config_invalid`` if the file is there and is not what is written here: another secret would take all patients apart.
    """
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = file.with_name(f"{file.name}.{os.getpid()}.partial")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(_BYTES).hex().encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            with contextlib.suppress(FileExistsError):  # another worker was first: all have the same secret
                os.link(part, file)
            part.unlink()
        key = bytes.fromhex(file.read_text().strip())
    except (OSError, ValueError) as error:
        raise Refusal("config_invalid", "The secret for pseudonyms in the state folder cannot be read or written.") from error
    if len(key) != _BYTES:
        raise Refusal("config_invalid", "The secret for pseudonyms in the state folder is damaged.")
    return key


class Whose(NamedTuple):
    """Two pseudonyms of a patient, 64 hex digits each: of PatientID and IssuerOfPatientID, and of PatientID alone."""

    patient: str
    number: str


class Pseudonyms:
    """Derives from one secret."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _digest(self, purpose: str, *parts: str) -> bytes:
        # The length before each part: two parts can never read like two others
        message = "".join(f"{len(part)}:{part}" for part in (purpose, *parts))
        return hmac.digest(self._key, message.encode(), hashlib.sha256)

    def fingerprint(self) -> str:
        """Return what tells this secret from another one, and nothing else about it; 64 hex digits."""
        return self._digest("fingerprint").hex()

    def patient(self, image: Image) -> str:
        """Return the pseudonym of an image's patient, 64 hex digits; an image without a PatientID is its own patient."""
        whose = self.whose(image)
        return whose.patient if whose else self._digest("image", image.sha256).hex()

    def whose(self, image: Image) -> Whose | None:
        """Return whose image it is; None where it states no PatientID."""
        values = [image.header.get(name) if image.header is not None else None for name in ("PatientID", "IssuerOfPatientID")]
        number, issuer = (str(value or "").strip() for value in values)
        return self.of_number(number, issuer) if number else None

    def of_number(self, number: str, issuer: str) -> Whose:
        """Return the pseudonyms of a PatientID and its issuer, which may be empty; both without outer spaces."""
        return Whose(self._digest("patient", number, issuer).hex(), self._digest("patient number", number).hex())

    def reader(self, name: str) -> str:
        """Return the pseudonym of a reader, 16 hex digits."""
        return self._digest("reader", name).hex()[:16]

    def drawn(self, image_sha256: str, share: float) -> bool:
        """Tell whether an image falls into a share, 0 to 1, of all images; the same image always does or never."""
        return int.from_bytes(self._digest("draw", image_sha256)[:8]) < share * 2**64
