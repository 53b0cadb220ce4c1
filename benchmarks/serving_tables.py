"""The figures of :mod:`benchmarks.serving` for people: Markdown tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report import markdown

NAMES = {"loop": "the loop", "overread": "Overread", "fastapi": "FastAPI", "litserve": "LitServe"}
COLOURS = {"overread": "#1b6ca8", "fastapi": "#8f8f8f", "litserve": "#c9c9c9"}


def _pick(rows: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["measure"] == measure]


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables of ``docs/performance.md``."""
    head = ["body", "concurrency", "server", "images/s", "share of the loop", "lowest to highest"]
    head += ["p50 ms", "p95 ms", "p99 ms", "CPU ms/image"]
    lines = [
        [
            row["body"],
            row["concurrency"],
            NAMES[row["contender"]],
            f"{row['images_per_second']:.1f}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
            *(f"{row[f'p{level}_ms']:.0f}" for level in (50, 95, 99)),
            f"{row['cpu_ms_per_image']:.1f}",
        ]
        for row in _pick(rows, "throughput")
    ]
    alone = [
        [
            row["model"],
            row["body"],
            f"{row['in_process_ms']:.1f}",
            f"{row['added_ms']:.1f}",
            "{:.1f} to {:.1f}".format(*row["added_ms_quartiles"]),
        ]
        for row in _pick(rows, "added_latency")
    ]
    (start,), (disk,) = _pick(rows, "start"), _pick(rows, "disk")
    memory = [[row["model"], f"{row['worker_mib_ready']:.0f}", f"{row['worker_mib_after']:.0f}"] for row in _pick(rows, "memory")]
    client = max(row["client_cpu_ms_per_image"] for row in _pick(rows, "throughput"))
    return "\n\n".join(
        [
            markdown(head, lines),
            f"The client used at most {client:.2f} ms of processor time an image; bringing 32 KiB to this disk took "
            f"{disk['sync_ms']:.1f} ms.",
            "One image alone:",
            markdown(["model", "body", "in process, ms", "added by the service, ms", "quartiles"], alone),
            f"From start to ready: {', '.join(f'{value:.1f}' for value in start['seconds'])} s.",
            markdown(["model", "worker's memory when ready, MiB", "after the measurements"], memory),
        ]
    )


def draw(axes: Any, rows: Sequence[dict[str, Any]], aim: float) -> None:
    """Draw the shares of the loop at concurrency 8, with their spread over the repeats."""
    chosen = [row for row in _pick(rows, "throughput") if row["concurrency"] == 8]
    bodies = list(dict.fromkeys(row["body"] for row in chosen))
    for number, contender in enumerate(COLOURS):
        some = [next(row for row in chosen if row["body"] == body and row["contender"] == contender) for body in bodies]
        ratios = [row["ratio"] for row in some]
        spread = [[row["ratio"] - row["ratio_low"] for row in some], [row["ratio_high"] - row["ratio"] for row in some]]
        places = [place + 0.27 * (number - 1) for place in range(len(bodies))]
        axes.bar(places, ratios, 0.25, yerr=spread, capsize=3, color=COLOURS[contender], label=NAMES[contender])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhline(aim, color="#b03a2e", linewidth=0.8, linestyle="--", label=f"goal {aim}")
    axes.set_xticks(range(len(bodies)), [body.upper() for body in bodies])
    axes.set_ylabel("throughput / in-process loop")
    axes.set_title("ResNet-18 at 224, concurrency 8, two cores")
    axes.set_ylim(0, 1.2)
    axes.legend(loc="lower right", ncols=2)
