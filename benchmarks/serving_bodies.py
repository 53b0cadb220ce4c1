"""What is sent: drawn X-ray-like pictures, each with its own pixels, as PNG, JPEG and DICOM; and packages that take them."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

from benchmarks.resnet18 import resnet18
from models.card import (
    Calibration,
    Figure,
    Finding,
    InputSpec,
    IntendedUse,
    ModelCard,
    OutputSpec,
    Source,
    Training,
    Triage,
    card_bytes,
)

SIDE = 1024
"""Height and width of what is sent, pixels: the size in which the NIH collection publishes its X-rays."""
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "dicom": "application/dicom"}


class Bodies:
    """Bodies without end; no two are equal, so none is answered from the store.

    Parameters
    ----------
    seed : int
    pictures : sequence of arrays, uint8, shape (SIDE, SIDE)
        What they are made from; drawn ones where there are none.
    """

    def __init__(self, seed: int, pictures: list[NDArray[np.uint8]] | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self._pictures = pictures or [self._draw() for _ in range(4)]
        self._count = 0

    def _draw(self) -> NDArray[np.uint8]:
        """Smooth structure and film noise: its PNG and JPEG are as large as those of real X-rays of this size."""
        y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
        phase = self._random.uniform(0, 3, 2)
        lungs = np.exp(-(((np.abs(x) - 0.42) / 0.28) ** 2) - ((y + 0.05) / 0.6) ** 2)
        ribs = 0.12 * np.sin(22 * y + 6 * x**2 + phase[0]) * lungs
        texture = 3 * gaussian_filter(self._random.standard_normal((SIDE, SIDE)), 3)
        noise = 0.012 * gaussian_filter(self._random.standard_normal((SIDE, SIDE)), 0.7)
        shown = 0.75 - 0.5 * lungs + ribs + 0.08 * texture + noise + 0.03 * np.cos(3 * x + phase[1])
        return np.clip(shown * 255, 0, 255).astype(np.uint8)

    def pixels(self) -> NDArray[np.uint8]:
        """Return a picture unlike all before: one of the base pictures, moved, brightened, and with its number in a corner."""
        self._count += 1
        base = self._pictures[self._count % len(self._pictures)]
        step, lift = self._random.integers(1, SIDE), self._random.integers(0, 8)
        picture = np.minimum(np.roll(base, step, axis=1), 247) + lift.astype(np.uint8)
        bits = np.frombuffer(f"{self._count:024b}".encode(), np.uint8) - ord("0")
        picture[:32, : 24 * 16] = np.kron(bits, np.full((32, 16), 255, np.uint8))  # blocks that survive JPEG
        return np.ascontiguousarray(picture)

    def make(self, kind: str, count: int) -> list[bytes]:
        """Return ``count`` new bodies of a kind of :data:`MEDIA_TYPES`."""
        return [_encode(kind, self.pixels()) for _ in range(count)]


def _encode(kind: str, pixels: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    if kind == "dicom":
        _dicom(pixels).save_as(stream, enforce_file_format=True)
    elif kind == "jpeg":
        Pillow.fromarray(pixels).save(stream, "JPEG", quality=90)
    else:
        Pillow.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _dicom(pixels: NDArray[np.uint8]) -> Dataset:
    """Return a digital chest X-ray, 12 bits in 16, uncompressed, with a window."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition, dataset.PatientAge = "DX", "CHEST", "PA", "050Y"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelSpacing = [0.4, 0.4]
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = (pixels.astype("<u2") * 16).tobytes()
    return dataset


def read_pictures(folder: Path, count: int) -> list[NDArray[np.uint8]]:
    """Read real X-rays of ``cxr/nih_chestxray`` below a data folder, in order of name, brought to SIDE x SIDE."""
    files = sorted(file for file in (folder / "cxr" / "nih_chestxray").rglob("*") if file.suffix in {".png", ".jpg", ".jpeg"})
    return [np.asarray(Pillow.open(file).convert("L").resize((SIDE, SIDE))) for file in files[:count]]


def write_package(folder: Path, channels: int, seed: int) -> Path:
    """Write a model package around a random ResNet-18 at 224; what it says means nothing, how long it takes does."""
    graph = resnet18(channels=channels, seed=seed)
    ramp = tuple(float(value) for value in np.linspace(0, 100, 101))
    card = ModelCard(
        schema_version=1,
        name="resnet18-random",
        version="1.0.0",
        created="2026-01-01",
        task="classification",
        model_sha256=hashlib.sha256(graph).hexdigest(),
        card_sha256="0" * 64,
        input=InputSpec(
            channels=1 if channels == 1 else 3,
            height=224,
            width=224,
            intensity="percentile",
            low=0.5,
            high=99.5,
            mean=0.5,
            std=0.25,
            modalities=("CR", "DX"),
            body_parts=("CHEST",),
            views=("PA", "AP"),
            age_years=(1, 120),
            min_side=64,
        ),
        output=OutputSpec(classes=("normal", "finding"), findings=(Finding(label="finding", operating_point=0.5, rule="none"),)),
        calibration=Calibration(
            temperature=1, loss_knots=((0, 0.1), (100, 1)), loss_quantiles=ramp, domain_quantiles=ramp, n=1, method="none"
        ),
        triage=Triage(review_loss_percentile=90, review_domain_percentile=95, refuse_domain_distance=1e6),
        intended_use=IntendedUse(
            statement="Benchmarks: the weights are random.", population="none", not_seen="all", not_for="diagnosis"
        ),
        training=Training(
            command="none",
            seed=seed,
            data_sha256="0" * 64,
            sources=(Source(domain="none", images=0, patients=0, licence="none", credit="none", link="none"),),
            config={},
            versions={},
        ),
        evaluation=(
            Figure(
                domain="none",
                held_out="patients",
                subgroup="all",
                metric="none",
                value=None,
                low=None,
                high=None,
                n=0,
                note="random",
            ),
        ),
    )
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "card.json").write_bytes(card_bytes(card))
    return folder
