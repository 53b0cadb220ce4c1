"""The words of ``overread certify`` and its tables of labels, for tests."""

from __future__ import annotations

import csv
from pathlib import Path


def arguments(scans: Path, package: Path, *more: str) -> list[str]:
    folder = scans.parent
    return ["--site", str(scans), "--labels", str(folder / "l.csv"), "--model", str(package), "--out", str(folder / "r"), *more]


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def write(file: Path, rows: list[dict[str, str]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def labelled(count: int = 40) -> list[dict[str, str]]:
    return [{"file": f"secret-{n:02d}.png", "label": ("normal", "pneumonia")[n % 2]} for n in range(count)]
