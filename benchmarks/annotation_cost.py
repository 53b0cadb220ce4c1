"""How many expert minutes until a model holds at a hospital it has not seen? All that lowers them, together and each alone.

python benchmarks/annotation_cost.py --data FOLDER --scale small --work runs/benchmarks

The first models of the classifiers are those of ``generalization.py``, and the adapted ones those of ``adaptation.py``, where
they lie in the work folder, or else trained there.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import cost_classifiers, cost_nuclei, report
from benchmarks.cost_cells import NUCLEI, Cell, cells
from benchmarks.cost_summary import draw, summarise, table
from benchmarks.domains import Domains, load
from benchmarks.generalization import MOST, RECIPES, SEEDS
from benchmarks.nuclei_training import Slides, read_slides
from benchmarks.weak_nuclei import RECIPES as NUCLEI_RECIPES

FIGURE_TEXT = "What each way reaches on test images of the new hospital, against expert minutes"
PAGE, README = report.ROOT / "docs" / "annotation-cost.md", report.ROOT / "README.md"


def main() -> None:
    """Run the cells that are missing, then write the result."""
    options = report.cells_parser(__doc__, "folder with pacs, cxr, wbc and nuclei", RECIPES).parse_args()
    torch.set_num_threads(1)
    scale, folder = options.scale, options.work / options.scale
    log = report.cell_log("annotation_cost", scale, folder)

    @cache
    def domains(of: str) -> Domains:
        return load(of, options.data, options.work / "cache", RECIPES[scale].side, MOST[scale])

    @cache
    def slides(name: str) -> Slides:
        return read_slides(options.data, name, NUCLEI_RECIPES[scale])

    def run(cell: Cell) -> dict[str, Any]:
        return line_of(cell, scale, folder, domains, slides)

    report.run_cells(
        log, [] if options.summary else cells(scale), run, lambda line: f"{line['scores'][0]:.3f} to {line['scores'][-1]:.3f}"
    )
    rows, goals = summarise(report.finished(log, cells(scale)))
    file = report.write("annotation_cost", scale, SEEDS, rows, goals)
    report.plot(file, lambda axes: draw(rows, axes), size=(12.0, 4.0))
    if scale == "small":
        report.fill(PAGE, "annotation_cost", table(rows, goals))
        picture = f"![{FIGURE_TEXT}](benchmarks/results/annotation_cost.png)"
        report.fill(README, "annotation_cost", f"{table(rows, goals, whole=False)}\n\n{picture}")
    print(file)


def line_of(cell: Cell, scale: str, folder: Path, domains: Any, slides: Any) -> dict[str, Any]:
    """Run one cell: return its line, with the whole curve.

    Parameters
    ----------
    domains, slides : callable
        Give a data set by its name.
    """
    started = time.process_time()
    if cell.data == NUCLEI:
        found = cost_nuclei.curve(cell, slides("dsb18"), slides(NUCLEI), scale, folder / "annotation_cost")
    else:
        found = cost_classifiers.curve(cell, domains(cell.data), scale, folder)
    return {
        "key": cell.key, "data": cell.data, "target": cell.target, "arm": cell.arm.name, "seed": cell.seed, **asdict(found),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
