"""Are promises kept, and is review as frequent as it says? Drawn answers, so that the truth is known.

A limit with "95% confidence" may be wrong in one site of twenty; an image at the 95th percentile shall be one of twenty, of
however many tiles it is made. Each beside the rule that was there before, as a control that breaks.

python benchmarks/promises.py --scale small
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks import report
from models import certificate
from models.card import ZOO, Finding, ModelCard, read_package
from models.certificate import Answers, View, triage
from models.estimates import Sample
from models.thresholds import beginning
from models.uncertainty import image_percentile

Floats = NDArray[np.float64]
Row = dict[str, Any]
DRAWS = {"smoke": 20, "small": 1000, "paper": 10_000}
SEEDS = (0, 1, 2)
LEVEL, TARGET = 0.95, 0.1
SITES = ((2000, 100), (2000, 200), (2000, 400), (400, 400))
"""Images, and those of them that are labelled."""
TILES = (1, 4, 25, 100)
ALIKE = (0.0, 0.5, 0.7, 0.9)
"""Part of the variance of its tiles' normal scores that an image's tiles share."""
LIMIT = 95.0


def hopeless(random: np.random.Generator, images: int) -> tuple[Floats, float]:
    """Return the chance of the finding: a tenth of the calls is as good as wrong, the others are certain; and what calls it."""
    return np.where(random.random(images) < TARGET / 0.95, 0.05, 1.0), 0.01


def coins(random: np.random.Generator, images: int) -> tuple[Floats, float]:
    """Return the chance of the finding: one image in five is called by the toss of a coin, the others are certain."""
    tossed = random.random(images) < 2 * TARGET
    return np.where(tossed, 0.5, random.integers(0, 2, images)), 0.5


KINDS: dict[str, Callable[[np.random.Generator, int], tuple[Floats, float]]] = {
    "a tenth is hopeless": hopeless,
    "a fifth by a coin": coins,
}


def by_the_labelled(within: NDArray[np.bool_], expected: Floats, labelled: NDArray[np.int64], target: float, _: float) -> int:
    """Begin where the predictions of the labelled images foresee the most power: the rule before."""
    hits = np.floor(within[:, labelled] @ expected[labelled])
    return int(stats.binom.sf(hits - 1, within[:, labelled].sum(axis=1), target).argmin())


BEGINNINGS = {"from the others": beginning, "from the labelled (before)": by_the_labelled}


def broken(card: ModelCard, kind: str, site: tuple[int, int], draws: int, seed: int) -> float:
    """Return how often an error just below the true one is promised, with no limit better than another."""
    random = np.random.default_rng((seed, *site))
    images, labelled = site
    promised = 0
    for _ in range(draws):
        chance, point = KINDS[kind](random, images)
        finding: Finding = card.output.findings[0].model_copy(update={"operating_point": point})
        labels = (random.random(images) < chance).astype(np.int64)
        answers = Answers(np.column_stack([1 - chance, chance]), 1 - chance, 100 * random.random(images), np.zeros(images, bool))
        sample = Sample(random.choice(images, labelled, replace=False), np.full(labelled, labelled / images))
        view = View.of(finding, card, answers)
        found = triage(view, answers, labels[sample.index], sample, card, 0, TARGET - 1e-9)
        promised += found["site"] is not None
    return promised / draws


def mean_of_scores(ranks: Floats) -> float:
    """Return the rank of the mean of normal scores among those of single tiles: the rule before."""
    return float(100 * stats.norm.cdf(stats.norm.ppf(np.clip(ranks / 100, 1e-9, 1 - 1e-9)).mean()))


RANKS = {"a third of the tiles": image_percentile, "mean of the tiles (before)": mean_of_scores}


def reviewed(rule: Callable[[Floats], float], tiles: int, alike: float | None, draws: int, seed: int) -> float:
    """Return how many images reach the limit: at home, or (``alike`` None) with half of the tiles from the worst twentieth."""
    random = np.random.default_rng((seed, tiles))
    count = 0
    for _ in range(draws):
        if alike is None:
            worst = np.arange(tiles) < tiles / 2
            ranks = np.where(worst, LIMIT + (100 - LIMIT) * random.random(tiles), 100 * random.random(tiles))
        else:
            scores = np.sqrt(alike) * random.normal() + np.sqrt(1 - alike) * random.normal(size=tiles)
            ranks = 100 * stats.norm.cdf(scores)
        count += rule(ranks) >= LIMIT
    return count / draws


def row(words: dict[str, Any], measured: list[float]) -> Row:
    """Return a row of the result: mean and spread over the seeds."""
    return words | {
        "mean": round(float(np.mean(measured)), 4),
        "std": round(float(np.std(measured, ddof=1)), 4),
        "n": len(measured),
    }


def main() -> None:
    """Draw, and write the result and its plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=tuple(DRAWS), default="small")
    scale = parser.parse_args().scale
    draws = DRAWS[scale]
    card = read_package(ZOO / "cxr-pneumonia")[0]
    assert isinstance(card, ModelCard)
    rows = []
    for kind in KINDS:
        for site in SITES:
            for name, rule in BEGINNINGS.items():
                with patch.object(certificate, "beginning", rule):
                    measured = [broken(card, kind, site, draws, seed) for seed in SEEDS]
                words = {"measure": "broken promises", "answers": kind, "images": site[0], "labels": site[1], "rule": name}
                rows.append(row(words, measured))
                print(rows[-1], flush=True)
    for tiles in TILES:
        for alike in (*ALIKE, None):
            for name, ranked in RANKS.items():
                measured = [reviewed(ranked, tiles, alike, draws, seed) for seed in SEEDS]
                where = "half from the worst twentieth" if alike is None else "at home"
                words = {"measure": "images for review", "images_are": where, "tiles": tiles, "rule": name}
                rows.append(row(words | ({} if alike is None else {"alike": alike}), measured))
                print(rows[-1], flush=True)
    kept = [1 - each["mean"] for each in rows if each["rule"] == "from the others"]
    goals = [report.goal("promises with 95% confidence that are kept, the worst site", min(kept), LEVEL)]
    file = report.write("promises", scale, SEEDS, rows, goals)

    def draw(axes: Any) -> None:
        for name in BEGINNINGS:
            bars = [each for each in rows if each["rule"] == name]
            labels = [f"{each['answers']}\n{each['labels']} of {each['images']}" for each in bars]
            axes.errorbar(labels, [each["mean"] for each in bars], [each["std"] for each in bars], fmt="o", label=name)
        axes.axhline(1 - LEVEL, color="black")
        axes.set_ylabel("promises broken")
        axes.tick_params(axis="x", labelrotation=60, labelsize=7)
        axes.legend()

    report.plot(file, draw)


if __name__ == "__main__":
    main()
