"""From a manifest to tensors: read it, check it, split it by patient, preprocess it as the service will."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler
from tqdm import tqdm

from models.card import InputSpec
from models.errors import Refusal
from models.imaging import read_image
from models.preprocess import check_accepted, preprocess
from training.config import RunConfig, fold_of
from training.sources import Sources, Table, as_sources

SPLITS = ("train", "calibration", "test")
COLUMNS = ("image", "label", "domain", "patient")


@dataclass(frozen=True)
class Row:
    """One image of a manifest.

    ``number`` is its row, counted from 1 after the header; ``label`` an index into the classes; ``view`` is empty where
    the manifest does not know it; ``original`` is the digest of the file, or of what an image of a label package was made from.
    """

    number: int
    image: Path
    label: int
    domain: str
    patient: str
    view: str
    original: str = ""


@dataclass(frozen=True)
class Manifest:
    """The rows of the domains asked for, and the digest of them and of their images' bytes."""

    rows: tuple[Row, ...]
    sha256: str


@dataclass(frozen=True)
class ImageSet:
    """Rows with their tensors.

    Attributes
    ----------
    rows : tuple of Row
    tensors : ndarray, float32, shape (N, C, H, W)
        Preprocessed by :func:`models.preprocess.preprocess`.
    """

    rows: tuple[Row, ...]
    tensors: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every image, shape (N,)."""
        return np.array([row.label for row in self.rows], dtype=np.int64)

    def where(self, split: str, config: RunConfig) -> ImageSet:
        """Return the images of the config's domains in one split; of a fold, the train split holds that half alone."""
        chosen = [
            index for index, row in enumerate(self.rows)
            if row.domain in config.domains and split_of(row.patient, config) == split and _in_fold(row.patient, config, split)
        ]  # fmt: skip
        return ImageSet(tuple(self.rows[index] for index in chosen), self.tensors[chosen])

    def of(self, domain: str) -> ImageSet:
        """Return all images of a domain."""
        chosen = [index for index, row in enumerate(self.rows) if row.domain == domain]
        return ImageSet(tuple(self.rows[index] for index in chosen), self.tensors[chosen])


def _invalid(number: int, what: str) -> Refusal:
    return Refusal("data_invalid", f"row {number}: {what}")


def read_manifest(
    source: Path | Sources, domains: Sequence[str], classes: Sequence[str], label_domains: Sequence[str] = ()
) -> Manifest:
    """Read ``manifest.csv`` and check every row of the domains asked for.

    Parameters
    ----------
    source : Path or Sources
        A folder, or several, with ``manifest.csv``: the columns image (relative to it), label, domain, patient and, if known,
        view. An image of a label package is the one that it was made from.
    domains : sequence of str
        Rows of other domains are passed over.
    classes : sequence of str
        The labels that may occur, in the order of the logits.
    label_domains : sequence of str
        Of these, only rows of a label package are taken.

    Raises
    ------
    Refusal
        ``data_invalid``, naming the row (never the patient): a missing column, file, label or patient, an unknown label,
        one image twice, one image under two patients, a patient in two domains; a domain without rows.
    """
    rows: list[Row] = []
    digest = hashlib.sha256()
    domain_of: dict[str, str] = {}
    patient_of: dict[str, str] = {}
    for table, number, record in _records(as_sources(source)):
        if not table.takes(record["domain"], domains, label_domains):
            continue
        row = _check(number, record, table.folder, classes)
        if domain_of.setdefault(row.patient, row.domain) != row.domain:
            raise _invalid(number, "its patient occurs in another domain too, so no domain can be held out.")
        try:
            content = hashlib.sha256(row.image.read_bytes()).hexdigest()
        except OSError as error:
            raise _invalid(number, f"the image file is missing or cannot be read ({type(error).__name__}).") from error
        original = table.original(record["image"], content)
        if original in patient_of:
            twice = "twice" if patient_of[original] == row.patient else "under two patients, so it may stand in two splits"
            raise _invalid(number, f"this image occurs {twice}.")
        patient_of[original] = row.patient
        digest.update("\t".join((content, record["label"], row.domain, row.patient, row.view)).encode() + b"\n")
        rows.append(replace(row, original=original))
    for domain in domains:
        if domain not in domain_of.values():
            raise Refusal("data_invalid", f"There is no row of the domain {domain}.")
    return Manifest(tuple(rows), digest.hexdigest())


def _records(sources: Sources) -> Iterator[tuple[Table, int, dict[str, str]]]:
    for table in sources.tables:
        try:
            with (table.folder / "manifest.csv").open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream)
                missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
                records = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise Refusal("data_invalid", f"manifest.csv cannot be read ({type(error).__name__}).") from error
        if missing:
            raise Refusal("data_invalid", f"manifest.csv lacks the column {missing[0]}.")
        for number, record in enumerate(records, start=1):
            yield table, number, record


def _check(number: int, record: dict[str, str], folder: Path, classes: Sequence[str]) -> Row:
    if any(record[name] is None or not record[name].strip() for name in COLUMNS):
        raise _invalid(number, "a column is empty.")
    if record["label"] not in classes:
        raise _invalid(number, f"its label is not one of {', '.join(classes)}.")
    return Row(
        number=number,
        image=folder / record["image"],
        label=list(classes).index(record["label"]),
        domain=record["domain"],
        patient=record["patient"],
        view=(record.get("view") or "").strip(),
    )


def split_of(patient: str, config: RunConfig) -> str:
    """Return the split of a patient, which depends on the seed, the fractions and the patient alone.

    The first 8 bytes of SHA-256("seed:patient"), as a number in [0, 1), fall below the cumulated fractions of train,
    calibration or test. So the split can be computed again from the card, and does not change when patients are added.
    """
    digest = hashlib.sha256(f"{config.seed}:{patient}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    train, calibration, _ = config.fractions
    return SPLITS[int(position >= train) + int(position >= train + calibration)]


def _in_fold(patient: str, config: RunConfig, split: str) -> bool:
    return config.fold is None or split != "train" or fold_of(patient, config.seed) == config.fold


def check_splits(rows: Sequence[Row], config: RunConfig) -> None:
    """Refuse splits that cannot be trained on or measured.

    Raises
    ------
    Refusal
        ``data_invalid`` unless every domain has every class in each of the three splits: otherwise the domain tells the
        class, or a figure is not defined.
    """
    seen = Counter((row.domain, split_of(row.patient, config), row.label) for row in rows)
    for domain in config.domains:
        for split in SPLITS:
            for index, name in enumerate(config.classes):
                if not seen[domain, split, index]:
                    raise Refusal("data_invalid", f"The domain {domain} has no patient with {name} in the split {split}.")


def load_images(rows: Sequence[Row], spec: InputSpec, description: str) -> ImageSet:
    """Read and preprocess images, by the code that the service uses.

    Raises
    ------
    Refusal
        ``data_invalid``, naming the row, if an image cannot be read, is not finite, or the specification does not take it.
    """
    tensors = np.empty((len(rows), spec.channels, spec.height, spec.width), dtype=np.float32)
    for index, row in enumerate(tqdm(rows, desc=description, unit="image", mininterval=1)):
        try:
            image = read_image(row.image.read_bytes(), target=(spec.height, spec.width))
            check_accepted(image, spec)
            tensors[index] = preprocess(image, spec)[0]
        except OSError as error:
            raise _invalid(row.number, f"the image file cannot be read ({type(error).__name__}).") from error
        except Refusal as refusal:
            raise _invalid(row.number, refusal.detail) from refusal
        if not np.isfinite(tensors[index]).all():
            raise _invalid(row.number, "the image holds values that are not finite.")
    return ImageSet(tuple(rows), tensors)


class BalancedBatches(Sampler[list[int]]):
    """Batches in which every pair of domain and class is as likely as every other.

    Otherwise a domain with more of one class makes its style a sign of that class. A group is passed through in a new
    random order before an image is drawn again. The order of an epoch depends on the seed and the epoch alone, so a run
    that goes on after a kill sees what it would have seen.

    Parameters
    ----------
    groups : sequence of hashable
        Group of every image, here (domain, class).
    steps, batch_size : int
        Batches an epoch, images a batch.
    seed : int
    """

    def __init__(self, groups: Sequence[tuple[str, int]], steps: int, batch_size: int, seed: int) -> None:
        self.members = [np.array([index for index, group in enumerate(groups) if group == name]) for name in sorted(set(groups))]
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        total = self.steps * self.batch_size
        each = -(-total // len(self.members))
        drawn = []
        for members in self.members:
            rounds = -(-each // len(members))
            drawn.append(np.concatenate([random.permutation(members) for _ in range(rounds)])[:each])
        # Image k of every group comes before image k + 1 of any, so each batch is balanced; then shuffled, because the
        # ranking loss pairs neighbours.
        order = np.stack(drawn, axis=1).ravel()[:total].reshape(self.steps, self.batch_size)
        for batch in order:
            yield [int(index) for index in random.permutation(batch)]
