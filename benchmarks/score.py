"""What scoring an archive on Ray Data costs over a bare loop on the same files, starting Ray included, turn by turn.

python benchmarks/score.py --data FOLDER --scale small

Of an environment with what the command needs, and matplotlib for the picture: Ray imports what else is installed in each of its
processes, which takes a second and more of each in the environment of the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import report
from models.batch import find_files, load_model, predict_file
from models.card import DEFAULT_MODEL
from service.score_rows import rows_of

SCALES = {"smoke": (24, 1), "small": (10_000, 3)}
"""Images, and repeats."""
FEW = 24
"""Images of a run that is all start and end."""
START = f"score, {FEW} images"
WORKERS = 2
SHARE = 1 / 1.3
"""Of the run's time that the bare loop has to take at least."""
PAGE = report.ROOT / "docs" / "score.md"


def archive(images: Sequence[Path], number: int, folder: Path) -> Path:
    """Make an archive of so many files: links to images, evenly drawn and repeated in turn where there are too few."""
    step = max(len(images) // number, 1)
    chosen = images[::step]
    for index in range(number):
        image = chosen[index % len(chosen)].resolve()
        below = folder / f"{index // 1000:03d}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{index:06d}{image.suffix}").symlink_to(image)
    return folder


def loop(folder: Path) -> int:
    """Read, decode and predict every file with two threads and one session, as short as it can be written; return how many."""
    predictor = load_model(DEFAULT_MODEL)
    with ThreadPoolExecutor(WORKERS) as pool:
        return sum("error" not in row for row in pool.map(lambda path: predict_file(path, predictor), find_files([folder])))


def scored(folder: Path, out: Path) -> int:
    """Run the command; return how many files have a score."""
    command = [sys.executable, "-m", "models.cli", "score", str(folder), "--out", str(out), "--workers", str(WORKERS)]
    done = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        raise RuntimeError(done.stderr[-2000:])
    parts = sorted(out.glob("part-*.parquet"))
    return sum(row["error"] is None for part in parts for row in rows_of(part.read_bytes(), ["error"]))


def timed(call: Callable[[], int]) -> tuple[int, float]:
    """Return what a call returns, and its seconds."""
    started = time.perf_counter()
    value = call()
    return value, time.perf_counter() - started


def free_cores() -> float:
    """Return how many processors two threads that do nothing but compute get for a second, outside Python's lock."""
    block = bytes(2**22)

    def busy(_: int) -> None:
        end = time.perf_counter() + 1.0
        while time.perf_counter() < end:
            hashlib.sha256(block)

    began, started = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(busy, range(WORKERS)))
    return (time.process_time() - began) / (time.perf_counter() - started)


def measure(images: Sequence[Path], number: int, repeats: int, work: Path) -> list[dict[str, Any]]:
    """Time both, one after the other, each repeat in the other order, and the command on a few images: its start and end."""
    folder, few = archive(images, number, work / "archive"), archive(images, FEW, work / "few")
    for image in images:  # into memory, so that the first run of all does not pay the disk for the others
        image.read_bytes()
    sizes = {"loop": number, "score": number, START: FEW}
    taken: dict[str, list[float]] = {name: [] for name in sizes}
    cores = []
    for repeat in tqdm(range(repeats), desc="repeats", file=sys.stderr):
        calls: list[Callable[[], int]] = [
            partial(loop, folder),
            partial(scored, folder, work / f"scores-{repeat}"),
            partial(scored, few, work / f"few-{repeat}"),
        ]
        counts = {}
        for name, call in list(zip(taken, calls, strict=True))[:: 1 if repeat % 2 == 0 else -1]:
            cores.append(free_cores())
            counts[name], seconds = timed(call)
            taken[name].append(seconds)
        if counts["loop"] != counts["score"]:
            raise RuntimeError(f"the loop predicted {counts['loop']} files and the command {counts['score']}")
    rows = []
    for name, values in taken.items():
        ratios = np.array(values) / np.array(taken["loop"])
        rows.append({
            "run": name, "images": sizes[name], "seconds": round(float(np.median(values)), 2),
            "images_per_second": round(sizes[name] / float(np.median(values)), 1), "ratio": round(float(np.median(ratios)), 4),
            "low": round(float(ratios.min()), 4), "high": round(float(ratios.max()), 4),
            "free_cores": round(float(np.median(cores)), 2), "repeats": repeats,
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    cells = [
        [row["run"], row["images"], row["seconds"], row["images_per_second"],
         f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"]
        for row in rows
    ]  # fmt: skip
    return report.markdown(["run", "images", "seconds", "images/s", "ratio to the loop (lowest to highest)"], cells)


def draw(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draw both times as ratios to the loop, with their spread; the line is the goal."""
    middle = [row["ratio"] for row in rows]
    spread = [[row["ratio"] - row["low"] for row in rows], [row["high"] - row["ratio"] for row in rows]]
    axes.barh([row["run"] for row in rows], middle, xerr=spread, color="#4c78a8")
    axes.axvline(1 / SHARE, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(f"time, as a ratio to the loop's ({rows[0]['images']} images)")


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cxr/")
    parser.add_argument("--scale", choices=tuple(SCALES), required=True)
    options = parser.parse_args()
    number, repeats = SCALES[options.scale]
    images = [path for path in find_files([options.data / "cxr"]) if path.suffix]
    with tempfile.TemporaryDirectory() as work:
        rows = measure(images, number, repeats, Path(work))
    by_run = {row["run"]: row for row in rows}
    goals = [
        report.goal("share of the bare loop in the time of scoring", 1 / by_run["score"]["ratio"], round(SHARE, 4)),
        report.goal("a quiet machine: cores that were free before each run, of 2", by_run["loop"]["free_cores"], 1.8),
    ]
    print(table(rows))
    file = report.write("score", options.scale, [0], rows, goals)
    print(report.plot(file, lambda axes: draw(axes, rows)))
    if options.scale == "small":
        start, whole = by_run[START]["seconds"], by_run["score"]["seconds"]
        beyond = (whole - start) / by_run["loop"]["seconds"]
        text = f"Start and end take {start:.0f} s; beyond them, scoring takes {beyond:.2f} times the loop's time."
        report.fill(PAGE, "score", "\n\n".join([report.verdicts(goals), table(rows), text]))


if __name__ == "__main__":
    main()
