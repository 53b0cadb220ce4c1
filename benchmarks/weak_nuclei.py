"""How good are nuclei from points, against full masks? Eight kinds of supervision of one network, and what each costs an expert.

python benchmarks/weak_nuclei.py --data FOLDER --scale small --work runs/benchmarks

At the small scale, 180 cells of one minute (labels alone) to two (with edges and the pairwise loss) of one core, about four
hours. A cell that was killed goes on from its last epoch. The weights stay in the work folder: a cell whose line is removed from
the log is only measured anew.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.nuclei_cells import SEEDS, Cell, cells
from benchmarks.nuclei_scores import METRICS, choose_separation, drawn, measure
from benchmarks.nuclei_summary import draw, page, summarise
from benchmarks.nuclei_training import Recipe, Slides, annotated, expert_minutes, look, read_slides, train

PAGE = report.ROOT / "docs" / "nuclei.md"
RECIPES = {
    "smoke": Recipe((4, 8), 1, 4, (4, 8), epochs=1, steps_per_epoch=2, batch_size=2, crop=32, most=2, side=128, looked_at=1),
    "small": Recipe((16, 32, 64, 128), 2, 16, (8, 16, 32), epochs=25, steps_per_epoch=20, batch_size=8, crop=128),
    "paper": Recipe((64, 128, 256, 512), 2, 64, (64, 128, 256, 512), epochs=100, steps_per_epoch=100, batch_size=16, crop=224),
}
"""``paper`` has the published edge network (four convolutions of 64 channels), weights of the losses and learning rate, and
ResNet-18's widths in both pyramids (published: ResNet-50 for f, ResNet-18 for h), but begins with random weights, and the number
of steps is ours."""


def run_cell(cell: Cell, slides: Slides, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train one cell, choose the separation on training images, return the line with what every test image got."""
    started = time.process_time()
    given = annotated(slides.train(cell.fold, cell.share, cell.seed), cell.method, cell.marks, cell.seed)
    domains = tuple(sorted({each.domain for each in given}))
    module = train(given, recipe.config(cell.method, domains, cell.seed), folder / cell.key)
    known = drawn(given, recipe.looked_at, cell.seed)
    spec, chosen_by = choose_separation(known, look(module, known))
    test = slides.test(cell.fold)
    values = [measure(each, found, spec) for each, found in zip(test, look(module, test), strict=True)]
    return {
        "key": cell.key, "data": cell.data, "fold": cell.fold, "row": cell.row, "share": cell.share, "seed": cell.seed,
        "minutes": round(expert_minutes(given), 3), "trained_on": len(given),
        "images": [each.number for each in test], "groups": [each.group for each in test],
        **{metric: [round(value[metric], 5) for value in values] for metric in METRICS},
        "separation": [spec.smoothing, spec.peak_distance, spec.min_area], "chosen_by": round(chosen_by, 5),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def main() -> None:
    """Run the cells that are missing, then write the result."""
    options = report.cells_parser(__doc__, "folder with nuclei", RECIPES).parse_args()
    torch.set_num_threads(1)
    folder = options.work / options.scale
    log = report.cell_log("weak_nuclei", options.scale, folder)
    recipe = RECIPES[options.scale]

    @cache
    def slides(name: str) -> Slides:
        return read_slides(options.data, name, recipe)

    report.run_cells(
        log,
        [] if options.summary else cells(options.scale),
        lambda cell: run_cell(cell, slides(cell.data), recipe, folder / "weak_nuclei"),
        lambda line: ", ".join(f"{metric} {np.mean(line[metric]):.3f}" for metric in METRICS),
    )
    rows, goals = summarise(report.finished(log, cells(options.scale)))
    file = report.write("weak_nuclei", options.scale, SEEDS, rows, goals)
    report.plot(file, lambda axes: draw(rows, axes), size=(9.0, 4.0))
    if options.scale == "small":
        report.fill(PAGE, "weak_nuclei", page(rows, goals))
    print(file)


if __name__ == "__main__":
    main()
