"""How a candidate compares with the package that answers, on this site's own images: ``GET /v1/candidates``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from starlette.responses import Response

from models.agreement import same_class
from models.card import ModelCard
from models.triage import Verdict, called_findings
from service.comparisons import Comparisons, Labelled, Sum
from service.label_documents import class_of
from service.label_rules import decide
from service.lineup import Served
from service.loop_schemas import (
    CandidateModel,
    Candidates,
    ComparedErrors,
    ComparedScans,
    ComparedVerdicts,
    ItemModel,
    Shadowed,
)
from service.routes import Call, Handler, json_response

if TYPE_CHECKING:
    from service.analysis import Site

REPLICATES = 1000


def paired_interval(differences: Sequence[float], groups: Sequence[str]) -> tuple[float, float] | None:
    """Return the 95% interval of the mean of paired differences, by resampling groups with all their members.

    Parameters
    ----------
    differences : sequence of float
        One an image: the candidate's error minus the current package's.
    groups : sequence of str
        Patient of each image: images of one are not independent.

    Returns
    -------
    (float, float) or None
        The 2.5% and 97.5% quantiles of 1000 draws, always the same ones; None for fewer than two groups.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return None
    sums, numbers = np.bincount(index, weights=differences), np.bincount(index)
    random = np.random.default_rng(0)
    means = []
    for _ in range(REPLICATES):
        drawn = random.integers(0, len(names), len(names))
        means.append(sums[drawn].sum() / numbers[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _scans(site: str, sums: Sequence[Sum]) -> ComparedScans:
    number = sum(each.number for each in sums)
    return ComparedScans(
        site=site,
        compared=number,
        same_verdict=sum(each.number for each in sums if each.verdict == each.candidate_verdict),
        same_findings=sum(each.same_findings for each in sums),
        current_mean_predicted_loss=sum(each.current_loss for each in sums) / number if number else None,
        candidate_mean_predicted_loss=sum(each.candidate_loss for each in sums) / number if number else None,
    )


def _decided(given: Sequence[Labelled], readers: int) -> dict[str, bool] | None:
    """Return the classes that were decided of one image; None where nothing is yet."""
    rows = [{"standing": each.standing, "document": each.document} for each in given]
    label = decide(rows, readers, lambda a, b: same_class(class_of(a["document"]), class_of(b["document"]))).label
    return None if label is None else label["document"]


def _wrong(card: ModelCard, probabilities: dict[str, float], verdict: Verdict, truth: dict[str, bool]) -> bool:
    called = called_findings(probabilities, card, verdict)
    return any(positive != truth[label] for label, positive in called.items())


def compared_errors(
    current: ModelCard, candidate: ModelCard, labelled: Iterable[Labelled], readers: int
) -> ComparedErrors | None:
    """Return how often each package called a finding wrongly, of the images that ``readers`` decided; None where none were."""
    ours, theirs, patients = [], [], []
    for _, group in groupby(labelled, key=lambda each: each.image_sha256):
        given = list(group)
        truth = _decided(given, readers)
        if truth is not None:
            last = given[-1]
            ours.append(_wrong(current, last.probabilities, last.verdict, truth))
            theirs.append(_wrong(candidate, last.candidate_probabilities, last.candidate_verdict, truth))
            patients.append(last.patient)
    if not patients:
        return None
    differences = [float(new) - float(old) for new, old in zip(theirs, ours, strict=True)]
    interval = paired_interval(differences, patients)
    return ComparedErrors(
        images=len(patients),
        patients=len(set(patients)),
        current_errors=sum(ours),
        candidate_errors=sum(theirs),
        difference=sum(differences) / len(differences),
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
    )


def _brief(served: Served) -> ItemModel:
    card = served.predictor.card
    return ItemModel(name=card.name, version=card.version, sha256=served.predictor.sha256)


def _model(rows: Comparisons, readers: int, current: Served, candidate: Served | None) -> CandidateModel:
    card = current.predictor.card
    if candidate is None:
        return CandidateModel(name=card.name, task=card.task, current=_brief(current), candidate=None, shadow=None)
    pair = current.predictor.sha256, candidate.predictor.sha256
    sums = rows.sums(*pair)
    verdicts: dict[tuple[str, str], int] = {}
    for each in sums:
        key = each.verdict, each.candidate_verdict
        verdicts[key] = verdicts.get(key, 0) + each.number
    errors = None
    if isinstance(card, ModelCard) and isinstance(candidate.predictor.card, ModelCard):
        errors = compared_errors(card, candidate.predictor.card, rows.labelled(*pair), readers)
    shadow = Shadowed(
        total=_scans("", sums),
        by_site=[_scans(site, list(group)) for site, group in groupby(sums, key=lambda each: each.site)],
        verdicts=[
            ComparedVerdicts(verdict=verdict, candidate_verdict=theirs, scans=number)
            for (verdict, theirs), number in sorted(verdicts.items())
        ],
        errors=errors,
    )
    return CandidateModel(name=card.name, task=card.task, current=_brief(current), candidate=_brief(candidate), shadow=shadow)


def candidates(site: Site) -> Candidates:
    """Return the state of every model's candidate; blocking."""
    rows, readers, beside = Comparisons(site.store), site.settings.readers, site.lineup.candidates
    return Candidates(models=[_model(rows, readers, served, beside.get(name)) for name, served in site.lineup.current.items()])


async def _candidates(site: Site, call: Call) -> Response:
    call.query()
    return json_response(await site.engine.run(lambda: candidates(site)))


CANDIDATE_HANDLERS: dict[tuple[str, str], Handler] = {("GET", "/v1/candidates"): _candidates}
