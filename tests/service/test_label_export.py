"""Labels out as a package and in again: what leaves, what does not, and that training takes it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from models import cli
from models.card import read_package
from models.imaging import read_image
from models.label_package import read_label_package
from models.preprocess import preprocess
from tests.service.discs import DISC_PNG
from tests.service.label_desk import Desk, marks
from tests.service.scans import ask, scan

SITES = {"sites": ("east", "west")}


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk(**SITES, readers=2)


@pytest.fixture
def command(desk: Desk, environment: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs ``overread labels ...`` with the desk's settings."""

    def run(*words: object) -> int:
        environment.setenv("OVERREAD_MODELS", ",".join(map(str, desk.site.settings.models)))
        return cli.main(["labels", *map(str, words)])

    return run


def decide(desk: Desk, item: dict[str, Any], says: str) -> None:
    for who in ("anna", "ben"):
        assert desk.label(who, item, says).status_code == 201


@pytest.mark.dialects
def test_what_is_decided_leaves_with_its_pixels_and_who_said_so(desk: Desk, command: Any, tmp_path: Path) -> None:
    bodies = {seed: scan(seed, patient=f"patient {seed % 2}", BurnedInAnnotation="NO") for seed in range(1, 5)}
    found = {seed: desk.item(body=body, site="east") for seed, body in bodies.items()}
    decide(desk, found[1], "normal")
    decide(desk, found[2], "pneumonia")
    desk.label("anna", found[3], "normal")  # one of two readers
    desk.label("anna", found[4], "normal")
    desk.label("ben", found[4], "pneumonia")
    judged = desk.label("carla", found[4], "pneumonia").json()
    assert command("export", "--out", tmp_path / "out") == 0
    package = read_label_package(tmp_path / "out")
    images = {each.image_sha256: each for each in package.labels.images}
    assert set(images) == {found[seed]["image_sha256"] for seed in (1, 2, 4)}
    decided = images[found[4]["image_sha256"]]
    assert (decided.label, decided.decided_by) == ("pneumonia", judged["label_id"])
    assert [(each.standing, each.label) for each in decided.readings] == [
        ("reader", "normal"), ("reader", "pneumonia"), ("adjudicator", "pneumonia"),
    ]  # fmt: skip
    assert {each.model_sha256 for each in decided.readings} == set(package.labels.models) == {found[4]["model_sha256"]}
    assert {each.domain for each in images.values()} == {"east"}
    patients = {seed: images[found[seed]["image_sha256"]].patient for seed in (1, 2, 4)}
    assert patients[2] == patients[4] != patients[1]
    assert package.labels.left_out == {}
    # As readers anna and ben agreed on two of three: observed 2/3, by chance 4/9
    (agreement,) = package.labels.agreement
    assert (agreement.measure, agreement.n, agreement.value) == ("cohen_kappa", 3, pytest.approx((2 / 3 - 4 / 9) / (5 / 9)))
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for name in (b"anna", b"ben", b"carla", b"patient 0", b"patient 1"):
        assert name not in everything
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "out").rglob("*")} == {0}
    # What the network sees of the package's pixels is what it saw of the file that was sent
    spec = read_package(desk.site.settings.models[0])[0].input
    for seed in (1, 2, 4):
        kept = (tmp_path / "out" / images[found[seed]["image_sha256"]].image).read_bytes()
        original, again = (preprocess(read_image(body), spec) for body in (bodies[seed], kept))
        assert np.abs(original - again).max() < 0.01


def test_names_leave_where_they_are_asked_for(desk: Desk, command: Any, tmp_path: Path, capsys: Any) -> None:
    decide(desk, desk.item(1), "normal")
    assert command("export", "--out", tmp_path / "out", "--reader-names") == 0
    (image,) = read_label_package(tmp_path / "out").labels.images
    assert [each.reader for each in image.readings] == ["anna", "ben"]
    assert image.domain == "unnamed"
    assert image.burned_in == "unknown"
    out = capsys.readouterr().out
    assert "1 images (1 normal, 0 pneumonia)" in out
    assert "1 of them do not say whether writing is burned" in out
    assert "cohen_kappa not defined" in out


def test_the_same_labels_are_the_same_package(desk: Desk, command: Any, tmp_path: Path) -> None:
    first, second = desk.item(1), desk.item(2)
    decide(desk, first, "normal")
    for folder in ("a", "b", "b"):
        assert command("export", "--out", tmp_path / folder) == 0
    assert read_label_package(tmp_path / "a").sha256 == read_label_package(tmp_path / "b").sha256
    decide(desk, second, "normal")
    assert command("export", "--out", tmp_path / "b") == 2
    assert command("export", "--out", tmp_path / "c") == 0
    assert len(read_label_package(tmp_path / "c").labels.images) == 2


def test_writing_in_the_pixels_does_not_leave(desk: Desk, command: Any, tmp_path: Path, capsys: Any) -> None:
    decide(desk, desk.item(1), "normal")
    decide(desk, desk.item(body=scan(2, BurnedInAnnotation="YES")), "normal")
    for words in (["--out", tmp_path / "out"], ["--label-studio", tmp_path / "tasks.json"]):
        if "--label-studio" in words:
            desk.item(body=scan(3, BurnedInAnnotation="YES"))
            desk.item(4)
        assert command("export", *words) == 2
        assert "[burned_in_annotation]" in capsys.readouterr().err
        assert not Path(words[1]).exists()
        assert command("export", *words, "--leave-out-burned-in") == 0
    package = read_label_package(tmp_path / "out")
    assert (len(package.labels.images), package.labels.left_out) == (1, {"burned_in": 1})


@pytest.mark.dialects
def test_what_expired_and_a_patient_of_two_sites_stay_behind(desk: Desk, command: Any, tmp_path: Path) -> None:
    items = [desk.item(body=scan(seed, patient="P"), site=site) for seed, site in ((1, "east"), (2, "west"), (3, "east"))]
    items.append(desk.item(4))
    for item in items:
        decide(desk, item, "normal")
    ask(desk.site, "UPDATE kept_images SET removed_at = '2026-01-01 00:00:00' WHERE image_sha256 = ?", items[3]["image_sha256"])
    assert command("export", "--out", tmp_path / "out") == 0
    package = read_label_package(tmp_path / "out")
    assert [each.image_sha256 for each in package.labels.images] == [items[0]["image_sha256"], items[2]["image_sha256"]]
    assert package.labels.left_out == {"expired": 1, "two_sites": 1}


@pytest.mark.dialects
def test_since(desk: Desk, command: Any, tmp_path: Path) -> None:
    first, second = desk.item(1), desk.item(2)
    decide(desk, first, "normal")
    decide(desk, second, "normal")
    ask(desk.site, "UPDATE labels SET created_at = '2026-01-05 12:00:00.000000' WHERE item_id = ?", first["item_id"])
    for since, number in (("2026-01-05T12:00:01", 1), ("2026-01-05T12:00:00", 2), ("2026-01-05T14:00:00+02:00", 2)):
        folder = tmp_path / since.replace(":", "")
        assert command("export", "--out", folder, "--since", since) == 0
        assert len(read_label_package(folder).labels.images) == number


def test_nothing_decided_is_no_package(desk: Desk, command: Any, tmp_path: Path, capsys: Any) -> None:
    desk.label("anna", desk.item(1), "normal")
    assert command("export", "--out", tmp_path / "out") == 2
    assert "[data_invalid]" in capsys.readouterr().err
    assert command("export", "--label-studio", tmp_path / "t.json", "--model", "other") == 2
    assert "[unknown_model]" in capsys.readouterr().err


def test_a_killed_export_is_done_again(desk: Desk, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1, 4):
        decide(desk, desk.item(seed), "normal")
    read = type(desk.site.loop.kept).read
    calls = 0

    def dying(self: Any, image_sha256: str) -> bytes | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return read(self, image_sha256)

    monkeypatch.setattr(type(desk.site.loop.kept), "read", dying)
    assert command("export", "--out", tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()
    (tmp_path / ".out.part").mkdir()  # as kill -9 would leave it
    assert command("export", "--out", tmp_path / "out") == 0
    assert len(read_label_package(tmp_path / "out").labels.images) == 3


def write_csv(file: Path, *rows: tuple[str, str], header: tuple[str, ...] = ("image_sha256", "label", "note")) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([*row, "Doe, John"] for row in rows)
    return file


def stored(desk: Desk) -> list[tuple[Any, ...]]:
    found = ask(desk.site, "SELECT reader, source, replaces IS NOT NULL, document FROM labels ORDER BY id")
    return [(*row, json.loads(document) if isinstance(document, str) else document) for *row, document in found]  # as SQLite's


@pytest.mark.dialects
def test_classes_come_in_by_csv_once(desk: Desk, command: Any, tmp_path: Path) -> None:
    items = [desk.item(seed) for seed in (1, 2)]
    file = write_csv(
        tmp_path / "labels.csv", (items[0]["image_sha256"].upper(), "normal"), (items[1]["image_sha256"], "pneumonia")
    )
    for _ in range(2):
        assert command("import", file, "--reader", "Dr. Weiss") == 0
    says = [{"normal": True, "pneumonia": False}, {"normal": False, "pneumonia": True}]
    assert stored(desk) == [("Dr. Weiss", "import", 0, each) for each in says]
    assert command("import", file, "--reader", "Dr. Roth") == 0
    assert [desk.state(item) for item in items] == ["done", "done"]


@pytest.mark.dialects
def test_corrections_come_in_where_they_are_meant(desk: Desk, command: Any, tmp_path: Path, capsys: Any) -> None:
    item = desk.item(1)
    for number, says in enumerate(("normal", "pneumonia", "normal")):
        file = write_csv(tmp_path / f"{number}.csv", (item["image_sha256"], says))
        if number:
            assert command("import", file, "--reader", "Weiss") == 2
            assert "row 1: " in capsys.readouterr().err
        for _ in range(2):
            assert command("import", file, "--reader", "Weiss", "--correct") == 0
    assert [row[2] for row in stored(desk)] == [0, 1, 1]
    assert [row["in_force"] for row in desk.listed("otto", item)] == [False, False, True]


@pytest.mark.parametrize(
    ("rows", "header", "code"),
    [
        ([("KNOWN", "covid")], None, "label_invalid"),
        ([("KNOWN", "")], None, "data_invalid"),
        ([("0" * 64, "normal")], None, "data_invalid"),
        ([("../../etc/passwd", "normal")], None, "data_invalid"),
        ([], ("image", "label"), "data_invalid"),
        ([], ("image_sha256", "label", "label"), "data_invalid"),
    ],
)
def test_a_csv_with_a_fault_changes_nothing(
    desk: Desk, command: Any, tmp_path: Path, capsys: Any, rows: list[tuple[str, str]], header: Any, code: str
) -> None:
    known = desk.item(1)["image_sha256"]
    rows = [(known, "normal"), *((first.replace("KNOWN", known), second) for first, second in rows)]
    file = write_csv(tmp_path / "labels.csv", *rows, **({"header": header} if header else {}))
    assert command("import", file, "--reader", "Weiss") == 2
    error = capsys.readouterr().err
    assert f"[{code}]" in error
    assert header or "row 2: " in error
    assert "Doe" not in error
    assert stored(desk) == []


@pytest.mark.parametrize("name", ["labels.txt", "gone.csv", "bytes.csv", "bad.json"])
def test_a_file_that_cannot_be_read(desk: Desk, command: Any, tmp_path: Path, capsys: Any, name: str) -> None:
    (tmp_path / "labels.txt").write_text("x")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.json").write_text("[" * 100_000)
    assert command("import", tmp_path / name, "--reader", "Weiss") == 2
    assert "[data_invalid]" in capsys.readouterr().err


class TestMarks:
    """Of a model that finds objects."""

    @pytest.fixture
    def desk(self, open_desk: Callable[..., Desk], segmenter: Path) -> Desk:
        return open_desk(models=(segmenter,))

    @pytest.mark.dialects
    def test_marks_leave_and_come_in_again(self, desk: Desk, command: Any, tmp_path: Path) -> None:
        item = desk.item(body=DISC_PNG)
        desk.label("anna", item, annotation=marks((30, 40), (100, 60)))
        assert command("export", "--out", tmp_path / "out") == 0
        package = read_label_package(tmp_path / "out")
        (image,) = package.labels.images
        assert (package.labels.task, image.label, package.labels.counts()) == ("segmentation", None, {"nucleus": 1})
        pixels = np.asarray(PIL.Image.open(tmp_path / "out" / image.image))
        assert np.array_equal(pixels, np.asarray(PIL.Image.open(io.BytesIO(DISC_PNG))))
        file = tmp_path / "out" / image.points
        assert command("import", file, "--reader", "Weiss") == 0
        renamed = tmp_path / "from qupath.geojson"
        renamed.write_bytes(file.read_bytes())
        assert command("import", renamed, "--reader", "Weiss") == 2
        assert command("import", renamed, "--reader", "Weiss", "--image", item["image_sha256"]) == 0
        first, second = desk.listed("otto", item)
        assert first["document"] == second["document"]
        renamed.write_text(json.dumps(marks((3000, 40))))
        assert command("import", renamed, "--reader", "Roth", "--image", item["image_sha256"]) == 2
        assert len(desk.listed("otto", item)) == 2
