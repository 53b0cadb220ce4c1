"""From a manifest to crops: images, what is known of their pixels, and groups that stay together."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy.cluster.hierarchy import fcluster, linkage
from tqdm import tqdm

from models.annotation import Annotation, read_annotation
from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from models.preprocess import check_accepted, in_channels, intensity_range
from models.segmenter import display_values
from training.data import SPLITS
from training.segmenter_config import SegmenterConfig
from training.simulated_annotations import simulate_points
from training.sources import Sources, Table, as_sources

COLUMNS = ("image", "domain")
MERGED = "binary_cc"
"""A ``label_kind``: touching objects have one label. Such maps are good to train on, never to measure by."""
ALL, SOME = "all", "some"
"""Of the nuclei: what the column ``marked`` says of points. Some are good to train on, never to measure by."""
LOOK_ALIKE = 0.3
"""Optical density: images of one domain whose quantiles lie nearer are taken for parts of one slide."""

Pixels = NDArray[np.uint8]
Objects = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Tissue:
    """One image with what is known of it.

    Attributes
    ----------
    number : int
        Its row in the manifest, counted from 1 after the header.
    domain, group : str
        Images of one group stay in one split.
    image : Image
    colours : ndarray, uint8, shape (rows, columns, 3)
        As the network will see them, in [0, 255].
    annotation : Annotation
        Points, as given or as simulated from the masks.
    objects : ndarray, int32, shape (rows, columns), or None
        Full masks; None where only points are known, or where touching objects have one label.
    foreground : ndarray of bool, shape (rows, columns), or None
        Where any object is, by the masks; None where only points are known.
    original : str
        Digest of the image, or of what an image of a label package was made from.
    """

    number: int
    domain: str
    group: str
    image: Image
    colours: Pixels
    annotation: Annotation
    objects: Objects | None
    foreground: NDArray[np.bool_] | None
    original: str = ""


@dataclass(frozen=True)
class Tissues:
    """The images of the domains asked for, in the order of the manifest, and the digest of all that was read."""

    images: tuple[Tissue, ...]
    sha256: str

    def where(self, split: str, config: SegmenterConfig) -> tuple[Tissue, ...]:
        """Return the images of one split."""
        return tuple(each for each in self.images if split_of(each, config) == split)


def split_of(tissue: Tissue, config: SegmenterConfig) -> str:
    """Return the split of an image: by its group as :func:`training.data.split_of`.

    But merged masks, and marks of some nuclei only, are trained on and never measured by.
    """
    digest = hashlib.sha256(f"{config.seed}:{tissue.group}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    train, calibration, _ = config.fractions
    split = SPLITS[int(position >= train) + int(position >= train + calibration)]
    merged = tissue.objects is None and tissue.foreground is not None
    some = tissue.objects is None and not tissue.annotation.complete
    return "train" if merged or some else split


def _invalid(number: int, what: str) -> Refusal:
    return Refusal("data_invalid", f"row {number}: {what}")


def read_tissues(source: Path | Sources, config: SegmenterConfig) -> Tissues:
    """Read ``manifest.csv``, and every image and annotation of the config's domains.

    Parameters
    ----------
    source : Path or Sources
        A folder, or several, with ``manifest.csv``: the columns image (relative to it), domain, and label_map (a 16-bit PNG: 0
        background, 1..N objects) or points (an annotation as :func:`models.annotation.read_annotation` reads it); where both
        are filled in, points are the annotation and the map is what is measured by. Without points they are simulated from the
        map. Optional: patient (or slide: images of one stay together; where it is empty, images that look alike do),
        label_kind, marked (of points: "some" where not every nucleus of the image, or of the region, is marked). An image of a
        label package is the one that it was made from.
    config : SegmenterConfig

    Raises
    ------
    Refusal
        ``data_invalid``, naming the row: a missing column, file or annotation, one image twice, a map of another size, no object,
        an image that is smaller than the crops or that the specification does not take; masks asked for where there are none; a
        domain without rows.
    """
    chosen = [
        (table, number, record)
        for table in as_sources(source).tables
        for number, record in enumerate(_records(table), start=1)
        if table.takes(record["domain"], config.domains, config.label_domains)
    ]
    for domain in config.domains:
        if domain not in {record["domain"] for _, _, record in chosen}:
            raise Refusal("data_invalid", f"There is no row of the domain {domain}.")
    digest, seen = hashlib.sha256(), set()
    images = []
    for table, number, record in tqdm(chosen, desc="reading", unit="image", mininterval=1):
        try:
            tissue, content = _read(number, {name: (value or "").strip() for name, value in record.items()}, table.folder, config)
        except OSError as error:
            raise _invalid(number, f"a file is missing or cannot be read ({type(error).__name__}).") from error
        except Refusal as refusal:
            raise refusal if refusal.detail.startswith("row ") else _invalid(number, refusal.detail) from refusal
        original = table.original(record["image"], tissue.image.sha256)
        if original in seen:
            raise _invalid(number, "this image occurs twice.")
        seen.add(original)
        digest.update("\t".join((content, tissue.domain, tissue.group)).encode() + b"\n")
        images.append(replace(tissue, original=original))
    return Tissues(tuple(_grouped(images)), digest.hexdigest())


def _records(table: Table) -> list[dict[str, str]]:
    try:
        with (table.folder / "manifest.csv").open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or ()
            missing = [name for name in COLUMNS if name not in names]
            if not missing and not {"label_map", "points"} & set(names):
                missing = ["label_map (or points)"]
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal("data_invalid", f"manifest.csv cannot be read ({type(error).__name__}).") from error
    if missing:
        raise Refusal("data_invalid", f"manifest.csv lacks the column {missing[0]}.")
    return records


def _read(number: int, record: dict[str, str], folder: Path, config: SegmenterConfig) -> tuple[Tissue, str]:
    content = (folder / record["image"]).read_bytes() if record["image"] else b""
    if not content:
        raise _invalid(number, "it names no image, or an empty file.")
    image = read_image(content)
    check_accepted(image, config.input)
    rows, columns = image.rows, image.columns
    if min(rows, columns) < config.crop:
        raise _invalid(number, f"the image is smaller than the crops of {config.crop} pixels.")
    digest = hashlib.sha256(content)
    label_map = None
    if record.get("label_map"):
        raw = (folder / record["label_map"]).read_bytes()
        digest.update(raw)
        label_map = _label_map(folder / record["label_map"], rows, columns, number)
    marked = record.get("marked", "")
    if marked not in ("", ALL, SOME) or (marked == SOME and not record.get("points")):
        raise _invalid(number, f"its column marked is neither {ALL} nor, beside points, {SOME}.")
    if record.get("points"):
        try:
            annotation = read_annotation(folder / record["points"], rows, columns)
        except Refusal as refusal:
            raise _invalid(number, f"in its annotation, {refusal.detail}") from refusal
        digest.update((folder / record["points"]).read_bytes())
        if marked == SOME:
            annotation = replace(annotation, complete=False)
            digest.update(marked.encode())
    elif label_map is not None:
        annotation = simulate_points(label_map, config.seed)
    else:
        raise _invalid(number, "it has neither points nor masks.")
    if config.labels == "masks" and label_map is None:
        raise _invalid(number, "it has no masks, which were asked for.")
    shown = in_channels(display_values(image, (0, 0, columns, rows)), 3)
    low, high = intensity_range(shown, image.rendering, config.input)
    colours = np.rint(np.clip((shown - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    merged = record.get("label_kind") == MERGED
    tissue = Tissue(
        number, record["domain"], record.get("patient", ""), image, colours, annotation,
        None if merged else label_map, None if label_map is None else label_map > 0,
    )  # fmt: skip
    return tissue, digest.hexdigest()


def _label_map(file: Path, rows: int, columns: int, number: int) -> Objects:
    try:
        with Pillow.open(file) as picture:
            size = picture.size
            values = np.asarray(picture) if size == (columns, rows) else None
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise _invalid(number, f"its label map cannot be read ({type(error).__name__}).") from error
    if values is None:
        raise _invalid(number, f"its label map has {size[0]} x {size[1]} pixels, the image {columns} x {rows}.")
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise _invalid(number, "its label map is no grey picture of whole numbers.")
    if not values.any():
        raise _invalid(number, "its label map holds no object.")
    return values.astype(np.int32)


def look_alikes(images: Sequence[Pixels]) -> list[int]:
    """Return the group of each image: tiles of one slide have much the same colours.

    Parameters
    ----------
    images : sequence of ndarray, uint8, shape (rows, columns, 3)

    Notes
    -----
    An image is described by the 5, 25, 50, 75 and 95% quantiles of each channel's optical density; groups are merged while their
    mean distance is below :data:`LOOK_ALIKE`.
    """
    if len(images) < 2:
        return [0] * len(images)
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    described = [np.quantile(-np.log(np.maximum(each, 1) / 255), shares, axis=(0, 1)).ravel() for each in images]
    return [int(group) for group in fcluster(linkage(np.array(described), "average"), LOOK_ALIKE, "distance")]


def _grouped(images: Sequence[Tissue]) -> Iterator[Tissue]:
    """Yield the images, those without a group in one of images that look alike, named by its least digest."""
    names: dict[int, str] = {}
    for domain in {each.domain for each in images}:
        members = [each for each in images if each.domain == domain and not each.group]
        groups = look_alikes([each.colours for each in members])
        for member, group in zip(members, groups, strict=True):
            names[member.number] = min(m.image.sha256 for m, other in zip(members, groups, strict=True) if other == group)
    for each in images:
        yield each if each.group else replace(each, group=names[each.number])
