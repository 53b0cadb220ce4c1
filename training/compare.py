"""A candidate against the current package on the same images, each through the predictor that serves it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.batch import AnyPredictor, load_model
from models.card import SEGMENTER_OUTPUTS, ModelCard, SegmenterCard
from models.comparison import ALL_SITES, Compared, Comparison, Difference, check_kind, why_worse
from models.errors import Refusal
from models.imaging import read_image, sniff
from models.predictor import Graph, Predictor
from models.segmenter import SegmenterPredictor
from training import evaluate, segmenter_evaluate
from training.config import Config, RunConfig
from training.data import Row, load_images, read_manifest, split_of
from training.metrics import METRICS, NOT_DEFINED, Columns, bootstrap
from training.seen import Seen, read_seen
from training.segmenter_config import SegmenterConfig
from training.segmenter_data import Tissue, read_tissues
from training.segmenter_data import split_of as split_of_tissue

DICOM = "application/dicom"
MARGIN = 0.05
"""In the unit of the loss, nats or 1 - Dice: how much worse the loss of all sites may be at most, by its interval's upper end."""


def _known_mean(name: str) -> Callable[[Columns], float]:
    """Return the mean over the images in which a metric is defined: not all need have masks."""

    def mean(columns: Columns) -> float:
        known = columns[name][~np.isnan(columns[name])]
        return float(known.mean()) if len(known) else NOT_DEFINED

    return mean


Definitions = Mapping[str, tuple[bool, Callable[[Columns], float]]]
CLASSIFIER: Definitions = {name: (name != "true_loss", METRICS[name]) for name in ("true_loss", "auroc", "accuracy")}
SEGMENTER: Definitions = {name: (name != "true_loss", _known_mean(name)) for name in ("true_loss", "foreground_iou", "dice")}
"""Metric -> whether larger is better, and its definition; the first two decide."""

Item = Row | Tissue


@dataclass(frozen=True)
class Side:
    """A package with what is known of the images that it was made from."""

    predictor: AnyPredictor
    seen: Seen | None


def predictor_of(card: ModelCard | SegmenterCard, graph: bytes, sha256: str) -> AnyPredictor:
    """Return the predictor of a package that is not written yet: its card, ``model.onnx`` and identity."""
    if isinstance(card, ModelCard):
        return Predictor(card, Graph(graph, threads=2), sha256)
    return SegmenterPredictor(card, Graph(graph, outputs=SEGMENTER_OUTPUTS), sha256)


def same_images(folder: Path, domains: Sequence[str], sides: Sequence[Side]) -> tuple[list[Item], str, int]:
    """Read the images of a manifest that none of the packages has seen.

    Of a domain that a package was trained on, only patients of its test split count where the package does not say which images
    it has seen, and where the folder holds any of those.

    Returns
    -------
    items : list of Row or Tissue
    sha256 : str
        Digest of all rows and images of the folder.
    left_out : int
        Rows that do not count.

    Raises
    ------
    Refusal
        ``data_invalid`` as reading a manifest; if an image or a patient was seen all the same; if nothing is left.
    """
    card = sides[-1].predictor.card
    domains = tuple(domains) or _domains(folder)
    if ALL_SITES in domains:
        raise Refusal("data_invalid", f"No domain may be called {ALL_SITES!r}.")
    everything: Sequence[Item]
    if isinstance(card, ModelCard):
        manifest = read_manifest(folder, domains, card.output.classes)
        everything, sha256 = manifest.rows, manifest.sha256
    else:
        config = _config(card, SegmenterConfig).model_copy(update={"domains": domains, "label_domains": (), "labels": "points"})
        tissues = read_tissues(folder, config)
        everything, sha256 = tissues.images, tissues.sha256
    kept: list[Item] = list(everything)
    digests = {id(item): _digests(item) for item in everything} if any(side.seen is not None for side in sides) else {}
    for side in sides:
        card = side.predictor.card
        known = {id(item): side.seen is not None and side.seen.holds(digests[id(item)], _patient(item)) for item in everything}
        trained = {source.domain for source in card.training.sources}
        split = {
            domain for domain in trained
            if side.seen is None or any(known[id(item)] for item in everything if item.domain == domain)
        }  # fmt: skip
        kept = [item for item in kept if item.domain not in split or _split(item, card) == "test"]
        number = sum(known[id(item)] for item in kept)
        if number:
            what = f"{number} of the images, or their patients, are ones that version {card.version} was made from"
            raise Refusal("data_invalid", f"{what}: take them out of the manifest.")
    if not kept:
        raise Refusal("data_invalid", "No image is left that neither package was made from.")
    return kept, sha256, len(everything) - len(kept)


def _domains(folder: Path) -> tuple[str, ...]:
    try:
        with (folder / "manifest.csv").open(newline="", encoding="utf-8-sig") as stream:
            found = {record.get("domain") or "" for record in csv.DictReader(stream)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal("data_invalid", f"manifest.csv cannot be read ({type(error).__name__}).") from error
    if not found or "" in found:
        raise Refusal("data_invalid", "manifest.csv must name a domain in every row.")
    return tuple(sorted(found))


def _config(card: ModelCard | SegmenterCard, kind: type[Config]) -> Config:
    try:
        return kind.model_validate(card.training.config)
    except ValidationError as error:
        what = f"The card of version {card.version} does not say how its patients were split"
        raise Refusal("data_invalid", f"{what}, so what it was made from is not known.") from error


def _patient(item: Item) -> str:
    return item.patient if isinstance(item, Row) else item.group


def _digests(item: Item) -> set[str]:
    """Return an image's digests: of the file, and of what the service, and so a label package, takes for one image."""
    if isinstance(item, Tissue):
        return {item.original, item.image.sha256}
    data = item.image.read_bytes()
    # A picture's two are the same
    return {item.original, read_image(data).sha256} if sniff(data) == DICOM else {item.original}


def _split(item: Item, card: ModelCard | SegmenterCard) -> str:
    if isinstance(item, Row):
        return split_of(item.patient, _config(card, RunConfig))
    return split_of_tissue(item, _config(card, SegmenterConfig))


def _table(predictor: AnyPredictor, items: Sequence[Any]) -> dict[str, NDArray[Any]]:
    if isinstance(predictor, Predictor):
        return evaluate.columns(predictor, load_images(items, predictor.card.input, f"version {predictor.card.version}"))
    return segmenter_evaluate.columns(predictor, items)


def differences(
    tables: Sequence[Columns], sites: Sequence[str], patients: Sequence[str], measured: Definitions
) -> tuple[Difference, ...]:
    """Return the differences of each site, and of all together.

    Parameters
    ----------
    tables : sequence of mapping
        Columns of the current package and of the candidate, on the same images in the same order.
    sites, patients : sequence of str
        Of each image.
    measured : mapping
        :data:`CLASSIFIER` or :data:`SEGMENTER`.
    """
    found = []
    for site in [ALL_SITES, *sorted(set(sites))]:
        members = np.array([index for index, name in enumerate(sites) if site in (ALL_SITES, name)])
        owners = [patients[index] for index in members]
        both = [{name: column[members] for name, column in table.items()} for table in tables]
        joined = {f"{side}{name}": column for side, table in enumerate(both) for name, column in table.items()}
        paired = {name: _paired(definition) for name, (_, definition) in measured.items()}
        intervals = bootstrap(tuple(measured), joined, owners, definitions=paired)
        for name, (larger, definition) in measured.items():
            current, candidate = (_number(definition(table)) for table in both)
            change = None if current is None or candidate is None else candidate - current
            low, high = (change is not None and intervals[name]) or (None, None)
            found.append(
                Difference(
                    site=site,
                    metric=name,
                    larger_is_better=larger,
                    images=len(members),
                    patients=len(set(owners)),
                    current=current,
                    candidate=candidate,
                    difference=change,
                    low=low,
                    high=high,
                )
            )
    return tuple(found)


def _paired(definition: Callable[[Columns], float]) -> Callable[[Columns], float]:
    def difference(joined: Columns) -> float:
        current, candidate = ({name[1:]: column for name, column in joined.items() if name[0] == side} for side in "01")
        return definition(candidate) - definition(current)

    return difference


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def compare(
    current: Path, candidate: Side, folder: Path, domains: Sequence[str], margin: float, accepted: str | None
) -> Comparison:
    """Compare a candidate with the package that is current.

    Parameters
    ----------
    current : Path
        Folder of the current package.
    candidate : Side
        Of the exported file.
    folder : Path
        With ``manifest.csv`` as ``overread train`` reads it.
    domains : sequence of str
        Of the folder; all if empty.
    margin : float
        See :class:`models.comparison.Comparison`.
    accepted : str or None
        Why it is released even where it is worse.

    Raises
    ------
    Refusal
        ``config_invalid`` for packages of other models; what :func:`same_images` and the predictors refuse.
    """
    before = load_model(current)
    old, new = before.card, candidate.predictor.card
    if old.name != new.name:
        raise Refusal("config_invalid", f"The current package is one of {old.name}, not of {new.name}.")
    check_kind(new, old)
    items, sha256, left_out = same_images(folder, domains, [Side(before, read_seen(current, old.model_sha256)), candidate])
    measured = SEGMENTER if isinstance(new, SegmenterCard) else CLASSIFIER
    tables = [_table(predictor, items) for predictor in (before, candidate.predictor)]
    found = differences(tables, [item.domain for item in items], [_patient(item) for item in items], measured)
    loss, discrimination, *_ = measured
    decisive = (loss, discrimination)
    worse = why_worse(found, loss, decisive, margin)
    return Comparison(
        schema_version=1,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        current=_compared(before),
        candidate=_compared(candidate.predictor),
        data_sha256=sha256,
        left_out=left_out,
        loss=loss,
        decisive=decisive,
        margin=margin,
        differences=found,
        worse=worse,
        accepted=accepted if worse else None,
    )


def _compared(predictor: AnyPredictor) -> Compared:
    return Compared(name=predictor.card.name, version=predictor.card.version, sha256=predictor.sha256)


def show(comparison: Comparison) -> None:
    """Print the differences, and what follows from them."""
    for each in comparison.differences:
        if each.difference is not None:
            interval = f"{each.low:+.4f} to {each.high:+.4f}" if each.low is not None else "no interval"
            values = f"{each.current:.4f} -> {each.candidate:.4f}"
            print(f"{each.site:<20} {each.metric:<15} {values}  {each.difference:+.4f}  ({interval}; {each.patients} patients)")
    verdict = "worse: " + " ".join(comparison.worse) if comparison.worse else "not worse"
    print(f"version {comparison.candidate.version} against version {comparison.current.version}: {verdict}")
