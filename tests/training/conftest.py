"""A drawn data set: two hospitals, two classes, small enough to train on in seconds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Rows = list[dict[str, str]]

SPEC: dict[str, Any] = {
    "channels": 1, "height": 32, "width": 32, "intensity": "percentile", "low": 1, "high": 99, "mean": 0.5, "std": 0.25,
    "modalities": ["CR"], "body_parts": ["CHEST"], "views": ["AP"], "age_years": None, "min_side": 32,
}  # fmt: skip


def _draw(path: Path, bright_spot: bool, dark: bool, random: np.random.Generator) -> None:
    """Draw a smooth ground with noise; the finding is a bright spot, the hospital a darker ground."""
    y, x = np.mgrid[:40, :40]
    grey = 90 + 2 * y - (40 if dark else 0) + random.normal(0, 6, (40, 40))
    if bright_spot:
        centre = random.uniform(10, 30, 2)
        grey += 120 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 30)
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)


def _write(folder: Path, rows: Rows) -> None:
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "label", "domain", "patient", "view"])
        writer.writeheader()
        writer.writerows(rows)


def _make(folder: Path, patients: int) -> Rows:
    """Draw two images a patient, ``patients`` of them in each hospital and class; write the manifest, return its rows."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for domain in ("east", "west"):
        for label in ("normal", "spot"):
            for patient in range(patients):
                for index in range(2):
                    name = f"{domain}_{label}_{patient}_{index}.png"
                    _draw(folder / name, label == "spot", domain == "west", random)
                    view = "AP" if index == 0 else ""
                    identity = f"{domain}-{label}-{patient}"
                    rows.append({"image": name, "label": label, "domain": domain, "patient": identity, "view": view})
    _write(folder, rows)
    return rows


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[Path, Rows]:
    """A folder of 48 drawn images and the rows of its manifest."""
    return tmp_path / "data", _make(tmp_path / "data", 6)


@pytest.fixture
def write_manifest() -> Callable[[Path, Rows], None]:
    """Write rows as the manifest of a folder."""
    return _write


@pytest.fixture(scope="session")
def drawn_big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 240 drawn images, enough for every split to hold every class."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    _make(folder, 30)
    return folder


@pytest.fixture(scope="session")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input specification for the drawn images."""
    file = tmp_path_factory.mktemp("spec") / "drawn.json"
    file.write_text(json.dumps(SPEC))
    return file


@pytest.fixture(scope="session")
def arguments(spec_file: Path) -> Callable[..., list[str]]:
    """Return the arguments of ``overread train classifier`` for drawn images: (data, out, *more)."""

    def make(data: Path, out: Path, *more: str) -> list[str]:
        return [
            "--data", str(data), "--domains", "east", "west", "--classes", "normal", "spot", "--finding", "spot",
            "--input", str(spec_file), "--out", str(out), "--precision", "32-true", *more,
        ]  # fmt: skip

    return make


SMALL: dict[str, Any] = {"steps_per_epoch": 10, "batch_size": 16, "widths": (4, 8, 16), "blocks": 1}
"""What the command line does not offer, because nobody but a test wants so small a network."""


@pytest.fixture(scope="session")
def small() -> Iterator[dict[str, Any]]:
    """Let ``overread train classifier`` make small networks in short epochs; yields the settings."""
    import torch

    from training import classifier

    torch.set_num_threads(1)  # images this small only wait for a second thread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "make_config", partial(classifier.make_config, **SMALL))
        yield SMALL


@pytest.fixture(scope="session")
def finished(
    drawn_big: Path, arguments: Callable[..., list[str]], small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run on drawn images, through evaluation: its folder and that of its data. Tests that change it take a copy."""
    from training import calibrate, classifier, evaluate, export

    run = tmp_path_factory.mktemp("runs") / "run"
    assert classifier.main(arguments(drawn_big, run, "--epochs", "4")) == 0
    for verb in (export, calibrate, evaluate):
        assert verb.main([str(run), "--data", str(drawn_big)]) == 0
    return run, drawn_big


@pytest.fixture
def about(tmp_path: Path) -> Path:
    """What people know of the drawn model."""
    credit = {"licence": "CC0", "credit": "drawn", "link": "https://example.org"}
    use = {"statement": "tests", "population": "drawn", "not_seen": "everything else", "not_for": "diagnosis"}
    file = tmp_path / "about.json"
    file.write_text(json.dumps({"intended_use": use, "sources": {"east": credit, "west": credit}}))
    return file


@pytest.fixture
def rewrite() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Change the card of a package and sign it again, so that only what was changed is wrong with it."""
    from models.card import ModelCard, card_bytes

    def change(package: Path, edit: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads((package / "card.json").read_bytes())
        edit(document)
        (package / "card.json").write_bytes(card_bytes(ModelCard.model_validate(document)))

    return change
