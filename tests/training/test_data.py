from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.card import InputSpec
from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from models.preprocess import preprocess
from training import data
from training.config import RunConfig, read_input_spec
from training.data import BalancedBatches, ImageSet, check_splits, load_images, read_manifest, split_of

Rows = list[dict[str, str]]
Write = Callable[[Path, Rows], None]
DOMAINS, CLASSES = ("east", "west"), ("normal", "spot")


def config(spec: InputSpec, **more: object) -> RunConfig:
    values = {"seed": 0, "domains": DOMAINS, "leave_out": (), "classes": CLASSES, "finding": "spot", "input": spec}
    return RunConfig.model_validate(values | more)


@pytest.fixture
def spec(spec_file: Path) -> InputSpec:
    return read_input_spec(spec_file)


def test_reads_rows_of_the_domains_asked_for(drawn: tuple[Path, Rows]) -> None:
    folder, rows = drawn
    manifest = read_manifest(folder, ["west"], CLASSES)
    assert len(manifest.rows) == len(rows) / 2
    first = manifest.rows[0]
    assert (first.number, first.label, first.domain, first.patient, first.view) == (25, 0, "west", "west-normal-0", "AP")
    assert {row.view for row in manifest.rows} == {"AP", ""}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", "gone.png", "row 5: the image file is missing"),
        ("image", "", "row 5: a column is empty"),
        ("patient", " ", "row 5: a column is empty"),
        ("label", "covid", "row 5: its label is not one of normal, spot"),
        ("patient", "west-normal-0", "row 25: its patient occurs in another domain too"),
        ("image", "east_normal_0_0.png", "row 5: this image occurs under two patients"),
    ],
)
def test_bad_rows_are_refused_by_number(
    drawn: tuple[Path, Rows], write_manifest: Write, column: str, value: str, message: str
) -> None:
    folder, rows = drawn
    read_manifest(folder, DOMAINS, CLASSES)  # control: it is taken before the change
    rows[4][column] = value
    write_manifest(folder, rows)
    with pytest.raises(Refusal, match=message) as caught:
        read_manifest(folder, DOMAINS, CLASSES)
    assert caught.value.code == "data_invalid"
    assert "east-" not in caught.value.detail
    assert "west-" not in caught.value.detail


def test_an_image_twice_is_refused(drawn: tuple[Path, Rows], write_manifest: Write) -> None:
    folder, rows = drawn
    rows[1]["image"] = rows[0]["image"]
    write_manifest(folder, rows)
    with pytest.raises(Refusal, match="row 2: this image occurs twice"):
        read_manifest(folder, DOMAINS, CLASSES)


def test_a_domain_without_rows_is_refused(drawn: tuple[Path, Rows]) -> None:
    with pytest.raises(Refusal, match="no row of the domain north"):
        read_manifest(drawn[0], ["east", "north"], CLASSES)


@pytest.mark.parametrize("content", [None, b"image,label,domain\n", b"\xff\xfe\x00"])
def test_a_manifest_that_is_missing_or_lacks_a_column_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(Refusal, match=r"manifest\.csv") as caught:
        read_manifest(tmp_path, DOMAINS, CLASSES)
    assert caught.value.code == "data_invalid"


def test_digest_sees_labels_and_pixels(drawn: tuple[Path, Rows], write_manifest: Write) -> None:
    folder, rows = drawn
    before = read_manifest(folder, DOMAINS, CLASSES).sha256
    assert read_manifest(folder, DOMAINS, CLASSES).sha256 == before
    rows[0]["label"] = "spot"
    write_manifest(folder, rows)
    relabelled = read_manifest(folder, DOMAINS, CLASSES).sha256
    image = folder / rows[0]["image"]
    image.write_bytes(image.read_bytes() + b"\0")
    assert len({before, relabelled, read_manifest(folder, DOMAINS, CLASSES).sha256}) == 3


def test_splits_are_disjoint_by_patient_and_have_their_shares(drawn_big: Path, spec: InputSpec) -> None:
    settings = config(spec)
    manifest = read_manifest(drawn_big, DOMAINS, CLASSES)
    splits: dict[str, set[str]] = {}
    for row in manifest.rows:
        splits.setdefault(split_of(row.patient, settings), set()).add(row.patient)
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 120
    many = Counter(split_of(f"patient {number}", settings) for number in range(20_000))
    assert [round(many[name] / 20_000, 2) for name in ("train", "calibration", "test")] == [0.6, 0.2, 0.2]


def test_split_depends_on_seed_and_patient_alone(spec: InputSpec) -> None:
    patients = [f"patient {number}" for number in range(200)]
    first = [split_of(patient, config(spec)) for patient in patients]
    assert first == [split_of(patient, config(spec, domains=("east",), epochs=9)) for patient in patients]
    assert first != [split_of(patient, config(spec, seed=1)) for patient in patients]


def test_a_domain_with_one_class_is_refused(drawn_big: Path, spec: InputSpec) -> None:
    rows = read_manifest(drawn_big, DOMAINS, CLASSES).rows
    check_splits(rows, config(spec))
    with pytest.raises(Refusal, match="The domain east has no patient with spot in the split train"):
        check_splits([row for row in rows if row.domain == "west" or row.label == 0], config(spec))


def test_tensors_are_those_that_the_service_makes(drawn: tuple[Path, Rows], spec: InputSpec) -> None:
    folder, _ = drawn
    rows = read_manifest(folder, DOMAINS, CLASSES).rows[:3]
    images = load_images(rows, spec, "test")
    for row, tensor in zip(rows, images.tensors, strict=True):
        served = preprocess(read_image(row.image.read_bytes(), target=(spec.height, spec.width)), spec)
        np.testing.assert_array_equal(tensor, served[0])


@pytest.mark.parametrize("content", [b"not an image", b""])
def test_an_unreadable_image_is_refused_by_row(drawn: tuple[Path, Rows], spec: InputSpec, content: bytes) -> None:
    folder, rows = drawn
    (folder / rows[6]["image"]).write_bytes(content)
    with pytest.raises(Refusal, match="row 7: ") as caught:
        load_images(read_manifest(folder, DOMAINS, CLASSES).rows, spec, "test")
    assert caught.value.code == "data_invalid"


def test_values_that_are_not_finite_are_refused_by_row(
    drawn: tuple[Path, Rows], spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture cannot hold one; the arithmetic of an odd header might."""
    rows = read_manifest(drawn[0], ("east",), ("normal", "spot")).rows
    seen = []

    def broken(image: Image, spec: InputSpec) -> np.ndarray:
        tensor = preprocess(image, spec)
        seen.append(1)
        return tensor * np.nan if len(seen) == 3 else tensor

    monkeypatch.setattr(data, "preprocess", broken)
    with pytest.raises(Refusal, match=f"row {rows[2].number}: .* not finite") as caught:
        load_images(rows, spec, "test")
    assert caught.value.code == "data_invalid"


def test_an_image_too_small_for_the_specification_is_refused_by_row(drawn: tuple[Path, Rows], spec: InputSpec) -> None:
    rows = read_manifest(drawn[0], DOMAINS, CLASSES).rows
    with pytest.raises(Refusal, match=r"row 1: .*64"):
        load_images(rows, spec.model_copy(update={"min_side": 64}), "test")


def test_where_takes_one_split_of_the_domains(drawn_big: Path, spec: InputSpec) -> None:
    rows = read_manifest(drawn_big, DOMAINS, CLASSES).rows
    images = ImageSet(rows, np.arange(len(rows), dtype=np.float32).reshape(-1, 1, 1, 1))
    part = images.where("test", config(spec, domains=("east",)))
    assert {row.domain for row in part.rows} == {"east"}
    assert [rows.index(row) for row in part.rows] == part.tensors.flatten().tolist()
    assert part.labels.tolist() == [row.label for row in part.rows]


def test_batches_are_balanced_and_use_every_image() -> None:
    groups = [("east", 0)] * 100 + [("east", 1)] * 10 + [("west", 0)] * 3 + [("west", 1)] * 50
    batches = BalancedBatches(groups, steps=25, batch_size=16, seed=0)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 25
    for batch in drawn:
        assert set(Counter(groups[index] for index in batch).values()) == {4}
    counts = Counter(index for batch in drawn for index in batch)
    assert set(counts) == set(range(len(groups)))
    assert {counts[index] for index in range(100)} == {1}
    assert {counts[index] for index in range(100, 110)} == {10}


def test_an_epochs_batches_depend_on_seed_and_epoch() -> None:
    groups = [("east", 0)] * 10 + [("east", 1)] * 10
    first = BalancedBatches(groups, 5, 8, seed=0)
    again = BalancedBatches(groups, 5, 8, seed=0)
    assert list(first) == list(first) == list(again)
    again.set_epoch(1)
    assert list(first) != list(again)
    assert list(first) != list(BalancedBatches(groups, 5, 8, seed=1))
