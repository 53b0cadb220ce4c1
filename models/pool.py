"""``overread select``: a budget of images of a pool, the best to annotate first, by what a model package says of them."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.batch import DOUBTS, find_files
from models.card import DEFAULT_MODEL
from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal
from models.journal import writing
from models.predictor import Predictor
from models.seen import Seen, folder_of, look_at_all, predictions
from models.selection import REASONS, at_random, badge, core_set, margin, most_doubtful, select, typical
from models.triage import judge
from models.uncertainty import entropy

Indices = NDArray[np.int64]
Chosen: TypeAlias = list[tuple[int, tuple[str, ...]]]
"""Index into the pool, and why: the best first."""

WHY: dict[str, str] = REASONS | {
    "random": "It was drawn at random.",
    "typical": "It stands for a group of images that are like each other, of which few are annotated.",
}
"""Code -> what it tells a reader. Codes are stable."""


@dataclass(frozen=True)
class Given:
    """What a strategy may look at; N images to choose from.

    Attributes
    ----------
    loss : ndarray, shape (N,)
        Predicted loss, of any unit.
    probabilities : ndarray, shape (N, K)
    features : ndarray, shape (N, D)
    labelled : ndarray, shape (L, D)
        Features of what is annotated already.
    groups : ndarray, shape (N,), or None
        Patients.
    budget, seed : int
    """

    loss: NDArray[np.floating[Any]]
    probabilities: NDArray[np.floating[Any]]
    features: NDArray[np.floating[Any]]
    labelled: NDArray[np.floating[Any]]
    groups: NDArray[Any] | None
    budget: int
    seed: int


def _because(code: str, indices: Indices) -> Chosen:
    return [(int(index), (code,)) for index in indices]


def _balanced(given: Given) -> Chosen:
    """Choose as the worklist does; one image a patient while there are enough patients."""
    enough = given.groups is not None and len(np.unique(given.groups)) >= given.budget
    predicted = given.probabilities.argmax(axis=1)
    chosen = select(given.loss, predicted, given.features, given.budget, given.groups if enough else None)
    return [(choice.index, choice.reasons) for choice in chosen]


BEST = "learned loss, balance and diversity"
STRATEGIES: dict[str, Callable[[Given], Chosen]] = {
    "random": lambda given: _because("random", at_random(len(given.loss), given.budget, given.seed)),
    "entropy": lambda given: _because("doubtful", most_doubtful(entropy(given.probabilities), given.budget)),
    "margin": lambda given: _because("doubtful", most_doubtful(margin(given.probabilities), given.budget)),
    "core-set": lambda given: _because("different", core_set(given.features, given.labelled, given.budget)),
    "BADGE": lambda given: [
        (index, ("doubtful", "different"))
        for index in badge(given.probabilities, given.features, given.budget, given.seed).tolist()
    ],
    "TypiClust": lambda given: _because("typical", typical(given.features, given.labelled, given.budget, given.seed)),
    "learned loss": lambda given: _because("doubtful", most_doubtful(given.loss, given.budget)),
    BEST: _balanced,
}
"""By the names that ``benchmarks/active_learning.py`` measures them under."""


def once(seen: Sequence[Seen], known: set[str]) -> tuple[list[Seen], list[Seen]]:
    """Split what was read into images to choose from and files passed over.

    Parameters
    ----------
    seen : sequence of Seen
    known : set of str
        Digests of images that are annotated already.

    Returns
    -------
    pool : list of Seen
        Each image once.
    passed_over : list of Seen
        With the error of why: what could not be read, what is annotated, and copies.
    """
    pool: dict[str, Seen] = {}
    passed_over = []
    for each in seen:
        if each.prediction is None:
            passed_over.append(each)
        elif each.digest in known or each.digest in pool:
            what = "annotated already" if each.digest in known else "in the pool under another name"
            passed_over.append(Seen(each.file, digest=each.digest, error="duplicate", detail=f"The image is {what}."))
        else:
            pool[each.digest] = each
    return list(pool.values()), passed_over


def arrays(seen: Sequence[Seen], predictor: Predictor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Return raw loss scores (N,), probabilities (N, K) and features (N, D) of images that were predicted."""
    found = [each.prediction for each in seen if each.prediction is not None]
    loss = np.array([each.loss_score for each in found], dtype=np.float64)
    chances = np.array([list(each.probabilities.values()) for each in found], dtype=np.float64)
    features = np.array([each.features for each in found], dtype=np.float32)
    return loss, chances.reshape(len(found), len(predictor.card.output.classes)), features.reshape(len(found), -1)


def _row(rank: int, each: Seen, why: tuple[str, ...], predictor: Predictor) -> dict[str, Any]:
    prediction = each.prediction
    if prediction is None:
        raise ValueError("only what was predicted can be chosen")
    judgement = judge(prediction, predictor.card.triage, each.notes)
    predicted = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    row = {"rank": rank, "file": str(each.file), "why": " ".join(why), "predicted": predicted}
    row |= {name: getattr(prediction, name) for name in DOUBTS} | {"verdict": judgement.verdict}
    return row | {"image_sha256": each.digest, "model": predictor.card.name, "model_sha256": predictor.sha256}


KEPT = ".predictions.jsonl"
"""Takes the place of ``.csv`` in the name of --out: what the model said of each image."""
COLUMNS = (
    "rank", "file", "why", "predicted", *DOUBTS, "verdict", "image_sha256", "model", "model_sha256", "error", "detail",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "select",
        "Choose what to annotate of a pool of images: the best first, each with why. Bad files are listed at the "
        "end of the output and passed over. Given again, a run that was stopped goes on.",
        "overread select --pool scans/ --budget 30 --out to_annotate.csv",
    )
    parser.add_argument("--pool", type=Path, required=True, metavar="FOLDER", help="images to choose from")
    parser.add_argument("--budget", type=int, required=True, help="images to choose")
    parser.add_argument("--out", type=Path, required=True, help="to_annotate.csv; predictions are kept beside it")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of a classifier's model package")
    parser.add_argument("--strategy", choices=tuple(STRATEGIES), default=BEST, metavar="NAME",
                        help=f"{'; '.join(STRATEGIES)} (the default)")  # fmt: skip
    parser.add_argument("--labelled", type=Path, metavar="FOLDER",
                        help="images that are annotated already: not chosen again, and what is chosen shall be unlike them "
                        "(core-set, TypiClust)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="images read side by side")
    return parser


def main(argv: list[str]) -> int:
    """Run ``overread select``; returns 0, or 1 if a file of the pool could not be read."""
    options = _parser().parse_args(argv)
    if options.budget < 1 or options.threads < 1 or options.seed < 0:
        raise Refusal("config_invalid", "--budget and --threads must be at least 1, --seed at least 0.")
    if options.out.suffix != ".csv":
        raise Refusal("config_invalid", "--out must end in .csv.")
    if not options.out.parent.is_dir():
        raise Refusal("config_invalid", "--out lies in a folder that does not exist.")
    predictor = Predictor.load(options.model)
    files = list(find_files([options.pool]))
    annotated: list[Seen] = []
    of_labelled = list(find_files([options.labelled])) if options.labelled else []
    with predictions(options.out.with_suffix(KEPT), predictor) as kept:
        if of_labelled:
            looked = look_at_all(of_labelled, folder_of(options.labelled), predictor, options.threads, "labelled", kept)
            annotated = [each for each in looked if each.prediction is not None]
        if len(annotated) < len(of_labelled):
            print(f"{len(of_labelled) - len(annotated)} files in --labelled cannot be read and were passed over", file=sys.stderr)
        seen = look_at_all(files, folder_of(options.pool), predictor, options.threads, "pool", kept)
    pool, passed_over = once(seen, {each.digest for each in annotated})
    if not pool:
        raise Refusal("data_invalid", "The pool holds no image that can be read and is not annotated already.")
    loss, chances, features = arrays(pool, predictor)
    labelled = arrays(annotated, predictor)[2] if annotated else features[:0]
    groups = np.array([each.patient for each in pool])
    given = Given(loss, chances, features, labelled, groups, options.budget, options.seed)
    rows = [
        _row(rank, pool[index], why, predictor) for rank, (index, why) in enumerate(STRATEGIES[options.strategy](given), start=1)
    ]
    bad = [{"file": str(each.file), "error": each.error, "detail": each.detail} for each in passed_over]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows([*rows, *bad])
    with writing():
        # A file's name may hold bytes that are no text: they are written as they are
        write_whole(options.out, table.getvalue().encode("utf-8", "surrogateescape"))
    failed = sum(each.error != "duplicate" for each in passed_over)
    print(
        f"{len(files)} files: {len(rows)} of {len(pool)} images chosen, {len(passed_over)} files passed over ({failed} of them "
        f"cannot be read); see {options.out}"
    )
    return 1 if failed else 0
