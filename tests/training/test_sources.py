"""Label packages as training data, alone and beside a manifest."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.annotation import Annotation, read_annotation
from models.errors import Refusal
from models.label_package import LabelPackage, Labels, write_label_package
from tests.annotations import write_annotation
from tests.training import segmenter_drawings as drawings
from training import calibrate, classifier, evaluate, export, segmenter
from training.config import read_json
from training.data import read_manifest
from training.segmenter_data import read_tissues
from training.sources import Sources

Rows = list[dict[str, str]]
Arguments = Callable[..., list[str]]
CLASSES = ("normal", "spot")
MODEL = "e" * 64


def read(folder: Path) -> Rows:
    with (folder / "manifest.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def package(
    folder: Path, data: Path, rows: Rows, task: str = "classification", classes: tuple[str, ...] = CLASSES
) -> LabelPackage:
    """Pack rows of a manifest, with re-encoded pixels as the service keeps them and patients as pseudonyms."""
    images, content = [], {}
    for row in rows:
        raw = (data / row["image"]).read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        with Image.open(data / row["image"]) as picture:
            picture.save(folder.with_name("encoded.png"), compress_level=1)
            columns, height = picture.size
        content[f"images/{digest}.png"] = folder.with_name("encoded.png").read_bytes()
        if row.get("points"):
            content[f"points/{digest}.geojson"] = (data / row["points"]).read_bytes()
        label = row.get("label") or None
        reading: dict[str, Any] = {
            "label_id": hashlib.sha256(digest.encode()).hexdigest(), "reader": "r1", "standing": "reader", "label": label,
            "model_sha256": MODEL, "result_id": digest, "model_was_right": False, "source": "page",
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        }  # fmt: skip
        images.append({
            "image_sha256": digest, "rows": height, "columns": columns, "domain": row["domain"],
            "patient": hashlib.sha256(row["patient"].encode()).hexdigest(), "origin": "doubt", "burned_in": "no", "label": label,
            "decided_by": reading["label_id"], "readings": [reading],
        })  # fmt: skip
    labels = Labels.model_validate({
        "schema_version": 1, "model_name": "drawn", "task": task, "classes": classes,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC), "images": images, "left_out": {}, "agreement": [],
        "models": {MODEL: {"name": "drawn", "version": "1.0.0"}}, "files": {},
    })  # fmt: skip
    return write_label_package(folder, labels, content.__getitem__)


@pytest.fixture
def west(tmp_path: Path, drawn_big: Path) -> LabelPackage:
    return package(tmp_path / "labels", drawn_big, [row for row in read(drawn_big) if row["domain"] == "west"])


def test_rows_of_both_are_taken_together(drawn_big: Path, west: LabelPackage) -> None:
    both = read_manifest(Sources(drawn_big, west), ("east",), CLASSES)
    assert both.sha256 == read_manifest(drawn_big, ("east",), CLASSES).sha256  # the package adds nothing to other domains
    alone = read_manifest(Sources(None, west), ("west",), CLASSES)
    assert [row.label for row in alone.rows] == [row.label for row in read_manifest(drawn_big, ("west",), CLASSES).rows]
    assert len({row.patient for row in alone.rows}) == 60
    assert Sources(drawn_big, west).domains(["east"]) == (["east", "west"], ["west"])
    assert Sources(drawn_big, west).domains(["east", "west"]) == (["east", "west"], [])
    assert Sources(None, west).domains(None) == (["west"], ["west"])
    mixed = read_manifest(Sources(drawn_big, west), ("east", "west"), CLASSES, ("west",))
    folders = {(row.domain, row.image.parents[0] == drawn_big) for row in mixed.rows}
    assert folders == {("east", True), ("west", False)}  # the manifest's own rows of west are passed over


def test_an_image_of_the_manifest_in_other_pixels_is_seen(drawn_big: Path, west: LabelPackage) -> None:
    # The package's file has other bytes, and its patient another name: only the original's digest tells
    with pytest.raises(Refusal) as refused:
        read_manifest(Sources(drawn_big, west), ("east", "west"), CLASSES)
    assert (refused.value.code, refused.value.detail[:30]) == ("data_invalid", "row 1: this image occurs under")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "config_invalid"),
        (["--data", "DATA"], "config_invalid"),
        (["--labels", "PACKAGE/images"], "data_invalid"),
        (["--labels", "PACKAGE", "--domains", "north"], "data_invalid"),
    ],
)
def test_what_is_not_said_is_asked_for(
    tmp_path: Path, drawn_big: Path, west: LabelPackage, spec_file: Path, words: list[str], code: str
) -> None:
    given = [word.replace("DATA", str(drawn_big)).replace("PACKAGE", str(west.folder)) for word in words]
    with pytest.raises(Refusal) as refused:
        classifier.main(
            [*given, "--classes", *CLASSES, "--finding", "spot", "--input", str(spec_file), "--out", str(tmp_path / "run")]
        )
    assert refused.value.code == code
    assert not (tmp_path / "run").exists()


def test_a_package_for_another_task_is_refused(tmp_path: Path, west: LabelPackage) -> None:
    (tmp_path / "tissue.json").write_text(json.dumps(drawings.SPEC))
    words = ["--labels", str(west.folder), "--label", "nucleus", "--input", str(tmp_path / "tissue.json")]
    words += ["--out", str(tmp_path / "run")]
    with pytest.raises(Refusal, match="for classification, the model for segmentation"):
        segmenter.main(words)
    words[1] = "cluster"
    with pytest.raises(Refusal, match="--supervision cluster"):
        segmenter.main(words)


def test_a_model_from_a_manifest_and_labels_says_so(
    tmp_path: Path, drawn_big: Path, west: LabelPackage, arguments: Arguments, small: dict[str, Any]
) -> None:
    run = str(tmp_path / "run")
    words = ["--data", str(drawn_big), "--labels", str(west.folder)]
    train = [*arguments(drawn_big, tmp_path / "run", "--epochs", "4", "--leave-out")[2:], *words]
    train.remove("west")  # the package brings it
    assert classifier.main(train) == 0
    report = read_json(tmp_path / "run" / "run.json", "")
    config = report["config"]
    assert "--data FOLDER --labels PACKAGE --domains" in report["command"]
    assert report["trained_on"].keys() == {"east", "west"}
    assert (config["domains"], config["labels_sha256"]) == (["east", "west"], west.sha256)
    for verb in (export, calibrate, evaluate):
        with pytest.raises(Refusal):
            verb.main([run, "--data", str(drawn_big)])
        assert verb.main([run, *words]) == 0


def test_another_package_is_another_run(
    tmp_path: Path, drawn_big: Path, west: LabelPackage, spec_file: Path, small: dict[str, Any]
) -> None:
    def train(folder: Path) -> int:
        words = ["--labels", str(folder), "--classes", *CLASSES, "--finding", "spot", "--input", str(spec_file)]
        return classifier.main([*words, "--epochs", "1", "--precision", "32-true", "--out", str(tmp_path / "run")])

    assert train(west.folder) == 0
    assert train(west.folder) == 0
    more = package(tmp_path / "more", drawn_big, [row for row in read(drawn_big) if row["domain"] == "west"][:-2])
    with pytest.raises(Refusal, match="labels_sha256"):
        train(more.folder)
    next((west.folder / "images").iterdir()).write_bytes(b"")
    with pytest.raises(Refusal, match="was changed"):
        train(west.folder)


def test_marks_train_a_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    rows = drawings.make(data)
    for number, row in enumerate(rows):
        if row.get("points"):
            marks = read_annotation(data / row["points"], drawings.SIDE, drawings.SIDE)
        else:
            with Image.open(data / row["label_map"]) as picture:
                marks = centres(np.asarray(picture))
        row["points"] = f"{number}.geojson"
        write_annotation(data / row["points"], marks)
    labels = package(tmp_path / "labels", data, rows, "segmentation", ("nucleus",))
    domains = tuple(sorted({row["domain"] for row in rows}))
    found = read_tissues(Sources(None, labels), drawings.config(domains=domains))
    assert [each.domain for each in found.images] == [row["domain"] for row in rows]
    assert all(each.objects is None and len(each.annotation.points) for each in found.images)
    with pytest.raises(Refusal, match="twice"):
        read_tissues(Sources(data, labels), drawings.config(domains=domains))
    drawings.small(monkeypatch)
    words = drawings.arguments(data, run, "--epochs", "1")
    words[words.index("--data") : words.index("--data") + 2] = ["--labels", str(labels.folder)]
    assert segmenter.main(words) == 0
    assert read_json(run / "run.json", "")["config"]["labels_sha256"] == labels.sha256
    for verb in (export, calibrate, evaluate):
        assert verb.main([str(run), "--labels", str(labels.folder)]) == 0


def centres(label_map: np.ndarray) -> Annotation:
    """Return a point in the middle of each object."""
    numbers = range(1, int(label_map.max()) + 1)
    return Annotation(np.array([np.argwhere(label_map == number).mean(axis=0)[::-1] + 0.5 for number in numbers]))
