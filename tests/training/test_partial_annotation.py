"""Images of which only some nuclei, or those of a region, are marked: read, split, and trained on without harm to the others."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import Refusal
from tests.training import segmenter_drawings as drawings
from training.instance_metrics import foreground_iou
from training.segmenter import SegmenterTraining
from training.segmenter_crops import crop_loader, tensors
from training.segmenter_data import Tissue, Tissues, read_tissues
from training.simulated_annotations import simulate_points, simulate_scribbles


def write(folder: Path, marked: dict[int, str]) -> list[dict[str, str]]:
    """Write six drawings, every third with points alone, and what the manifest says of some of them."""
    rows = drawings.make(folder, 6)
    for number, word in marked.items():
        rows[number]["marked"] = word
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "label_map", "points", "domain", "patient", "marked"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def read(folder: Path, marked: dict[int, str], **values: Any) -> Tissues:
    write(folder, marked)
    return read_tissues(folder, drawings.config(**values))


def test_the_manifest_says_that_only_some_are_marked(tmp_path: Path) -> None:
    rows = write(tmp_path / "a", {})
    pointed = [number for number, row in enumerate(rows) if "label_map" not in row]
    plain = read(tmp_path / "b", dict.fromkeys(pointed, "all"))
    some = read(tmp_path / "c", dict.fromkeys(pointed, "some"))
    assert pointed
    assert all(each.annotation.complete for each in plain.images)
    assert [each.number - 1 for each in some.images if not each.annotation.complete] == pointed
    assert some.sha256 != plain.sha256 == read_tissues(tmp_path / "a", drawings.config()).sha256
    for seed in range(5):
        config = drawings.config(seed=seed)
        assert set(pointed) <= {each.number - 1 for each in some.where("train", config)}
    always = [set(pointed) <= {each.number - 1 for each in plain.where("train", drawings.config(seed=n))} for n in range(5)]
    assert not all(always)  # control


@pytest.mark.parametrize(("masked", "word"), [(True, "some"), (False, "most"), (True, "none")])
def test_other_words_and_some_without_points_are_refused(tmp_path: Path, masked: bool, word: str) -> None:
    rows = write(tmp_path / "a", {})
    number = next(number for number, row in enumerate(rows) if ("label_map" in row) == masked)
    with pytest.raises(Refusal, match=f"row {number + 1}: its column marked") as caught:
        read(tmp_path / "b", {number: word})
    assert caught.value.code == "data_invalid"


def given(kind: str) -> list[Tissue]:
    """Return drawings, pale enough that nearness would outweigh colour, with marks of that kind."""
    random = np.random.default_rng(0)
    found = []
    for number in range(8):
        colours, labels = drawings.draw(random)
        colours = np.rint(210 + (colours.astype(float) - 160) / 3).clip(0, 255).astype(np.uint8)
        if kind == "scribbles":
            marks = simulate_scribbles(labels, number)
        else:
            share = 0.2 if kind == "region" else 1.0
            marks = simulate_points(labels, number, missing=0.0 if share < 1 else 0.8, share=share, complete=kind != "some")
        image: Any = None
        found.append(Tissue(number, "east", str(number), image, colours, marks, labels.astype(np.int32), labels > 0))
    return found


def trained(kind: str) -> float:
    """Return the foreground IoU on the very images, all of their nuclei, after a short training on what was marked of them."""
    torch.manual_seed(0)
    config = drawings.config(labels="cluster", loss_prediction="none", epochs=1, steps_per_epoch=60)
    module = SegmenterTraining(config)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    images = given(kind)
    unmasked = [replace(each, objects=None, foreground=None) for each in images]
    for crops, labels in crop_loader(unmasked, config, 0):
        task, _ = module.losses(crops, labels, False)
        optimiser.zero_grad()
        task.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    module.eval()
    values = []
    for each in images:
        with torch.inference_mode():
            found = module.segmenter(torch.from_numpy(tensors(each.colours[None], config.input)))[0, 0] >= 0
        values.append(foreground_iou(each.objects, found.numpy().astype(np.int32)))  # type: ignore[arg-type]
    return float(np.mean(values))


def test_some_nuclei_teach_what_all_of_them_look_like() -> None:
    some = trained("some")
    assert some > 0.85
    # Control: the same points, without a word of it that they are not all, make background of the others
    assert trained("overlooked") < some - 0.15


@pytest.mark.parametrize("kind", ["region", "scribbles"])
def test_regions_and_strokes_train(kind: str) -> None:
    assert trained(kind) > 0.6
