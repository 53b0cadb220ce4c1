"""How many results a second the database of a site commits, from one process and from several at once.

OVERREAD_DATABASE_URL=postgresql+psycopg://USER@HOST/NAME python benchmarks/commits.py --scale small

SQLite is measured on the disk that the repository is on; PostgreSQL where the address of an empty database is given, which keeps
the rows; as a variable, since a result holds the command. Every commit is on disk before the next of its writer begins, as in
the service; nothing else is computed.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr

from benchmarks import report
from models.card import ZOO
from models.predictor import Predictor
from models.triage import Judgement
from service.server import Server
from service.store import Store, model_row, result_id

SCALES = {"smoke": (20, 1), "small": (1500, 5)}
"""Commits of a writer in a round, and rounds."""
WRITERS = (1, 2, 4)
PAGE = report.ROOT / "docs" / "capacity.md"
LIMITS = "0" * 64


def result(model_sha256: str, name: str) -> dict[str, Any]:
    """Return a row of ``results`` as a chest X-ray leaves it, with features that no other has."""
    image = hashlib.sha256(name.encode()).hexdigest()
    features = np.random.default_rng(int(image[:8], 16)).normal(size=512).astype("<f4")
    return {
        "id": result_id(image, model_sha256), "image_sha256": image, "model_sha256": model_sha256,
        "provider": "CPUExecutionProvider", "media_type": "application/dicom", "rows": 1024, "columns": 1024,
        "probabilities": {"pneumonia": 0.5}, "loss_score": 0.5, "predicted_loss": 0.5, "loss_percentile": 50.0,
        "domain_distance": 0.5, "domain_percentile": 50.0, "entropy": 0.5, "features": features.tobytes(), "notes": [],
        "segmentation": None,
    }  # fmt: skip


def commit(where: Path | Server, model_sha256: str, name: str, count: int, together: Barrier) -> None:
    """Commit results one after the other, in a process of its own."""
    store = Store(where)
    rows = [result(model_sha256, f"{name}-{number}") for number in range(count)]
    together.wait()
    for row in rows:
        new, _ = store.record(row, row["image_sha256"][:40], LIMITS, lambda reused: Judgement("accept", ("within_limits",)))
        if not new:
            raise RuntimeError("a result was there before: the database is not empty")
    together.wait()
    store.close()


def rate(where: Path | Server, model_sha256: str, name: str, count: int, writers: int) -> float:
    """Return the commits a second of so many processes together."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(writers + 1)
    each = [
        context.Process(target=commit, args=(where, model_sha256, f"{name}-{writer}", count, together), daemon=True)
        for writer in range(writers)
    ]
    for process in each:
        process.start()
    together.wait(120)
    began = time.perf_counter()
    together.wait(600)
    seconds = time.perf_counter() - began
    for process in each:
        process.join()
    return writers * count / seconds


def measure(places: dict[str, Path | Server], count: int, rounds: int) -> list[dict[str, Any]]:
    """Take turns between the databases and the numbers of writers, so that a slow minute of the machine hits all of them."""
    predictor = Predictor.load(ZOO / "cxr-pneumonia")
    rates: dict[tuple[str, int], list[float]] = {(name, writers): [] for name in places for writers in WRITERS}
    for where in places.values():
        store = Store(where)
        store.register(predictor)
        store.close()
    sha256 = model_row(predictor)["sha256"]
    for number in range(rounds):
        for (name, writers), values in rates.items():
            values.append(rate(places[name], sha256, f"{time.time()}-{number}-{writers}", count, writers))
    rows = []
    for (name, writers), values in rates.items():
        low, middle, high = (round(float(value), 1) for value in np.quantile(values, [0.25, 0.5, 0.75]))
        ratio = round(float(np.median(np.divide(values, rates[name, 1]))), 3)
        rows.append({
            "database": name, "writers": writers, "commits_a_second": middle, "low": low, "high": high, "ratio_to_one": ratio,
            "n": rounds,
        })  # fmt: skip
    return rows


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the commits a second of each database over the number of processes, with quartiles."""
    for name in dict.fromkeys(row["database"] for row in rows):
        mine = [row for row in rows if row["database"] == name]
        middle = [row["commits_a_second"] for row in mine]
        spread = [[row["commits_a_second"] - row["low"] for row in mine], [row["high"] - row["commits_a_second"] for row in mine]]
        axes.errorbar([row["writers"] for row in mine], middle, yerr=spread, marker="o", label=name)
    axes.set(xlabel="processes that write", ylabel="commits a second", xticks=WRITERS, ylim=(0, None))
    axes.legend()


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), required=True)
    scale = parser.parse_args().scale
    count, rounds = SCALES[scale]
    # Not in the system's temporary folder: that may lie in memory, where a commit costs nothing.
    report.SMOKE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=report.SMOKE))
    try:
        places: dict[str, Path | Server] = {"SQLite": folder / "overread.sqlite3"}
        if address := os.environ.get("OVERREAD_DATABASE_URL"):
            places["PostgreSQL"] = Server(SecretStr(address), SecretStr(""))
        rows = measure(places, count, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(report.plot(report.write("commits", scale, [0], rows, []), lambda axes: draw(axes, rows)))
    cells = [
        [
            row["database"],
            row["writers"],
            f"{row['commits_a_second']:.0f} ({row['low']:.0f} to {row['high']:.0f})",
            row["ratio_to_one"],
        ]
        for row in rows
    ]
    table = report.markdown(["database", "processes that write", "commits a second (quartiles)", "ratio to one process"], cells)
    print(table)
    if scale == "small":
        report.fill(PAGE, "commits", table)


if __name__ == "__main__":
    main()
