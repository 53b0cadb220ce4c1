"""Label packages: what was written is read; what was changed, or contradicts itself, is refused."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from models.label_package import Labels, read_label_package, write_label_package

MODEL = "e" * 64
PNG = b"\x89PNG not looked into here"
MARKS = json.dumps({"type": "FeatureCollection", "features": [
    {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}, "properties": {}},
]}).encode()  # fmt: skip


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def image(number: int, label: str | None, **changes: Any) -> dict[str, Any]:
    reading = {
        "label_id": digest(f"label {number}"), "reader": "r1", "standing": "reader", "label": label, "model_sha256": MODEL,
        "result_id": digest(f"result {number}"), "model_was_right": False, "source": "page",
        "created_at": datetime(2026, 1, number, tzinfo=UTC),
    }  # fmt: skip
    return {
        "image_sha256": digest(f"image {number}"), "rows": 10, "columns": 10, "domain": "clinic", "patient": f"p{number}",
        "origin": "doubt", "burned_in": "no", "label": label, "decided_by": reading["label_id"], "readings": [reading],
    } | changes  # fmt: skip


def document(*images: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "model_name": "cxr", "task": "classification", "classes": ["normal", "pneumonia"],
        "created_at": datetime(2026, 1, 31, tzinfo=UTC), "images": list(images), "left_out": {"expired": 2}, "agreement": [],
        "models": {MODEL: {"name": "cxr", "version": "1.0.0"}}, "files": {},
    } | changes  # fmt: skip


def labels(*images: dict[str, Any], **changes: Any) -> Labels:
    return Labels.model_validate(document(*images, **changes))


def of_classes() -> Labels:
    return labels(image(1, "normal"), image(2, "pneumonia", burned_in="unknown"), image(3, "normal", origin="random"))


def of_marks() -> Labels:
    return labels(image(1, None), task="segmentation", classes=["nucleus"])


def content(name: str) -> bytes:
    return PNG + name.encode() if name.endswith(".png") else MARKS


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = write_label_package(tmp_path / "labels", of_classes(), content)
    found = read_label_package(tmp_path / "labels")
    assert found == written
    assert found.sha256 == hashlib.sha256((tmp_path / "labels" / "labels.json").read_bytes()).hexdigest()
    assert found.labels.model_copy(update={"files": {}}) == of_classes()
    assert found.labels.counts() == {"normal": 2, "pneumonia": 1}
    with (tmp_path / "labels" / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["label"], row["domain"], row["patient"]) for row in rows] == [
        ("normal", "clinic", "p1"), ("pneumonia", "clinic", "p2"), ("normal", "clinic", "p3"),
    ]  # fmt: skip
    assert (tmp_path / "labels" / rows[0]["image"]).read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_marks_lie_beside_their_images(tmp_path: Path) -> None:
    package = write_label_package(tmp_path / "labels", of_marks(), content)
    name = f"points/{digest('image 1')}.geojson"
    assert (tmp_path / "labels" / name).read_bytes() == MARKS
    assert (tmp_path / "labels" / "manifest.csv").read_text().splitlines()[1].split(",")[1] == name
    assert package.labels.counts() == {"nucleus": 1}


def test_the_same_package_is_written_once_and_another_never_over_it(tmp_path: Path) -> None:
    first = write_label_package(tmp_path / "labels", of_classes(), content)
    assert write_label_package(tmp_path / "labels", of_classes(), content).sha256 == first.sha256
    with pytest.raises(Refusal, match="output_exists"):
        write_label_package(tmp_path / "labels", of_marks(), content)
    assert read_label_package(tmp_path / "labels").sha256 == first.sha256
    (tmp_path / "other").mkdir()
    with pytest.raises(Refusal, match="output_exists"):
        write_label_package(tmp_path / "other", of_classes(), content)


@pytest.mark.parametrize("after", range(3))
def test_a_write_that_fails_leaves_nothing_and_a_killed_one_does_not_hinder(tmp_path: Path, after: int) -> None:
    calls = 0

    def failing(name: str) -> bytes:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError("planted")
        return content(name)

    with pytest.raises(OSError, match="planted"):
        write_label_package(tmp_path / "labels", of_classes(), failing)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".labels.part" / "images").mkdir(parents=True)
    (tmp_path / ".labels.part" / "images" / "left over").write_text("")
    write_label_package(tmp_path / "labels", of_classes(), content)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["labels.json", "manifest.csv", "*.png", "*.geojson"])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_any_changed_or_missing_file_is_seen(tmp_path: Path, kind: str, damage: Callable[[Path], None]) -> None:
    write_label_package(tmp_path / "labels", of_marks(), content)
    damage(next((tmp_path / "labels").rglob(kind)))
    with pytest.raises(Refusal) as refused:
        read_label_package(tmp_path / "labels")
    assert refused.value.code == "data_invalid"
    assert digest("image 1") not in refused.value.detail


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change labels.json as somebody would who brings the formatting into order afterwards."""
    file = folder / "labels.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def test_the_rewrite_alone_changes_nothing(tmp_path: Path) -> None:
    write_label_package(tmp_path / "labels", of_classes(), content)
    rewrite(tmp_path / "labels", lambda found: None)
    read_label_package(tmp_path / "labels")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda found: found.update(schema_version=2), "data_invalid", "schema 2"),
        (lambda found: found["images"][1].update(burned_in="yes"), "burned_in_annotation", ""),
        (lambda found: found["images"][1].update(label="covid"), "data_invalid", "label set"),
        (lambda found: found["images"][1].update(label="normal"), "data_invalid", "readings"),
        (lambda found: found["images"][1].update(patient="../../etc"), "data_invalid", "manifest.csv"),
        (lambda found: found["images"][1].update(domain="../etc"), "data_invalid", "domain"),
        (lambda found: found["images"][1].update(image_sha256="../" * 21 + "x"), "data_invalid", "image_sha256"),
        (lambda found: found["images"].pop(), "data_invalid", "files"),
        (lambda found: found["files"].update({"../up.png": "0" * 64}), "data_invalid", "files"),
        (lambda found: found["models"].clear(), "data_invalid", "not named"),
        (lambda found: found.update(surprise=1), "data_invalid", "surprise"),
        (lambda found: found["images"].append(found["images"][0]), "data_invalid", "twice"),
        (lambda found: found["images"][0].update(patient="p2", domain="elsewhere"), "data_invalid", "two domains"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], code: str, says: str) -> None:
    write_label_package(tmp_path / "labels", of_classes(), content)
    rewrite(tmp_path / "labels", change)
    with pytest.raises(Refusal) as refused:
        read_label_package(tmp_path / "labels")
    assert refused.value.code == code
    assert says in refused.value.detail


def test_marks_outside_their_image_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="outside the image"):
        write_label_package(
            tmp_path / "labels", labels(image(1, None, rows=4), task="segmentation", classes=["nucleus"]), content
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_package(tmp_path: Path) -> None:
    for text in (None, "", "[]", "{}", "[" * 100_000):
        if text is not None:
            (tmp_path / "labels.json").write_text(text)
        with pytest.raises(Refusal) as refused:
            read_label_package(tmp_path)
        assert refused.value.code == "data_invalid"


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("1-classes", "0d2ac6640884b0da154eb05f3c0bab86e8e2621c7ef44b94efa5dd487a7e38ce"),
        ("1-marks", "40cc895e545b572154eb3453d17d06bf6b0f4dd020309fc3f8fde4f8f556d933"),
    ],
)
def test_packages_of_each_schema_open(name: str, sha256: str) -> None:
    assert read_label_package(Path(__file__).parent / "label_packages" / name).sha256 == sha256
