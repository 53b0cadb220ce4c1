"""What the methods cost, as ratios to plain training and to batch normalisation, measured side by side.

python benchmarks/training_speed.py --scale small
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from benchmarks import report
from benchmarks.domain_training import Method, Recipe, Run, build
from benchmarks.domains import SOURCES, Domains
from benchmarks.generalization import PAGE, RECIPES
from models.networks.domain_distance import GRID, DomainDistance, ViewDistance
from models.networks.normalization import fold_normalization, gates, use_batch_instance
from training.config import make_config
from training.export import ServedClassifier, to_onnx

REPEATS = {"smoke": 3, "small": 15}
RESNET18 = replace(RECIPES["paper"], batch=24)
NETWORKS = {"shipped widths (16, 32, 64, 128)": RECIPES["small"], "ResNet-18 widths (64, 128, 256, 512)": RESNET18}
METHODS = {
    "SagNet": Method(sagnet=True), "BIN": Method(batch_instance=True), "BIN + SagNet": Method(batch_instance=True, sagnet=True),
}  # fmt: skip


def side_by_side(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Return the processor seconds of each call, shape (repeats,), taking turns, after one turn that is not timed.

    Processor seconds, because what else runs on a machine does not count in them.
    """
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.process_time()
            call()
            taken[name].append(time.process_time() - started)
    return {name: np.array(values) for name, values in taken.items()}


def drawn(recipe: Recipe) -> Domains:
    """Return random images in the place of PACS: what is in them takes no time."""
    random, source = np.random.default_rng(0), SOURCES["pacs"]
    images = random.integers(0, 255, (4 * recipe.batch, 3, recipe.side, recipe.side), dtype=np.uint8)
    domains = np.repeat(source.targets, recipe.batch)
    labels = random.integers(0, len(source.classes), len(images))
    return Domains("pacs", images, labels, domains, np.array([str(index) for index in range(len(images))]))


def training(recipe: Recipe, repeats: int) -> dict[str, np.ndarray]:
    """Return the ratio of a step's time to that of plain training, shape (repeats,), for every method."""
    data = drawn(recipe)
    chosen = np.arange(recipe.batch)
    runs = {name: Run(data, method, recipe, 0) for name, method in {"plain": Method(), **METHODS}.items()}

    def step(run: Run) -> Callable[[], Any]:
        run.network.train()
        return lambda: run.step(chosen, 0)

    taken = side_by_side({name: step(run) for name, run in runs.items()}, repeats)
    return {name: taken[name] / taken["plain"] for name in METHODS}


def session(network: nn.Module, recipe: Recipe) -> ort.InferenceSession:
    """Return the session of the graph that would be exported."""
    whole, cells = 2 * sum(recipe.widths), sum(recipe.widths[:-1])
    config = make_config(
        seed=0, domains=("a",), leave_out=(), classes=("n", "p"), finding="p", widths=recipe.widths, blocks=recipe.blocks,
        input={
            "channels": 3, "height": recipe.side, "width": recipe.side, "intensity": "full_range", "low": 0, "high": 100,
            "mean": 0.5, "std": 0.25, "modalities": (), "body_parts": (), "views": (), "age_years": None, "min_side": 16,
        },
    )  # fmt: skip
    distance = ViewDistance(
        DomainDistance(torch.eye(whole)[None], torch.zeros(1, 1, whole), torch.zeros(1, whole)),
        DomainDistance(torch.eye(cells).repeat(GRID**2, 1, 1), torch.zeros(1, GRID**2, cells), torch.zeros(GRID**2, cells)),
    )
    _, head = build(drawn(replace(recipe, batch=1)), Method(), recipe)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    graph = to_onnx(ServedClassifier(network, head, distance).eval(), config)  # type: ignore[arg-type]
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def inference(recipe: Recipe, repeats: int) -> dict[str, np.ndarray]:
    """Return the ratio of the time for four images to that of batch normalisation, shape (repeats,), by what the gates are."""
    torch.manual_seed(0)
    plain, _ = build(drawn(replace(recipe, batch=1)), Method(), recipe)
    networks: dict[str, nn.Module] = {"batch": plain.eval()}
    for name in ("every gate 1", "every gate 0", "mixed gates, folded", "mixed gates, not folded"):
        network, _ = build(drawn(replace(recipe, batch=1)), Method(), recipe)
        use_batch_instance(network)
        with torch.no_grad():
            for rho in gates(network):
                rho.copy_(torch.rand_like(rho) if name.startswith("mixed") else torch.full_like(rho, float(name[-1])))
        networks[name] = network.eval() if name.endswith("not folded") else fold_normalization(network)
    images = np.random.default_rng(0).normal(size=(4, 3, recipe.side, recipe.side)).astype(np.float32)
    sessions = {name: session(network, recipe) for name, network in networks.items()}

    def call(each: ort.InferenceSession) -> Callable[[], Any]:
        return lambda: each.run(None, {each.get_inputs()[0].name: images})

    taken = side_by_side({name: call(each) for name, each in sessions.items()}, 4 * repeats)
    return {f"BIN, {name}": taken[name] / taken["batch"] for name in networks if name != "batch"}


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw each ratio as a bar with its quartiles; the line is plain training, or batch normalisation."""
    names = [f"{row['method']}, {row['metric'].removesuffix(', ratio')}; {row['network'].split(' (')[0]}" for row in rows]
    middle = [row["median"] for row in rows]
    spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    axes.barh(names, middle, xerr=spread, color="#4c78a8")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("ratio")


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=tuple(REPEATS), required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = REPEATS[options.scale]
    rows, goals = [], []
    for name, recipe in NETWORKS.items():
        if options.scale == "smoke":
            recipe = replace(recipe, side=32, batch=4)
        for what, ratios in (("training step", training(recipe, repeats)), ("inference", inference(recipe, repeats))):
            for method, values in ratios.items():
                rows.append({
                    "network": name, "method": method, "metric": f"{what}, ratio", "median": float(np.median(values)),
                    "low": float(np.quantile(values, 0.25)), "high": float(np.quantile(values, 0.75)), "n": len(values),
                })  # fmt: skip
                most = {"SagNet": 1.9, "BIN, mixed gates, folded": 1.05}.get(method)
                if most is not None and not (method == "SagNet" and what == "inference"):
                    goals.append(
                        report.goal(f"{name}: {most} over the ratio of {method}, {what}", most / float(np.median(values)), 1.0)
                    )
                print(f"{name}, {what}, {method}: {np.median(values):.2f}", flush=True)
    file = report.write("training_speed", options.scale, [0], rows, goals)
    print(report.plot(file, lambda axes: draw(axes, rows)))
    if options.scale == "small":
        lines = [
            [row["network"], row["method"], row["metric"], f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})"]
            for row in rows
        ]
        header = ["network", "method", "what", "median (quartiles), as a ratio to plain training and batch normalisation"]
        report.fill(PAGE, "training_speed", report.markdown(header, lines))


if __name__ == "__main__":
    main()
