"""What a GPU gains: batches of each size, bound and not, and what micro-batches make of single images of several threads.

python benchmarks/gpu.py --scale small

Without a GPU that onnxruntime uses it says so, with exit code 3. ``--scale smoke`` shows that it runs, on whatever there is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.resnet18 import resnet18
from models.card import GRAPH_OUTPUTS, SEGMENTER_OUTPUTS, ZOO, read_package
from models.predictor import CUDA, Graph

NO_GPU = 3
"""Exit code."""
SIDE = 224
SCALES = {"smoke": ((1, 2), (0.001,), 3, 8), "small": ((1, 2, 4, 8, 16, 32), (0.0, 0.001, 0.002, 0.005), 30, 400)}
"""Batch sizes, waits in seconds, repeats, and images through micro-batches."""
THREADS = 8
MOST = 8
"""Images in a micro-batch: as many as there are threads, so that one can be full."""


def graphs() -> dict[str, tuple[bytes, tuple[int, ...], tuple[str, ...]]]:
    """Return each model's graph, the shape of an image, and its outputs."""
    found: dict[str, tuple[bytes, tuple[int, ...], tuple[str, ...]]] = {
        "resnet18-random": (resnet18(side=SIDE), (1, SIDE, SIDE), GRAPH_OUTPUTS)
    }
    for name, outputs in (("cxr-pneumonia", GRAPH_OUTPUTS), ("nuclei", SEGMENTER_OUTPUTS)):
        card, content, _ = read_package(ZOO / name)
        found[name] = (content, (card.input.channels, card.input.height, card.input.width), outputs)
    return found


def batches(plain: Graph, bound: Graph, image: NDArray[np.float32], sizes: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Time whole batches, with binding and without, taking turns."""
    rows = []
    for size in sizes:
        tensor = np.repeat(image, size, axis=0)
        taken: dict[str, list[float]] = {"plain": [], "bound": []}
        for turn in range(repeats + 1):
            for name, graph in (("plain", plain), ("bound", bound)):
                started = time.perf_counter()
                graph.values(tensor)
                if turn:  # the first is not timed
                    taken[name].append(time.perf_counter() - started)
        ratio = statistics.median(p / b for p, b in zip(taken["plain"], taken["bound"], strict=True))
        rows.append(
            {
                "measure": "batch",
                "images": size,
                "repeats": repeats,
                "images_per_second": round(size / statistics.median(taken["plain"]), 1),
                "images_per_second_bound": round(size / statistics.median(taken["bound"]), 1),
                "gain_of_binding": round(ratio, 3),
            }
        )
    return rows


def gathered(graph: Graph, image: NDArray[np.float32], wait: float | None, count: int, repeats: int) -> dict[str, Any]:
    """Time single images from ``THREADS`` threads, one after another in each; ``wait`` is None without micro-batches."""
    if wait is not None:
        graph.gather(MOST, wait)

    def one(_: int) -> float:
        started = time.perf_counter()
        graph.values(image)
        return time.perf_counter() - started

    rates, latencies = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(THREADS)))
        for _ in range(min(repeats, 5)):
            started = time.perf_counter()
            latencies += pool.map(one, range(count))
            rates.append(count / (time.perf_counter() - started))
    return {
        "measure": "micro-batches",
        "wait_ms": "none" if wait is None else 1000 * wait,
        "repeats": len(rates),
        "images_per_second": round(statistics.median(rates), 1),
        "p50_ms": round(1000 * float(np.quantile(latencies, 0.5)), 2),
        "p99_ms": round(1000 * float(np.quantile(latencies, 0.99)), 2),
    }


def measure(scale: str) -> list[dict[str, Any]]:
    """Measure every model; each row names the provider that ran."""
    sizes, waits, repeats, count = SCALES[scale]
    rows: list[dict[str, Any]] = []
    for name, (content, shape, outputs) in graphs().items():
        image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        plain, bound = (Graph(content, outputs=outputs, binding=binding) for binding in (False, True))
        found = batches(plain, bound, image, sizes, repeats)
        found += [gathered(bound, image, wait, count, repeats) for wait in (None, *waits)]
        rows += [{"model": name, "provider": bound.provider} | row for row in found]
    return rows


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw throughput by size of the batch."""
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name and row["measure"] == "batch"]
        axes.plot([row["images"] for row in mine], [row["images_per_second_bound"] for row in mine], marker="o", label=name)
    axes.set(xlabel="images in a batch", ylabel="images a second, bound", xscale="log", yscale="log")
    axes.legend()


def main() -> int:
    """Measure where there is a GPU; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    scale = parser.parse_args().scale
    provider = Graph(read_package(ZOO / "cxr-pneumonia")[1]).provider
    if scale != "smoke" and provider != CUDA:
        print(f"gpu_missing: onnxruntime runs on {provider}; nothing was measured", file=sys.stderr)
        return NO_GPU
    rows = measure(scale)
    file = report.write("gpu", scale, [0], rows, [])
    report.plot(file, lambda axes: draw(rows, axes))
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
