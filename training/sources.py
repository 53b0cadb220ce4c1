"""Where a run's images lie: a folder with a manifest, a label package, or both."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import Refusal
from models.label_package import LabelPackage, read_label_package


@dataclass(frozen=True)
class Table:
    """A folder with ``manifest.csv``; ``originals``, of a label package: path of an image -> digest of what it was made from."""

    folder: Path
    originals: Mapping[str, str] | None = None

    def takes(self, domain: str, domains: Collection[str], label_domains: Collection[str]) -> bool:
        """Tell whether a row of that domain is meant, given the config's domains."""
        return domain in domains and (self.originals is not None or domain not in label_domains)

    def original(self, image: str, digest: str) -> str:
        """Return the digest of what an image was made from: its own, except in a label package."""
        return digest if self.originals is None else self.originals.get(image, digest)


@dataclass(frozen=True)
class Sources:
    """A folder with a manifest, a label package, or both; rows of both are taken together."""

    data: Path | None
    labels: LabelPackage | None = None

    @property
    def labels_sha256(self) -> str | None:
        """Digest of the label package, where there is one."""
        return self.labels.sha256 if self.labels else None

    @property
    def tables(self) -> list[Table]:
        """The manifests, in the order in which their rows are taken."""
        found = [] if self.data is None else [Table(self.data)]
        if self.labels is not None:
            originals = {each.image: each.image_sha256 for each in self.labels.labels.images}
            found.append(Table(self.labels.folder, originals))
        return found

    def domains(self, asked: list[str] | None) -> tuple[list[str], list[str]]:
        """Choose the domains to train on.

        Parameters
        ----------
        asked : list of str or None
            Beside a manifest, its domains, to which all of the label package's are added; of a package alone, which of its
            domains: all by default.

        Returns
        -------
        domains, label_domains : list of str
            As the config names them.

        Raises
        ------
        Refusal
            ``config_invalid`` if nothing says which domains of the manifest are meant.
        """
        if self.data is not None and not asked:
            raise Refusal("config_invalid", "--data needs --domains: which of its domains to train on.")
        named = list(asked or ())
        if self.labels is None:
            return named, []
        packed = sorted({each.domain for each in self.labels.labels.images})
        if self.data is None:
            return named or packed, named or packed
        added = [domain for domain in packed if domain not in named]
        return [*named, *added], added

    @property
    def words(self) -> list[str]:
        """How a command names them, without their paths."""
        data = [] if self.data is None else ["--data", "FOLDER"]
        return data if self.labels is None else [*data, "--labels", "PACKAGE"]


def as_sources(source: Path | Sources) -> Sources:
    """Return a folder as what it is: sources without a label package."""
    return source if isinstance(source, Sources) else Sources(source)


def add_sources(parser: argparse.ArgumentParser, data: str, labels: str = "label package, alone or beside --data") -> None:
    """Add ``--data`` and ``--labels``, with what they are."""
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data)
    parser.add_argument("--labels", type=Path, metavar="PACKAGE", help=labels)


def read_sources(options: argparse.Namespace, task: Literal["classification", "segmentation"]) -> Sources:
    """Read what :func:`add_sources` took; the label package is verified.

    Raises
    ------
    Refusal
        ``config_invalid`` if neither is given; ``data_invalid`` if the package is not whole or is for another task.
    """
    if options.data is None and options.labels is None:
        raise Refusal("config_invalid", "Give --data, --labels, or both.")
    labels = None if options.labels is None else read_label_package(options.labels)
    if labels is not None and labels.labels.task != task:
        raise Refusal("data_invalid", f"The label package is for {labels.labels.task}, the model for {task}.")
    return Sources(options.data, labels)
