"""What serving costs: the service, everything switched on, against a loop in one process doing the same work.

``python benchmarks/serving.py --scale small`` measures, and writes ``results/serving.json``, a plot, and the tables of
``docs/performance.md``. Contenders take turns on the same bodies within seconds of each other, those that wait are
stopped, and a ratio is taken within a turn: what else the machine does meanwhile hits all of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import ROOT, SMOKE, fill, goal, plot, verdicts, write
from benchmarks.serving_bodies import MEDIA_TYPES, Bodies, read_pictures, write_package
from benchmarks.serving_client import exchange, request
from benchmarks.serving_rivals import work
from benchmarks.serving_servers import Server, overread, rival, sync_ms
from benchmarks.serving_tables import draw, tables
from models.imaging import read_image
from models.predictor import Predictor

SEED = 0
CORES = 2
GOAL_RATIO = 0.92
QUIET_CORES = 1.8
"""What the loop must get of two cores at concurrency 8; with less, others were at work, and shares mean little."""
SHIPPED = ROOT / "models" / "zoo" / "cxr-pneumonia"
RIVALS = ("fastapi", "litserve")


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes
    ----------
    repeats : int
        Turns of every contender.
    images : int
        A turn at concurrency 8 and 32 and a body kind; half of it at concurrency 1.
    concurrencies : tuple of int
    paired : int
        Images with which the added milliseconds are measured.
    starts : int
        Starts of the service.
    """

    repeats: int
    images: int
    concurrencies: tuple[int, ...]
    paired: int
    starts: int


SCALES = {
    "smoke": Scale(repeats=1, images=12, concurrencies=(8,), paired=4, starts=1),
    "small": Scale(repeats=5, images=64, concurrencies=(1, 8, 32), paired=60, starts=3),
}


@dataclass(frozen=True)
class Turn:
    """One contender's turn: images a second, milliseconds of processor time an image (client's apart), latencies in seconds."""

    throughput: float
    cpu_ms: float
    client_ms: float
    latencies: list[float]


def loop_turn(analyse: Callable[[bytes], Any], bodies: list[bytes], concurrency: int) -> Turn:
    """Do the work without a server: as many threads as images may be under way, but no more than there are cores."""

    def timed(body: bytes) -> float:
        begun = time.perf_counter()
        analyse(body)
        return time.perf_counter() - begun

    with ThreadPoolExecutor(min(concurrency, CORES)) as pool:
        cpu, started = time.process_time(), time.perf_counter()
        latencies = list(pool.map(timed, bodies))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Turn(len(bodies) / seconds, 1000 * cpu / len(bodies), 0.0, latencies)


def server_turn(server: Server, kind: str, bodies: list[bytes], concurrency: int) -> Turn:
    """Let a server do it.

    Raises
    ------
    RuntimeError
        If an answer is not a 200 with a result of its own: a refusal or an answer from the store would be fast.
    """
    requests = [request(server.path, MEDIA_TYPES[kind], server.token, body) for body in bodies]
    server.resume()
    cpu = server.cpu_seconds()
    done = exchange(server.port, requests, concurrency)
    cpu = server.cpu_seconds() - cpu
    server.pause()
    if any(status != 200 for status, _ in done.answers):
        raise RuntimeError(f"an answer was not 200: {next(answer for answer in done.answers if answer[0] != 200)}")
    results = {json.loads(content).get("result_id", number) for number, (_, content) in enumerate(done.answers)}
    if len(results) < len(bodies):
        raise RuntimeError("two images got the same result")
    count = len(bodies)
    return Turn(count / done.seconds, 1000 * cpu / count, 1000 * done.cpu_seconds / count, done.latencies)


def measure(
    scale: Scale, bodies: Bodies, analyse: Callable[[bytes], Any], servers: dict[str, Server], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Let every contender take its turns, and return a row for each (body kind, concurrency, contender)."""
    turns: dict[tuple[str, int, str], list[Turn]] = defaultdict(list)
    for kind in MEDIA_TYPES:  # threads, connections, caches and the allocator's limits
        for server in servers.values():
            server_turn(server, kind, bodies.make(kind, 8), 8)
    for repeat in range(scale.repeats):
        for concurrency in scale.concurrencies:
            for kind in MEDIA_TYPES:
                some = bodies.make(kind, scale.images if concurrency > 1 else scale.images // 2)
                # FastAPI and LitServe are compared where the goal is; back and forth, so that a drift cancels
                order = ["loop", "overread", *(RIVALS if concurrency == 8 else ())]
                for contender in order if repeat % 2 == 0 else reversed(order):
                    if contender == "loop":
                        turn = loop_turn(analyse, some, concurrency)
                    else:
                        turn = server_turn(servers[contender], kind, some, concurrency)
                    turns[kind, concurrency, contender].append(turn)
            say(f"repeat {repeat + 1} of {scale.repeats}, concurrency {concurrency}")
    rows = [_row(key, taken, turns[(*key[:2], "loop")]) for key, taken in turns.items()]
    return sorted(rows, key=lambda row: (list(MEDIA_TYPES).index(row["body"]), row["concurrency"]))


def _row(key: tuple[str, int, str], taken: list[Turn], loop: list[Turn]) -> dict[str, Any]:
    ratios = [turn.throughput / base.throughput for turn, base in zip(taken, loop, strict=True)]
    latencies = np.array([value for turn in taken for value in turn.latencies]) * 1000
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return {
        "measure": "throughput",
        "body": key[0],
        "concurrency": key[1],
        "contender": key[2],
        "images_per_second": round(statistics.mean(turn.throughput for turn in taken), 2),
        "ratio": round(statistics.mean(ratios), 4),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_low": round(min(ratios), 4),
        "ratio_high": round(max(ratios), 4),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "p99_ms": round(float(p99), 1),
        "cpu_ms_per_image": round(statistics.mean(turn.cpu_ms for turn in taken), 2),
        "client_cpu_ms_per_image": round(statistics.mean(turn.client_ms for turn in taken), 3),
        "images": len(latencies),
        "repeats": len(taken),
    }


def added(package: Path, server: Server, bodies: Bodies, count: int) -> list[dict[str, Any]]:
    """Measure what the service adds to the prediction of one image alone, in pairs: in this process, then over HTTP."""
    predictor = Predictor.load(package)
    spec = predictor.card.input
    target = (spec.height, spec.width)
    rows = []
    server.resume()
    for kind, media_type in MEDIA_TYPES.items():
        alone, differences = [], []
        for body in bodies.make(kind, count):
            begun = time.perf_counter()
            predictor.predict([read_image(body, target=target)])
            alone.append(1000 * (time.perf_counter() - begun))
            done = exchange(server.port, [request(server.path, media_type, server.token, body)], 1)
            if done.answers[0][0] != 200:
                raise RuntimeError(f"an answer was not 200: {done.answers[0]}")
            differences.append(1000 * done.latencies[0] - alone[-1])
        low, middle, high = np.percentile(differences, [25, 50, 75])
        rows.append(
            {
                "measure": "added_latency",
                "model": predictor.card.name,
                "body": kind,
                "in_process_ms": round(statistics.median(alone), 2),
                "added_ms": round(float(middle), 2),
                "added_ms_quartiles": [round(float(low), 2), round(float(high), 2)],
                "images": count,
            }
        )
    server.pause()
    return rows


def starts(package: Path, folder: Path, count: int) -> list[float]:
    """Start and stop the service ``count`` times, each with a new database; return the seconds to ready."""
    seconds = []
    for number in range(count):
        with overread(package, folder / f"start-{number}") as server:
            seconds.append(server.ready_seconds)
    return seconds


def goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the ratios at concurrency 8."""
    at = {(row["body"], row["contender"]): row["ratio"] for row in rows if row.get("concurrency") == 8}
    judged = [
        goal(f"{kind}, concurrency 8: share of the loop's throughput", at[kind, "overread"], GOAL_RATIO) for kind in MEDIA_TYPES
    ]
    for kind in MEDIA_TYPES:
        lead = at[kind, "overread"] / at[kind, "litserve"]
        judged.append(goal(f"{kind}, concurrency 8: throughput over LitServe's", lead, 1.0))
    loops = [row for row in rows if row.get("concurrency") == 8 and row["contender"] == "loop"]
    cores = min(row["images_per_second"] * row["cpu_ms_per_image"] / 1000 for row in loops)
    judged.append(goal(f"a quiet machine: cores that the loop got, of {CORES}", cores, QUIET_CORES))
    return judged


def run(scale: Scale, folder: Path, data: Path | None, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure everything; return the rows."""
    bodies = Bodies(SEED, read_pictures(data, 8) if data else None)
    package = write_package(folder / "resnet18-random", channels=1, seed=SEED)
    rows: list[dict[str, Any]] = [{"measure": "disk", "sync_ms": round(sync_ms(folder), 2)}]
    seconds = starts(package, folder, scale.starts)
    rows.append({"measure": "start", "seconds": [round(value, 2) for value in seconds]})
    say("started and stopped the service")
    with ExitStack() as stack:
        servers = {"overread": stack.enter_context(overread(package, folder / "service"))}
        fresh = servers["overread"].memory_mib()[0]
        servers["overread"].pause()
        for framework in RIVALS:
            servers[framework] = stack.enter_context(rival(framework, package, folder))
            servers[framework].pause()
        rows += measure(scale, bodies, work(package), servers, say)
        rows += added(package, servers["overread"], bodies, scale.paired)
        after = servers["overread"].memory_mib()[0]
        rows.append({"measure": "memory", "model": "resnet18-random", "worker_mib_ready": fresh, "worker_mib_after": after})
    if SHIPPED.exists():
        with overread(SHIPPED, folder / "shipped") as server:
            fresh = server.memory_mib()[0]
            rows += added(SHIPPED, server, bodies, scale.paired)
            name, after = SHIPPED.name, server.memory_mib()[0]
            server.resume()
        rows.append({"measure": "memory", "model": name, "worker_mib_ready": fresh, "worker_mib_after": after})
    say("measured what is added to one image alone")
    return rows


def main() -> int:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=sorted(SCALES), required=True, help="smoke: a minute, judges nothing; small: about 8")
    parser.add_argument("--data", type=Path, help="folder with cxr/nih_chestxray; without it, drawn pictures are sent")
    options = parser.parse_args()
    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - began:5.0f} s  {what}", flush=True)

    # Beside the results and not in the system's temporary folder: that may lie in memory, where a commit costs nothing.
    SMOKE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=SMOKE))
    try:
        rows = run(SCALES[options.scale], folder, options.data, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    judged = goals(rows)
    file = write("serving", options.scale, [SEED], rows, judged)
    plot(file, lambda axes: draw(axes, rows, GOAL_RATIO))
    text = tables(rows)
    if options.scale != "smoke":
        fill(ROOT / "docs" / "performance.md", "serving", f"{verdicts(judged)}\n\n{text}")
    print(text)
    for item in judged if options.scale != "smoke" else []:
        print(f"{'met    ' if item['met'] else 'NOT MET'} {item['name']}: {item['value']:.3f} (goal {item['goal']})")
    print(f"written: {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
