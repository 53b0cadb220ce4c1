"""What decoding costs: each transfer syntax at 2500 x 2048, 16 bit, as a share of one ResNet-18 inference in the same run.

``python benchmarks/decoding.py --scale smoke|small``. An X-ray-like image is drawn and encoded, for three seeds. Decoding and
preprocessing to 224 x 224 are timed beside inference (random weights, one thread), turn by turn, so that what slows one slows the
other. Two threads then do the same work: decoding and preprocessing alone, and with the inference that follows in the service.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import onnxruntime
import rle
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRBigEndian, ExplicitVRLittleEndian
from scipy.ndimage import gaussian_filter

from benchmarks.report import ROOT, fill, markdown, plot, verdicts, write
from benchmarks.resnet18 import resnet18
from models.card import InputSpec
from models.imaging import read_image
from models.preprocess import preprocess

SIDE = 224
SPEC = InputSpec(
    channels=1,
    height=SIDE,
    width=SIDE,
    intensity="percentile",
    low=1,
    high=99,
    mean=0.5,
    std=0.25,
    modalities=(),
    body_parts=(),
    views=(),
    age_years=None,
    min_side=1,
)
SHARES = {"uncompressed": 0.25, "rle": 0.25, "jpeg lossless": 1.2, "jpeg 2000 lossless": 2.0, "jpeg 2000 lossy": 2.0}
"""Goals: decoding and preprocessing, at most this multiple of inference."""
SCALING = 1.7
"""Goal: throughput of two threads over one, of each of SHARES."""


@dataclass(frozen=True)
class Scale:
    """Size of the image, seeds, and how often each measurement is repeated."""

    rows: int
    columns: int
    seeds: tuple[int, ...]
    repeats: int


SCALES = {"smoke": Scale(625, 512, (0,), 2), "small": Scale(2500, 2048, (0, 1, 2), 7)}


def draw(rows: int, columns: int, seed: int) -> NDArray[np.uint16]:
    """Smooth anatomy, fine texture and quantum noise in 15 bits: compresses by about 1.8, as X-rays do."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) * (2500 / rows)
    shown = 2000 + 1500 * np.sin(y / 300 + seed) * np.cos(x / 250) + 400 * np.sin(y / 20)
    shown += 60 * gaussian_filter(random.standard_normal((rows, columns)).astype(np.float32), 1)
    shown += 8 * random.standard_normal((rows, columns))
    return np.clip(shown * 8, 0, 32767).astype(np.uint16)


def dicom(pixels: NDArray[Any], bits: int, syntax: str, frame: bytes | None = None) -> bytes:
    """Make a file around native pixels, or around one compressed frame of them."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = UID(syntax)
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = DigitalXRayImageStorageForPresentation
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = UID("2.25.1")
    file.Modality, file.SamplesPerPixel, file.PhotometricInterpretation = "DX", 1, "MONOCHROME2"
    file.Rows, file.Columns = pixels.shape
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    file.PixelRepresentation = 0
    file.WindowCenter, file.WindowWidth = 2 ** (bits - 1), 2**bits
    big = syntax == ExplicitVRBigEndian
    native = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    file.PixelData = native if frame is None else encapsulate([frame])
    file["PixelData"].VR = "OW" if frame is None else "OB"
    file["PixelData"].is_undefined_length = frame is not None
    file.preamble = bytes(128)
    target = io.BytesIO()
    file.save_as(target, implicit_vr=syntax == "1.2.840.10008.1.2", little_endian=not big)
    return target.getvalue()


def files(pixels: NDArray[np.uint16]) -> dict[str, bytes]:
    """Name -> the same image in each transfer syntax."""
    twelve, eight = pixels >> 3, (pixels >> 7).astype(np.uint8)
    j2k = {"codecformat": "j2k", "bitspersample": 15}
    shape = {"rows": pixels.shape[0], "columns": pixels.shape[1], "samples_per_pixel": 1, "bits_allocated": 16}
    segments = rle.encode_pixel_data(pixels.tobytes(), byteorder="<", **shape)
    root = "1.2.840.10008.1.2"
    return {
        "uncompressed": dicom(pixels, 15, ExplicitVRLittleEndian),
        "big endian": dicom(pixels, 15, ExplicitVRBigEndian),
        "deflated": dicom(pixels, 15, f"{root}.1.99"),
        "rle": dicom(pixels, 15, f"{root}.5", segments),
        "jpeg 8 bit": dicom(eight, 8, f"{root}.4.50", imagecodecs.jpeg8_encode(eight, level=90)),
        "jpeg 12 bit": dicom(twelve, 12, f"{root}.4.51", imagecodecs.jpeg8_encode(twelve, level=90, bitspersample=12)),
        "jpeg lossless": dicom(
            pixels, 15, f"{root}.4.70", imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=15)
        ),
        "jpeg-ls": dicom(pixels, 15, f"{root}.4.80", imagecodecs.jpegls_encode(pixels)),
        "jpeg 2000 lossless": dicom(pixels, 15, f"{root}.4.90", imagecodecs.jpeg2k_encode(pixels, 0, reversible=True, **j2k)),
        "jpeg 2000 lossy": dicom(pixels, 15, f"{root}.4.91", imagecodecs.jpeg2k_encode(pixels, 60, reversible=False, **j2k)),
        "htj2k lossless": dicom(pixels, 16, f"{root}.4.201", imagecodecs.htj2k_encode(pixels, reversible=True)),
    }


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def scaling(work: Callable[[], object], repeats: int) -> float:
    """Throughput of two threads over that of one, each doing ``work`` ``repeats`` times."""

    def several() -> None:
        for _ in range(repeats):
            work()

    one = seconds(several)
    threads = [threading.Thread(target=several) for _ in range(2)]

    def both() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return 2 * one / seconds(both)


def measure(name: str, data: bytes, infer: Callable[[NDArray[np.float32]], object], repeats: int) -> dict[str, float]:
    """Measure one file; times in seconds, medians over ``repeats``."""

    def decode() -> Any:
        return read_image(data, target=(SIDE, SIDE))

    def prepare() -> Any:
        return preprocess(decode(), SPEC)

    image, tensor = decode(), prepare()
    infer(tensor)
    turns = [(seconds(decode), seconds(lambda: preprocess(image, SPEC)), seconds(lambda: infer(tensor))) for _ in range(repeats)]
    decoding, preprocessing, inference = (statistics.median(column) for column in zip(*turns, strict=True))
    rounds, tries = max(2, min(8, round(0.4 / (decoding + preprocessing)))), min(3, repeats - 1)
    alone = statistics.median(scaling(prepare, rounds) for _ in range(tries))
    whole = statistics.median(scaling(lambda: infer(prepare()), 3) for _ in range(tries))
    return {
        "megabytes": len(data) / 1e6,
        "decode_ms": decoding * 1e3,
        "preprocess_ms": preprocessing * 1e3,
        "inference_ms": inference * 1e3,
        "share_of_inference": (decoding + preprocessing) / inference,
        "two_threads": alone,
        "two_threads_with_inference": whole,
    }


def run(scale: Scale) -> list[dict[str, Any]]:
    """Measure every syntax for every seed; return one row a syntax, medians over the seeds with their range."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(resnet18(side=SIDE), options, providers=["CPUExecutionProvider"])
    found: dict[str, list[dict[str, float]]] = {}
    for seed in scale.seeds:
        for name, data in files(draw(scale.rows, scale.columns, seed)).items():
            found.setdefault(name, []).append(
                measure(name, data, lambda tensor: session.run(["logits"], {"image": tensor}), scale.repeats)
            )
            print(f"seed {seed}, {name}: {found[name][-1]['share_of_inference']:.2f} of an inference", file=sys.stderr)
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"syntax": name}
        for key in runs[0]:
            row[key] = round(statistics.median(one[key] for one in runs), 3)
        for key in ("share_of_inference", "two_threads"):
            row[f"{key}_range"] = [round(bound([one[key] for one in runs]), 3) for bound in (min, max)]
        rows.append(row)
    return rows


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare with the goals."""
    by_name = {row["syntax"]: row for row in rows}
    goals = []
    for name, most in SHARES.items():
        share, threads = by_name[name]["share_of_inference"], by_name[name]["two_threads"]
        goals.append({"name": f"{name}: share of an inference, at most", "value": share, "goal": most, "met": share <= most})
        goals.append({"name": f"{name}: two threads, at least", "value": threads, "goal": SCALING, "met": threads >= SCALING})
    return goals


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of ``docs/performance.md``."""
    head = ["syntax", "decoding ms", "preprocessing ms", "inference ms", "share of an inference", "two threads", "with inference"]
    keys = ["decode_ms", "preprocess_ms", "inference_ms", "share_of_inference", "two_threads", "two_threads_with_inference"]
    return markdown(head, [[row["syntax"], *(f"{row[key]:.2f}" for key in keys)] for row in rows])


def main() -> None:
    """Measure, write the result and its plot, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    name = parser.parse_args().scale
    rows = run(SCALES[name])
    file = write("decoding", name, SCALES[name].seeds, rows, judge(rows))

    def draw_bars(axes: Any) -> None:
        names, inference = [row["syntax"] for row in rows], [row["inference_ms"] for row in rows]
        decoding = [row["decode_ms"] / whole for row, whole in zip(rows, inference, strict=True)]
        preprocessing = [row["preprocess_ms"] / whole for row, whole in zip(rows, inference, strict=True)]
        axes.barh(names, decoding, label="decoding")
        axes.barh(names, preprocessing, left=decoding, label="preprocessing")
        for index, syntax in enumerate(names):
            if syntax in SHARES:
                axes.plot([SHARES[syntax]] * 2, [index - 0.4, index + 0.4], color="black", label="goal" if index == 0 else None)
        axes.invert_yaxis()
        axes.set_xlabel("share of one ResNet-18 inference at 224 x 224, one thread")
        axes.legend()

    plot(file, draw_bars)
    print(table(rows))
    if name != "smoke":
        fill(ROOT / "docs" / "performance.md", "decoding", f"{verdicts(judge(rows))}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
