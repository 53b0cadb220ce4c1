"""How many labels a target needs: a power law through measured sizes, with an interval that says how little it may know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Verdict = Literal["reached", "reachable", "out_of_reach", "not_known"]

MIN_SIZES, MIN_SEEDS = 4, 2
"""Sizes that a fit of three numbers needs at least, and seeds that tell chance from curve."""
REPLICATES = 500
HORIZON = 100.0
"""Times the largest measured size beyond which no number is said."""
ROUNDS = 5
EXPONENTS = np.linspace(0.02, 1.5, 100)
SHARES = np.concatenate([[0.0], np.geomspace(1e-2, 100, 99)])
"""Where a curve is looked for: exponents, and the asymptote over what is still to be gained at the largest size."""


@dataclass(frozen=True)
class Curve:
    """error(n) = a n^-b + c."""

    a: float
    b: float
    c: float

    def error(self, n: NDArray[np.floating] | float) -> Floats:
        """Return the error at ``n`` labels."""
        return np.asarray(self.a * np.asarray(n, np.float64) ** -self.b + self.c)

    def labels(self, error: float) -> float:
        """Return how many labels give this error; infinite at or below the asymptote."""
        if error <= self.c:
            return float("inf")
        with np.errstate(over="ignore"):
            return float((self.a / (error - self.c)) ** (1 / self.b))


@dataclass(frozen=True)
class Fit:
    """A curve and what resampling makes of it.

    Attributes
    ----------
    curve : Curve
    replicates : tuple of Curve
    used, left_out : tuple of int
        Sizes.
    follows : bool
        Whether the sizes used are as near to a power law as their seeds' spread allows (lack of fit, 5%).
    """

    curve: Curve
    replicates: tuple[Curve, ...]
    used: tuple[int, ...]
    left_out: tuple[int, ...]
    follows: bool

    def error(self, n: float) -> tuple[float, float, float]:
        """Return the error at ``n`` labels and the ends of its 95% interval."""
        low, high = np.quantile([curve.error(n) for curve in self.replicates], [0.025, 0.975])
        return float(self.curve.error(n)), float(low), float(high)

    def asymptote(self) -> tuple[float, float, float]:
        """Return the error that no number of labels goes below, and the ends of its 95% interval."""
        low, high = np.quantile([curve.c for curve in self.replicates], [0.025, 0.975])
        return self.curve.c, float(low), float(high)

    def labels(self, error: float) -> tuple[float, float, float]:
        """Return how many labels give an error, and the ends of its 95% interval; any may be infinite."""
        found = np.sort([curve.labels(error) for curve in self.replicates])
        low, high = np.quantile(found, [0.025, 0.975], method="nearest")
        return self.curve.labels(error), float(low), float(high)


def fit_curves(sizes: Floats, logs: Floats) -> list[Curve]:
    """Fit a power law to each row by least squares of the logarithm of the error.

    Parameters
    ----------
    sizes : ndarray, shape (M,)
    logs : ndarray, shape (R, M)
        Logarithms of R sets of errors at these sizes.

    Notes
    -----
    With N the largest size, error(n) = e ((n/N)^-b + r), so that r is the asymptote over what is still to be gained at N, and e
    follows from b and r in closed form. These two are searched on a grid: no start to depend on, and hundreds of sets at once.

    References
    ----------
    Hestness et al., arXiv:1712.00409, section 3; Mahmood et al., "How Much More Data Do I Need?", CVPR 2022, arXiv:2207.01725.
    """
    largest = sizes.max()
    exponents, shares = np.meshgrid(EXPONENTS, SHARES, indexing="ij")
    exponents, shares = exponents.ravel(), shares.ravel()
    distinct, which, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    shapes = np.log((distinct / largest) ** -exponents[:, None] + shares[:, None])
    shapes -= (shapes @ counts / len(sizes))[:, None]
    sums = logs @ (which[:, None] == np.arange(len(distinct)))
    best = (shapes**2 @ counts - 2 * sums @ shapes.T).argmin(axis=1)
    curves = []
    for row, place in zip(logs, best, strict=True):
        b, r = float(exponents[place]), float(shares[place])
        scale = float(np.exp((row - np.log((sizes / largest) ** -b + r)).mean()))
        curves.append(Curve(scale * float(largest) ** b, b, scale * r))
    return curves


def lack_of_fit(sizes: Floats, errors: Floats, curve: Curve) -> float:
    """Return the p-value of the hypothesis that the sizes' means lie on the curve but for their seeds' spread (F test)."""
    gaps = np.log(errors) - np.log(curve.error(sizes))
    between = within = 0.0
    groups = [gaps[sizes == size] for size in np.unique(sizes)]
    for group in groups:
        between += len(group) * group.mean() ** 2
        within += float(((group - group.mean()) ** 2).sum())
    free, spread = len(groups) - 3, len(gaps) - len(groups)
    if free < 1 or spread < 1 or within == 0:
        return 1.0
    return float(stats.f.sf((between / free) / (within / spread), free, spread))


def from_power_law(sizes: Floats, errors: Floats) -> tuple[int, Curve, bool]:
    """Leave out sizes before the power law: the smallest, one after the other, while the rest does not fit at 5%.

    Returns
    -------
    left_out : int
        How many sizes; at least :data:`MIN_SIZES` stay.
    curve : Curve
    follows : bool
        Whether what is left fits.
    """
    distinct = np.unique(sizes)
    most = max(0, len(distinct) - MIN_SIZES)
    for left_out in range(most + 1):
        kept = sizes >= distinct[left_out]
        curve = fit_curves(sizes[kept], np.log(errors[kept])[None])[0]
        follows = lack_of_fit(sizes[kept], errors[kept], curve) >= 0.05
        if follows:
            break
    return left_out, curve, follows


def fit(sizes: Sequence[int], scores: Sequence[float], seed: int = 0) -> Fit | None:
    """Fit the learning curve of measured sizes.

    Parameters
    ----------
    sizes : sequence of int, length M
        Labels of each measurement.
    scores : sequence of float, length M, in [0, 1]
        Higher is better; the error is 1 less the score.
    seed : int
        Of the resamples.

    Returns
    -------
    Fit or None
        None where there are fewer than :data:`MIN_SIZES` sizes with :data:`MIN_SEEDS` seeds each: nothing can be told.

    Notes
    -----
    Each replicate is the curve with deviations drawn from those that were seen, of sizes as a whole and of seeds, both widened
    for the numbers that were fitted, so that three seeds that happen to agree do not claim certainty.
    """
    given = np.asarray(sizes, np.float64)
    errors = 1 - np.asarray(scores, np.float64)
    errors = np.maximum(errors, errors[errors > 0].min() / 2 if (errors > 0).any() else 1e-6)
    distinct, counts = np.unique(given, return_counts=True)
    distinct = distinct[counts >= MIN_SEEDS]
    if len(distinct) < MIN_SIZES:
        return None
    known = np.isin(given, distinct)
    given, errors = given[known], errors[known]
    left_out, curve, follows = from_power_law(given, errors)
    kept = given >= distinct[left_out]
    used, which = given[kept], np.searchsorted(distinct[left_out:], given[kept])
    smooth = np.log(curve.error(used))
    deviations = np.log(errors[kept]) - smooth
    # What the seeds of a size share (the test images, the curve's own shape) moves the size as a whole: it is drawn by size
    shared = np.bincount(which, deviations) / np.bincount(which)
    own = deviations - shared[which]
    shared *= np.sqrt(len(shared) / max(len(shared) - 3, 1))
    own *= np.sqrt(len(own) / max(len(own) - len(shared), 1))
    random = np.random.default_rng(seed)
    moved = random.choice(shared, (REPLICATES, len(shared))) * random.choice([-1.0, 1.0], (REPLICATES, len(shared)))
    drawn = smooth + moved[:, which] + random.choice(own, (REPLICATES, len(own)))
    return Fit(
        curve, tuple(fit_curves(used, drawn)), tuple(map(int, distinct[left_out:])), tuple(map(int, distinct[:left_out])), follows
    )
