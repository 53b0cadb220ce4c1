"""Which segmenters the benchmark of nuclei trains: rows, robustness, and budgets of an expert's time."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.nuclei_training import FOLDS, Marks, Method

SEEDS = (0, 1, 2)
TEST_FOLDS = {"dsb18": (0,), "monuseg": tuple(range(FOLDS))}
CURVE_FOLD = 0
"""Where less is annotated, or otherwise, in both sets of images."""
POINTS, VORONOI = Method("points", "points"), Method("+ Voronoi", "voronoi")
CLUSTER = Method("+ clusters", "cluster")
RIVAL = Method("+ clusters and pairwise", "cluster", crf=True)
"""The recipe of Qu et al. (MIDL 2019), the strongest from points that was known: what *combined* has beside its edges."""
EDGES = Method("PseudoEdgeNet without h", "voronoi", "pseudo_edge")
ATTENTION = Method("PseudoEdgeNet", "voronoi", "pseudo_edge_attention")
COMBINED = Method("combined", "cluster", "pseudo_edge_attention", crf=True)
MASKS = Method("full masks", "masks")
METHODS = (POINTS, VORONOI, CLUSTER, RIVAL, EDGES, ATTENTION, COMBINED, MASKS)
EXACT = Marks("")
NOISY = (
    Marks("points up to 5 px off", jitter=5.0),
    Marks("10% of points missing", missing=0.1),
    Marks("10% of points doubled", doubled=0.1),
)
"""What may go wrong when nuclei are marked, of the combined supervision."""
OTHERWISE = (
    Marks("scribbles", strokes=True),
    Marks("10% of points", missing=0.9, complete=False),
    Marks("points of a region with 10%", share=0.1),
)
"""Other ways to mark, of the combined supervision, in one fold: strokes, and an image that is annotated in part."""
SHARES = {MASKS: (0.125, 0.25, 0.5), COMBINED: (0.25, 0.5)}
"""Of the training images that are annotated, beside all of them."""


@dataclass(frozen=True)
class Cell:
    """One training run and its test."""

    data: str
    fold: int
    method: Method
    marks: Marks
    share: float
    seed: int

    @property
    def row(self) -> str:
        """Name of the row that the cell belongs to, but for the share."""
        return ", ".join(filter(None, [self.method.name, self.marks.name]))

    @property
    def key(self) -> str:
        """Name of the cell, of its line in the log and of the folder of its weights."""
        words = [self.data, str(self.fold), *self.row.replace("%", "").replace("+", "").replace(",", "").split()]
        return "-".join([*words, f"{self.share:g}", str(self.seed)])


def cells(scale: str) -> list[Cell]:
    """Return all cells of a scale: one seed of everything before the next, and the rows of the table first."""
    found = []
    for seed in SEEDS[:1] if scale == "smoke" else SEEDS:
        places = [(data, fold) for data, folds in TEST_FOLDS.items() for fold in folds]
        if scale == "smoke":
            places = [(data, CURVE_FOLD) for data in TEST_FOLDS]
        found += [Cell(*place, method, EXACT, 1.0, seed) for place in places for method in METHODS]
        found += [Cell(*place, COMBINED, marks, 1.0, seed) for place in places for marks in NOISY]
        found += [Cell(data, CURVE_FOLD, COMBINED, marks, 1.0, seed) for data in TEST_FOLDS for marks in OTHERWISE]
        found += [
            Cell(data, CURVE_FOLD, method, EXACT, share, seed)
            for data in TEST_FOLDS for method, shares in SHARES.items() for share in shares
        ]  # fmt: skip
    return found
