"""Seeded damage to DICOM files, and a loop that decodes damaged files and reports what broke; run as a process of its own.

``python tests/models/mutations.py DATA FIRST LAST [--plant KIND]`` decodes mutations FIRST..LAST and prints one JSON object. A
mutation is a recipe, (source, kind, seed): its number names it. A crash of the process is the caller's to see; the recipe at
work is in the file that ``--progress`` names.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom

from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from tests.models.memory import forget_peak, megabytes

KINDS = ("truncate", "header_bytes", "bit_flips", "length_field", "rows", "cut_span", "pixel_bytes")


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".csv")


def value_positions(data: bytes) -> list[int]:
    """Where the values of the top-level elements begin, as far as the undamaged file can be read."""
    dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
    elements = (dataset.get_item(tag) for tag in dataset.keys())  # noqa: SIM118
    return [e.value_tell for e in elements if getattr(e, "value_tell", None)]


def mutate(data: bytes, kind: str, random: np.random.Generator) -> bytes:
    """Return damaged bytes; the same generator state gives the same damage."""
    damaged = bytearray(data)
    positions = value_positions(data) or [200]
    header_end = min(max(positions) + 16, len(data))
    if kind == "truncate":
        return bytes(damaged[: random.integers(132, len(data))])
    if kind == "cut_span":
        first = int(random.integers(132, len(data)))
        del damaged[first : first + int(random.integers(1, 2000))]
    elif kind == "header_bytes":
        for where in random.integers(132, header_end, random.integers(1, 9)):
            damaged[where] = random.integers(0, 256)
    elif kind == "bit_flips":
        for where in random.integers(132, len(data), random.integers(1, 65)):
            damaged[where] ^= 1 << int(random.integers(0, 8))
    elif kind == "pixel_bytes":
        for where in random.integers(min(header_end, len(data) - 1), len(data), random.integers(1, 17)):
            damaged[where] = random.integers(0, 256)
    elif kind == "length_field":
        where = int(random.choice(positions)) - int(random.choice([2, 4]))
        choices = [b"\x00\x00", b"\xff\xff", b"\xff\xff\xff\xff", b"\xfe\xff\xff\x7f", random.bytes(2), random.bytes(4)]
        value = choices[random.integers(0, len(choices))]
        damaged[where : where + len(value)] = value
    else:
        where = data.find(b"\x28\x00\x10\x00", 132)
        value = int(random.choice([0, 1, 2, 65535, 32768, random.integers(0, 65536)]))
        damaged[where + 8 : where + 10] = value.to_bytes(2, "little")
    return bytes(damaged)


def recipe(folder: Path, number: int) -> tuple[Path, str, bytes]:
    files = sources(folder)
    path, kind = files[number % len(files)], KINDS[number // len(files) % len(KINDS)]
    return path, kind, mutate(path.read_bytes(), kind, np.random.default_rng([2024, number]))


def decode(data: bytes, number: int) -> Image:
    """Decode as the service does, three times in four for a model's input size."""
    image = read_image(data, target=None if number % 4 == 0 else (224, 224))
    shown = image.rendered()
    if not np.isfinite(shown).all():
        raise ArithmeticError("a rendered value is not finite")
    return image


def planted(kind: str) -> Callable[[bytes, int], Image]:
    """A decoder with a fault, which the loop must report."""

    def faulty(data: bytes, number: int) -> Image:
        if number % 7 == 3 and kind == "IndexError":
            raise IndexError("planted")
        if number % 7 == 3 and kind == "slow":
            end = time.process_time() + 2.5
            while time.process_time() < end:
                pass
        if number % 7 == 3 and kind == "memory":
            np.ones(80_000_000)
        if number % 7 == 3 and kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        return decode(data, number)

    return faulty


def run(folder: Path, first: int, last: int, decoder: Callable[[bytes, int], Image], progress: Path | None) -> dict[str, object]:
    codes: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    slowest = (0.0, "")
    # The codecs and their libraries are loaded before memory is counted
    for path in sources(folder)[:: len(KINDS)]:
        try:
            decode(path.read_bytes(), 0)
        except Refusal:
            continue
    before = forget_peak()
    for number in range(first, last):
        path, kind, data = recipe(folder, number)
        if progress:
            progress.write_text(f"{number} {path.name} {kind}")
        start = time.process_time()  # not wall time: other processes must not count
        try:
            decoder(data, number)
            codes["image"] += 1
        except Refusal as refusal:
            codes[refusal.code] += 1
        except BaseException:  # noqa: BLE001  # whatever escapes is the finding
            failures.append(f"{number} {path.name} {kind}: {traceback.format_exc(limit=-2)}")
        slowest = max(slowest, (time.process_time() - start, f"{number} {path.name} {kind}"))
    grown = megabytes("VmHWM") - before
    return {"codes": codes, "failures": failures, "slowest": slowest, "grown_mb": grown}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--plant", choices=["IndexError", "slow", "memory", "crash"])
    parser.add_argument("--progress", type=Path)
    args = parser.parse_args()
    result = run(args.folder, args.first, args.last, planted(args.plant) if args.plant else decode, args.progress)
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
