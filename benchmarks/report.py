"""What every benchmark leaves behind: one JSON document with its goals, met or not, and a plot beside it."""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Protocol, TypeVar

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SMOKE = ROOT / "build" / "benchmarks"
"""Where ``--scale smoke`` writes: it judges nothing, so it must not replace a committed figure."""
PACKAGES = ("bentoml", "numpy", "onnxruntime", "pillow", "pydicom", "ray", "torch", "uvicorn")


class Keyed(Protocol):
    """A cell: what is run at once, and found again by its key."""

    @property
    def key(self) -> str:
        """Name of the cell and of its line."""


C = TypeVar("C", bound=Keyed)


def goal(name: str, value: float, at_least: float) -> dict[str, Any]:
    """Return the record of a goal that a value has to reach."""
    return {"name": name, "value": round(value, 4), "goal": at_least, "met": value >= at_least}


def _commit() -> str:
    """Return the commit, with "+changes" where the code that ran was not it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "models", "service", "training", "benchmarks/*.py")
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if changed else "")


def _machine() -> dict[str, Any]:
    import psutil

    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": dict(sorted((each.name.lower(), each.version) for each in distributions() if each.name.lower() in PACKAGES)),
    }


def write(name: str, scale: str, seeds: Sequence[int], rows: list[dict[str, Any]], goals: list[dict[str, Any]]) -> Path:
    """Write the result of a benchmark.

    Parameters
    ----------
    name : str
        Of the benchmark; the file is ``NAME.json``.
    scale : str
        As it was run; "smoke" judges no goal and is written to ``build/benchmarks`` instead of ``benchmarks/results``.
    seeds : sequence of int
    rows : list of dict
        What was measured; finite numbers and text.
    goals : list of dict
        From :func:`goal`. Goals that are not met stay.

    Returns
    -------
    Path
    """
    folder = SMOKE if scale == "smoke" else RESULTS
    # Where the data lies on one machine is nobody's business, and no help to who repeats it
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": _machine(),
        "scale": scale,
        "seeds": list(seeds),
        "rows": rows,
        "goals": [] if scale == "smoke" else goals,
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return file


def cells_parser(
    description: str | None, data: str, scales: Iterable[str], work: str = "folder for finished cells; give it again to go on"
) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that is run cell by cell; ``data`` and ``work`` say what these folders hold."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--scale", choices=tuple(scales), required=True)
    parser.add_argument("--work", type=Path, required=True, help=work)
    parser.add_argument("--summary", action="store_true", help="run nothing: write the result of the cells that are finished")
    return parser


def cell_log(name: str, scale: str, folder: Path) -> Path:
    """Return where the lines of finished cells are kept: beside the result, since they are what it was made from.

    A log that is in the repository outlives the machine that ran its cells. ``smoke`` judges nothing and keeps it in its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.jsonl" if scale == "smoke" else RESULTS / f"{name}-{scale}.jsonl"


def lines(log: Path) -> dict[str, dict[str, Any]]:
    """Return what is in a log of finished cells, by key."""
    found = log.read_text().splitlines() if log.exists() else []
    return {record["key"]: record for record in map(json.loads, found)}


@contextmanager
def claim(log: Path, key: str) -> Iterator[bool]:
    """Give whether this process is to run a cell: it is not in the log, and no other process is at it.

    The claim is a lock of the operating system, so that a process that dies lets it go.
    """
    with log.with_name(f".{log.stem}-{key}.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield key not in lines(log)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in a block with the same lock file."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def run_cells(log: Path, todo: Sequence[C], run: Callable[[C], dict[str, Any]], say: Callable[[dict[str, Any]], str]) -> None:
    """Run the cells that are missing in a log, and append the line of each as it finishes.

    Parameters
    ----------
    log : Path
        From :func:`cell_log`.
    todo : sequence
        Cells, each with a ``key``.
    run : callable
        Makes a cell's line, which holds its ``key``.
    say : callable
        A line's figures in a few words, for the one who waits.
    """
    for number, cell in enumerate(todo, start=1):
        with claim(log, cell.key) as mine:
            if mine:
                line = run(cell)
                with log.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(f"{number}/{len(todo)} {cell.key}: {say(line)}, {line['cpu_seconds']} s", flush=True)


def finished(log: Path, wanted: Sequence[Keyed]) -> list[dict[str, Any]]:
    """Return the lines of those cells that are finished."""
    keys = {cell.key for cell in wanted}
    return [line for key, line in lines(log).items() if key in keys]


def plot(file: Path, draw: Callable[[Any], None], size: tuple[float, float] = (7.0, 4.0)) -> Path:
    """Draw a figure beside a result: ``draw(axes)``, saved as PNG of the same name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    draw(axes)
    picture = file.with_suffix(".png")
    figure.savefig(picture, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return picture


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in a Markdown page."""
    before, begin, rest = page.read_text().partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise ValueError(f"{page.name} lacks the markers of {name!r}")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def verdicts(goals: Sequence[dict[str, Any]]) -> str:
    """Return the goals as a Markdown table, met or not."""
    return markdown(
        ["goal", "wanted", "measured", ""],
        [[g["name"], g["goal"], g["value"], "met" if g["met"] else "**not met**"] for g in goals],
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
