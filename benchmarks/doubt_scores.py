"""What a doubt is compared with, how it is judged, and the alarm for a whole site: pure functions. Larger is more doubtful."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from sklearn.covariance import LedoitWolf

from models.uncertainty import entropy, softmax
from training.metrics import aurc, auroc

Floats = NDArray[np.floating[Any]]


def mc_dropout(features: Floats, weight: Floats, bias: Floats, rate: float, passes: int, seed: int) -> Floats:
    """Return the entropy (N,) of the mean softmax over passes with dropout on the pooled features.

    Parameters
    ----------
    features : ndarray, shape (N, D)
    weight, bias : ndarray, shapes (K, D), (K,)
        Of the linear layer after the dropout.
    rate : float
        The dropout that it was trained with.

    References
    ----------
    Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016, arXiv:1506.02142, section 4.
    """
    random = np.random.default_rng(seed)
    total = np.zeros((len(features), len(bias)))
    for _ in range(passes):
        kept = (random.random(features.shape) >= rate) / (1 - rate)
        total += softmax((features * kept) @ weight.T + bias, 1.0)
    return entropy(total / passes)


def mahalanobis(train: Floats, labels: NDArray[np.int64], features: Floats) -> Floats:
    """Return the squared distance (N,) to the nearest class mean, by the classes' shared covariance (shrunk).

    References
    ----------
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS
    2018, arXiv:1807.03888, section 2.1.
    """
    classes = np.unique(labels)
    means = np.stack([train[labels == value].mean(axis=0) for value in classes])
    inverse = np.linalg.inv(LedoitWolf().fit(train - means[np.searchsorted(classes, labels)]).covariance_)
    gaps = features[:, None, :] - means[None]
    return np.asarray(np.einsum("nkd,de,nke->nk", gaps, inverse, gaps).min(axis=1))


def vim(train: Floats, train_logits: Floats, features: Floats, logits: Floats, weight: Floats, bias: Floats) -> Floats:
    """Return the scaled norm of what lies outside the principal space of the training features, less the logits' energy (N,).

    References
    ----------
    Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, arXiv:2203.10807, section 4; half of the
    dimensions are principal, as there for small networks.
    """
    origin = -np.linalg.pinv(weight) @ bias
    centred = train - origin
    _, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    residual = vectors[:, : train.shape[1] - train.shape[1] // 2]
    scale = train_logits.max(axis=1).mean() / np.linalg.norm(centred @ residual, axis=1).mean()
    energy = np.asarray(torch.logsumexp(torch.from_numpy(np.asarray(logits, dtype=np.float64)), dim=1))
    return np.asarray(scale * np.linalg.norm((features - origin) @ residual, axis=1) - energy)


def together(*doubts: Floats) -> Floats:
    """Return the mean rank (N,) of several doubts among the images at hand: no scale has to be trusted far from training."""
    return np.asarray(np.mean([rankdata(doubt) for doubt in doubts], axis=0))


def augrc(wrong: NDArray[np.bool_], doubt: Floats) -> float:
    """Return the generalised area under the risk-coverage curve: the share of all images that are wrong and kept, averaged.

    References
    ----------
    Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems", NeurIPS 2024, arXiv:2407.01032.
    """
    return float(np.cumsum(wrong[np.argsort(doubt, kind="stable")]).mean() / len(wrong))


def caught(wrong: NDArray[np.bool_], doubt: Floats, share: float) -> float:
    """Return which share of the errors is among the ``share`` most doubtful images."""
    count = round(share * len(wrong))
    return float(wrong[np.argsort(-doubt, kind="stable")[:count]].sum() / max(1, wrong.sum()))


def judge(wrong: NDArray[np.bool_], losses: Floats, doubt: Floats) -> dict[str, float]:
    """Return every figure of one doubt on one domain."""
    return {
        "error_auroc": auroc(wrong, doubt), "aurc": aurc(wrong, doubt), "augrc": augrc(wrong, doubt),
        "spearman": float(spearmanr(doubt, losses).statistic),
        "caught_10": caught(wrong, doubt, 0.1), "caught_20": caught(wrong, doubt, 0.2),
    }  # fmt: skip


def two_sample(known: Floats, new: Floats, permutations: int, random: np.random.Generator) -> float:
    """Return the p-value of the hypothesis that two samples of features are of one distribution.

    The statistic is the energy distance of the samples, its distribution that under random exchange of their members, so a
    test at level a raises a false alarm in a share a of cases, whatever the features are.

    Parameters
    ----------
    known, new : ndarray, shapes (M, D), (N, D)
    permutations : int
        P; the p-value is a multiple of 1 / (P + 1).

    References
    ----------
    Szekely and Rizzo, "Energy statistics: A class of statistics based on distances", Journal of Statistical Planning and
    Inference 2013, section 6.
    """
    both = np.concatenate([known, new]).astype(np.float64)
    both = (both - known.mean(axis=0)) / (known.std(axis=0) + 1e-6)
    squares = (both**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0))
    signs = np.concatenate([np.full(len(known), 1 / len(known)), np.full(len(new), -1 / len(new))])
    every = np.stack([signs, *(random.permutation(signs) for _ in range(permutations))])
    distances = -np.einsum("pi,pi->p", every @ apart, every)
    return float((distances >= distances[0] - 1e-12).mean())


def alarm(known: list[Floats], new: Floats, random: np.random.Generator, level: float = 0.01, permutations: int = 199) -> bool:
    """Return whether a sample of a site differs, at this level, from *every* known domain (none of them empty)."""
    return all(two_sample(domain, new, permutations, random) <= level for domain in known)
