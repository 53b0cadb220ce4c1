"""The label package: what experts said of images, with the images, for training. Written once, read only if it is whole.

A folder of ``labels.json`` (:class:`Labels`), ``manifest.csv`` (as training reads any manifest), ``images/DIGEST.png``
and, for objects, ``points/DIGEST.geojson``. ``labels.json`` holds the digest of every other file, and its own digest is the
package's identity.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.annotation import read_annotation
from models.errors import Refusal

SCHEMA_VERSION = 1
DOCUMENT = "labels.json"
MANIFEST = "manifest.csv"
NO_SITE = "unnamed"
"""The domain of images from no configured site."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=128)]
Pixels = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reading(_Strict):
    """One label that one reader gave, whether it decided or not.

    Attributes
    ----------
    label_id : str
        As the service stored it.
    reader : str
        A keyed pseudonym, or the name, as the export was asked for.
    standing : "reader" or "adjudicator"
    label : str or None
        The class; None of an annotation.
    model_sha256, result_id : str
        The model package, and its result, that the reader was shown.
    model_was_right : bool
        The reader confirmed what was shown.
    source : str
        "page", "api", "import" or "label-studio".
    created_at : datetime
    """

    label_id: Digest
    reader: Text
    standing: Literal["reader", "adjudicator"]
    label: Text | None
    model_sha256: Digest
    result_id: Digest
    model_was_right: bool
    source: Literal["page", "api", "import", "label-studio"]
    created_at: AwareDatetime


class LabelledImage(_Strict):
    """One image and what was decided of it.

    Attributes
    ----------
    image_sha256 : str
        Digest of the file that was sent to the service, under which its pixels lie here.
    rows, columns : int, pixels
    domain : str
        The site, or "unnamed".
    patient : str
        A keyed pseudonym: images of one patient have the same one in every package of the site.
    origin : "doubt" or "random"
        Why it was labelled: only "random" images estimate the site's error.
    burned_in : "no" or "unknown"
        Whether the pixels hold writing such as a name, as far as the header says. "yes" never gets into a package.
    label : str or None
        The class; None where objects are marked.
    decided_by : str
        The ``label_id`` of the reading that holds.
    readings : tuple of Reading
        All that stood, in the order in which they were given.
    """

    image_sha256: Digest
    rows: Pixels
    columns: Pixels
    domain: Word
    patient: Text
    origin: Literal["doubt", "random"]
    burned_in: Literal["no", "unknown"]
    label: Text | None
    decided_by: Digest
    readings: Annotated[tuple[Reading, ...], Field(min_length=1)]

    @property
    def image(self) -> str:
        """The file of the pixels, relative to the package."""
        return f"images/{self.image_sha256}.png"

    @property
    def points(self) -> str:
        """The file of the annotation, relative to the package."""
        return f"points/{self.image_sha256}.geojson"


class Agreement(_Strict):
    """How far two readers agree over the ``n`` images that both labelled; ``value`` is None where it is not defined.

    Of classes Cohen's kappa, of annotations the mean of :func:`models.agreement.annotation_likeness`.
    """

    readers: tuple[Text, Text]
    measure: Literal["cohen_kappa", "mean_overlap"]
    n: Pixels
    value: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None


class ModelShown(_Strict):
    """A model package that readers were shown."""

    name: Text
    version: Text


class Labels(_Strict):
    """``labels.json``.

    Attributes
    ----------
    created_at : datetime
        When the latest label in it was given, so that the same labels are the same package.
    classes : tuple of str
        What may be labelled: the classes, in the order of the model's logits, or what an object is.
    left_out : dict of str to int
        Decided images that are not in it, by why: "expired" (the pixels are no longer kept), "burned_in", "two_sites" (those of a
        patient who was at another site before: no site could be held out of the training).
    models : dict of str to ModelShown
        By digest.
    files : dict of str to str
        Path within the package -> SHA-256.
    """

    schema_version: Literal[1]
    model_name: Text
    task: Literal["classification", "segmentation"]
    classes: Annotated[tuple[Text, ...], Field(min_length=1)]
    created_at: AwareDatetime
    images: Annotated[tuple[LabelledImage, ...], Field(min_length=1)]
    left_out: dict[Literal["expired", "burned_in", "two_sites"], Count]
    agreement: tuple[Agreement, ...]
    models: dict[Digest, ModelShown]
    files: dict[str, Digest]

    @model_validator(mode="after")
    def _consistent(self) -> Labels:
        if len({each.image_sha256 for each in self.images}) < len(self.images):
            raise ValueError("an image occurs twice")
        of_classes = self.task == "classification"
        for each in self.images:
            given = [each.label, *(reading.label for reading in each.readings)]
            if not all(label in self.classes if of_classes else label is None for label in given):
                raise ValueError("a label is not of the label set")
            by_id = {reading.label_id: reading.label for reading in each.readings}
            if by_id.get(each.decided_by, "") != each.label or len(by_id) < len(each.readings):
                raise ValueError("what holds of an image is none of its readings")
            if any(reading.model_sha256 not in self.models for reading in each.readings):
                raise ValueError("a reader was shown a model that is not named")
        domains: dict[str, str] = {}
        if any(domains.setdefault(each.patient, each.domain) != each.domain for each in self.images):
            raise ValueError("a patient occurs in two domains, so no domain can be held out")
        return self

    @property
    def paths(self) -> list[str]:
        """The files that there must be, beside ``labels.json``."""
        points = [each.points for each in self.images] if self.task == "segmentation" else []
        return [MANIFEST, *(each.image for each in self.images), *points]

    def manifest(self) -> str:
        """Return the text of ``manifest.csv``."""
        of_classes = self.task == "classification"
        out = StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image", "label" if of_classes else "points", "domain", "patient"])
        for each in self.images:
            writer.writerow([each.image, each.label if of_classes else each.points, each.domain, each.patient])
        return out.getvalue()

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class, or of all where objects are marked."""
        found = Counter(each.label or self.classes[0] for each in self.images)
        return {name: found[name] for name in self.classes}


@dataclass(frozen=True)
class LabelPackage:
    """A label package that was read and found whole; ``sha256`` is that of its ``labels.json``."""

    folder: Path
    labels: Labels
    sha256: str


def _serialise(labels: Labels) -> bytes:
    text = json.dumps(labels.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _refusal(what: str) -> Refusal:
    return Refusal("data_invalid", f"Label package: {what}")


def write_label_package(folder: Path, labels: Labels, content: Callable[[str], bytes]) -> LabelPackage:
    """Write a label package, whole or not at all.

    Parameters
    ----------
    folder : Path
        Must not exist, unless it is this very package: then it stays.
    labels : Labels
        ``files`` is filled in here.
    content : callable
        Gives the bytes of a file of :attr:`Labels.paths`, except those of ``manifest.csv``. What it raises is passed on.

    Raises
    ------
    Refusal
        ``output_exists`` if something else is there; ``data_invalid`` if an annotation does not fit its image.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True, mode=0o700)
    try:
        digests = {}
        for name in labels.paths:
            data = labels.manifest().encode() if name == MANIFEST else content(name)
            digests[name] = hashlib.sha256(data).hexdigest()
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_bytes(data)
        (part / DOCUMENT).write_bytes(_serialise(labels.model_copy(update={"files": digests})))
        written = read_label_package(part)
        if folder.exists():
            if not (folder / DOCUMENT).is_file() or read_label_package(folder).sha256 != written.sha256:
                raise Refusal("output_exists", "The folder is there and holds something else: name another one.")
        else:
            os.rename(part, folder)  # noqa: PTH104  (one step: a crash leaves no folder, or the whole package)
        return LabelPackage(folder, written.labels, written.sha256)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_label_package(folder: Path) -> LabelPackage:
    """Read a label package and verify every byte of it.

    Raises
    ------
    Refusal
        ``data_invalid`` if a file is missing or was changed, the schema is unknown, labels contradict each other or the
        manifest, or an annotation does not fit its image; ``burned_in_annotation`` if an image is said to hold writing.
    """
    try:
        raw = (folder / DOCUMENT).read_bytes()
        document: Any = json.loads(raw)
    except OSError as error:
        raise _refusal(f"labels.json cannot be read ({type(error).__name__}).") from error
    except (ValueError, RecursionError) as error:
        raise _refusal("labels.json is not JSON.") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise _refusal(f"labels.json has schema {version!r:.20}; this version reads schema {SCHEMA_VERSION}.")
    if any(isinstance(each, dict) and each.get("burned_in") == "yes" for each in _listed(document.get("images"))):
        raise Refusal("burned_in_annotation")
    try:
        labels = Labels.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise _refusal(f"labels.json, {where}: {first['msg']}.") from None
    if _serialise(labels) != raw:
        raise _refusal("labels.json was changed after it was written.")
    if sorted(labels.files) != sorted(labels.paths):
        raise _refusal("labels.json does not name the files that its images need.")
    for number, name in enumerate(labels.paths):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise _refusal(f"file {number} cannot be read ({type(error).__name__}).") from error
        if hashlib.sha256(data).hexdigest() != labels.files[name]:
            raise _refusal(f"file {number} was changed after it was written.")
        if name == MANIFEST and data != labels.manifest().encode():
            raise _refusal("manifest.csv does not say what labels.json says.")
    if labels.task == "segmentation":
        for each in labels.images:
            read_annotation(folder / each.points, each.rows, each.columns)
    return LabelPackage(folder, labels, hashlib.sha256(raw).hexdigest())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
