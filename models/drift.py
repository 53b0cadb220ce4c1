"""Do a site's scans still look like the site's own earlier ones? A sequential test with a stated false-alarm rate.

Every scan is ranked, by predicted loss and by domain distance, among all scans of its site so far. While nothing changes, the
ranks are independent and uniform, whatever the scores' distribution is. The test bets against that: Shiryaev and Roberts'
statistic, averaged over bets of several shapes. Nothing of it is fitted to images of another place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.card import Calibration

Floats = NDArray[np.float64]

ALARM = 1_000_000.0
"""Least mean number of scans to a false alarm. The chance of one within n scans is at most n / ALARM."""
REFERENCE = 300
"""Scans of a site that are ranked but not bet on: before them a rank says little."""
CAP = 1e12
"""Of a bet's statistic, so that it never overflows. Less than the rules allow is a loss for the test, never a false alarm."""
CELLS = 4
"""Bins between two neighbouring of the card's quantiles."""
BEYOND = 200
"""Bins on each side outside of the calibration set's range, each a hundredth of that range wide."""
SCORES = ("loss_score", "domain_distance")


def edges(quantiles: Sequence[float]) -> Floats:
    """Return the edges between bins of a score, increasing, that follow from its quantiles in the card alone.

    Parameters
    ----------
    quantiles : sequence of float
        Not decreasing.

    Returns
    -------
    ndarray of float64
        A score below the first is in bin 0, one from the last on in the last bin; there is one bin more than edges.
    """
    table = np.asarray(quantiles, dtype=np.float64)
    inner = np.interp(np.arange(CELLS * (len(table) - 1) + 1) / CELLS, np.arange(len(table)), table)
    width = max(float(table[-1] - table[0]), 1e-9) / 100
    outside = width * np.arange(1, BEYOND + 1)
    return np.unique(np.concatenate([table[0] - outside, inner, table[-1] + outside]))


def bets(rank: float) -> Floats:
    """Return what each bet makes of a rank in [0, 1): the value of a density on [0, 1] there, so 1 on average if it is uniform.

    In order: ranks have become high (slightly, clearly, mostly extreme), low (the same), spread to both ends, and gathered in the
    middle.
    """
    high, low = max(rank, 1e-6), max(1 - rank, 1e-6)
    tilt = 2 * rank - 1
    return np.array([
        1 + 0.5 * tilt, 1 + 0.95 * tilt, 0.5 * low**-0.5,
        1 - 0.5 * tilt, 1 - 0.95 * tilt, 0.5 * high**-0.5,
        1 / (np.pi * np.sqrt(high * low)), 6 * rank * (1 - rank),
    ])  # fmt: skip


BETS = len(bets(0.5))


@dataclass
class Drift:
    """The test's state for one site and model package.

    Attributes
    ----------
    seen : int
        Scans so far.
    counts : tuple of ndarray of int64
        Of each of :data:`SCORES`, how many scans are in each bin.
    wealth : ndarray of float64, shape (2, BETS)
        Shiryaev and Roberts' statistic of each score and bet.
    alarm_at : int or None
        Number of the scan at which the alarm was raised; it stays until the test begins anew.
    """

    seen: int
    counts: tuple[NDArray[np.int64], NDArray[np.int64]]
    wealth: Floats
    alarm_at: int | None = None

    @classmethod
    def start(cls, calibration: Calibration) -> Self:
        """Return the state before a site's first scan."""
        tables = (edges(table) for table in (calibration.loss_quantiles, calibration.domain_quantiles))
        first, second = (np.zeros(len(table) + 1, dtype=np.int64) for table in tables)
        return cls(0, (first, second), np.zeros((len(SCORES), BETS)))

    @property
    def statistic(self) -> float:
        """What is compared with :data:`ALARM`: at least 0, in scans."""
        return float(self.wealth.mean())

    @property
    def ready(self) -> bool:
        """Whether the site has its reference."""
        return self.seen >= REFERENCE


class DriftTest:
    """The test of one model package.

    Parameters
    ----------
    calibration : Calibration
        Of the package's card: it gives the bins.

    Notes
    -----
    With ties broken at random, ranks among all so far are independent and uniform as long as the scans are exchangeable, binned
    or not (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, chapter 8; conformal test martingales:
    Vovk, "Testing randomness online", Statistical Science 2021, arXiv:1906.09256). For a bet b with mean 1,
    R_n = (1 + R_{n-1}) b(rank_n) then has R_n - n as a martingale, and so has any average of such R, however the scores depend
    on each other. Hence the mean number of scans to R >= A is at least A (Pollak, Annals of Statistics 1985), and by Doob's
    inequality the chance of reaching A within n scans is at most n / A. Volkhonskiy et al., "Inductive conformal martingales
    for change-point detection", COPA 2017, arXiv:1706.03415, compare such statistics.

    Exchangeable is more than "the same scanner": a change of the patients, of the season or of the protocol is drift as well, and
    scans of one patient in a row are not independent.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._edges = (edges(calibration.loss_quantiles), edges(calibration.domain_quantiles))

    def see(self, state: Drift, scores: tuple[float, float], ties: tuple[float, float]) -> None:
        """Take one scan into the state.

        Parameters
        ----------
        state : Drift
            Changed in place.
        scores : tuple of float
            Raw loss score and domain distance, as a prediction has them.
        ties : tuple of float, in [0, 1)
            Uniform, independent of the scores and of each other: they break ties.
        """
        state.seen += 1
        for row, (counts, table, score, tie) in enumerate(zip(state.counts, self._edges, scores, ties, strict=True)):
            place = int(np.searchsorted(table, score, side="right"))
            counts[place] += 1
            rank = (int(counts[:place].sum()) + tie * int(counts[place])) / state.seen
            if state.seen > REFERENCE:
                state.wealth[row] = np.minimum((1 + state.wealth[row]) * bets(rank), CAP)
        if state.alarm_at is None and state.statistic >= ALARM:
            state.alarm_at = state.seen


def uniform(digest: str) -> tuple[float, float]:
    """Return two numbers in [0, 1) from a SHA-256 in hexadecimal: a scan that is taken again breaks its ties the same way."""
    return int(digest[:13], 16) / 16.0**13, int(digest[13:26], 16) / 16.0**13


def replay(calibration: Calibration, scores: NDArray[Any], seed: int) -> Drift:
    """Return the state after scans of scores (N, 2), in order; ties are broken by a seeded generator."""
    test, state = DriftTest(calibration), Drift.start(calibration)
    for row, ties in zip(scores, np.random.default_rng(seed).random((len(scores), 2)), strict=True):
        test.see(state, (float(row[0]), float(row[1])), (float(ties[0]), float(ties[1])))
    return state
