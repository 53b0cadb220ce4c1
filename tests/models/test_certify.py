"""``overread certify`` from a folder to a report: draw, label, measure; what is refused, and what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from models import certify as certify_module
from models import seen as seen_module
from models.certify import HTML, JSON, MIN_LABELS, STORE, main
from models.errors import Refusal
from models.predictor import Predictor
from models.site import Row, names_of, predict_site
from tests.models.certifying import arguments, labelled, read, write

COUNT = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("site") / "scans"
    folder.mkdir()
    for seed in range(COUNT):
        (folder / f"secret-{seed:02d}.png").write_bytes(draw(seed))
    return folder


@pytest.fixture
def scans(images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "scans"))


class Loaded(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [str(value) for name, value in attrs if name in {"src", "href", "data", "action"}]


@pytest.mark.parametrize("by", ["random", "doubt"])
def test_draw_label_measure(by: str, scans: Path, package: Path) -> None:
    labels, out = scans.parent / "l.csv", scans.parent / "r"
    assert main(arguments(scans, package, "--draw", "30", "--by", by, "--seed", "4")) == 0
    rows = read(labels)
    assert len({row["file"] for row in rows}) == 30
    assert sum(float(row["inclusion_probability"]) for row in rows) > 0
    assert (len({row["inclusion_probability"] for row in rows}) == 1) == (by == "random")
    for number, row in enumerate(rows):
        row["label"] = ("normal", "pneumonia")[number % 2]
    write(labels, rows)
    assert main(arguments(scans, package)) == 0
    report = json.loads((out / JSON).read_text())
    assert report["labels"]["n"] == 30
    assert report["labels"]["draw"]["seed"] == 4
    assert report["model"]["sha256"] == Predictor.load(package).sha256
    assert report["site"]["images"] == COUNT
    assert (report["limits"] is None) == (by == "doubt")
    error = next(figure for figure in report["figures"] if figure["metric"] == "error")
    assert error["low"] < error["value"] < error["high"]
    page = Loaded()
    page.feed((out / HTML).read_text())
    assert page.found == []
    assert {"svg", "table"} <= page.tags
    assert "secret" not in (out / HTML).read_text() + (out / JSON).read_text()


def test_it_goes_on_where_it_stopped_and_sees_what_changed(
    scans: Path, package: Path, draw: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, predictor, predicted = scans.parent / "r" / STORE, Predictor.load(package), []
    real = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda by, images: (predicted.append(images[0].sha256), real(by, images))[1])

    def again() -> list[Row]:
        predicted.clear()
        return predict_site(scans, names_of(scans), predictor, store, 1).rows

    first = again()
    assert len(predicted) == len(first) == COUNT
    assert again() == first
    assert predicted == []
    store.write_text(store.read_text()[:-40])  # killed while it wrote
    (scans / "secret-00.png").write_bytes(draw(999))
    found = again()
    assert found[1:] == first[1:]
    assert predicted == [found[0]["image_sha256"], found[-1]["image_sha256"]]
    assert "secret" not in store.read_text()


def test_a_folder_that_vanishes_is_told_apart_from_a_bad_file_and_nothing_is_lost(
    scans: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scans / "broken.png").write_bytes(b"no image")
    write(scans.parent / "l.csv", labelled())
    real = seen_module.look
    seen: list[Path] = []

    def vanish(path: Path, *more: Any) -> Any:
        seen.append(path)
        if len(seen) == 11:
            shutil.move(scans, scans.parent / "away")
        return real(path, *more)

    monkeypatch.setattr(seen_module, "look", vanish)
    with pytest.raises(Refusal) as refusal:
        main(arguments(scans, package, "--threads", "1"))
    assert refusal.value.code == "folder_unavailable"
    assert "secret" not in str(refusal.value)
    kept = (scans.parent / "r" / STORE).read_text().splitlines()
    assert len(kept) == 9  # the broken file came first
    shutil.move(scans.parent / "away", scans)
    predicted: list[int] = []
    predict = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda by, images: (predicted.append(1), predict(by, images))[1])
    assert main(arguments(scans, package)) == 1
    assert len(predicted) == COUNT - 9
    assert json.loads((scans.parent / "r" / JSON).read_text())["site"]["failed"] == {"not_decodable": 1}


def test_a_mount_that_is_gone_leaves_an_empty_folder(scans: Path, package: Path) -> None:
    names = names_of(scans)
    for path in names.values():
        path.unlink()
    with pytest.raises(Refusal) as refusal:
        predict_site(scans, names, Predictor.load(package), scans.parent / "s.jsonl", 1)
    assert refusal.value.code == "folder_unavailable"


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda rows: rows[: MIN_LABELS - 1], "too_few_labels", "19"),
        (lambda rows: [row | {"label": "normal"} for row in rows], "one_class", "one class"),
        (lambda rows: [*rows, rows[0] | {"label": "pneumonia"}], "data_invalid", "Rows 2 and 42"),
        (lambda rows: [*rows, {"file": "gone.png", "label": "normal"}], "data_invalid", "Row 42"),
        (lambda rows: [*rows, {"file": "secret-50.png", "label": "covid"}], "data_invalid", "Row 42"),
        (lambda rows: [row | {"inclusion_probability": "0"} for row in rows], "data_invalid", "Row 2"),
        (lambda rows: [{"file": row["file"]} for row in rows], "data_invalid", "label"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    spoil: Callable[[list[dict[str, str]]], list[dict[str, str]]], code: str, words: str, scans: Path, package: Path
) -> None:
    write(scans.parent / "l.csv", spoil(labelled()))
    with pytest.raises(Refusal, match=words) as refusal:
        main(arguments(scans, package))
    assert refusal.value.code == code
    assert not any(name in str(refusal.value) for name in ("secret", "gone"))


def test_copies_of_an_image_count_once_and_must_agree(scans: Path, package: Path) -> None:
    shutil.copy(scans / "secret-00.png", scans / "zz.png")
    write(scans.parent / "l.csv", [*labelled(), {"file": "zz.png", "label": "normal"}])
    assert main(arguments(scans, package)) == 0
    report = json.loads((scans.parent / "r" / JSON).read_text())
    assert (report["site"]["images"], report["labels"]["n"]) == (COUNT, 40)
    write(scans.parent / "l.csv", [*labelled(), {"file": "zz.png", "label": "pneumonia"}])
    with pytest.raises(Refusal, match="contradict") as refusal:
        main(arguments(scans, package))
    assert refusal.value.code == "data_invalid"


def test_a_draw_is_not_written_over_labels_and_is_of_the_site_as_it_was(
    scans: Path, package: Path, draw: Callable[..., bytes]
) -> None:
    assert main(arguments(scans, package, "--draw", "30")) == 0
    with pytest.raises(Refusal) as refusal:
        main(arguments(scans, package, "--draw", "30"))
    assert refusal.value.code == "output_exists"
    rows = read(scans.parent / "l.csv")
    for number, row in enumerate(rows):
        row["label"] = ("normal", "pneumonia")[number % 2]
    write(scans.parent / "l.csv", rows)
    (scans / "new.png").write_bytes(draw(500))
    with pytest.raises(Refusal, match="drawn from"):
        main(arguments(scans, package))


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("after", [0, 1])
def test_a_draw_that_is_killed_can_be_given_again(
    after: int, scans: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, real, written = scans.parent / "l.csv", certify_module.write_whole, []

    def killed(file: Path, content: bytes) -> None:
        if len(written) == after:
            raise Killed
        written.append(file)
        real(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(certify_module, "write_whole", killed)
        with pytest.raises(Killed):
            main(arguments(scans, package, "--draw", "30", "--seed", "1"))
    assert not labels.exists()
    assert main(arguments(scans, package, "--draw", "30", "--seed", "2")) == 0
    assert json.loads(labels.with_suffix(".draw.json").read_text())["seed"] == 2
    assert len(read(labels)) == 30


def test_a_draw_without_its_record_is_refused_and_other_labels_are_not(scans: Path, package: Path) -> None:
    labels = scans.parent / "l.csv"
    assert main(arguments(scans, package, "--draw", "30")) == 0
    rows = [row | {"label": ("normal", "pneumonia")[number % 2]} for number, row in enumerate(read(labels))]
    write(labels, rows)
    assert main(arguments(scans, package)) == 0
    labels.with_suffix(".draw.json").unlink()
    with pytest.raises(Refusal, match="record of the draw") as refusal:
        main(arguments(scans, package))
    assert refusal.value.code == "data_invalid"
    write(labels, [{name: row[name] for name in row if name != "image_sha256"} for row in rows])
    assert main(arguments(scans, package)) == 0
    assert json.loads((scans.parent / "r" / JSON).read_text())["labels"]["draw"] is None


def test_a_report_that_is_killed_leaves_the_one_before_whole(scans: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(scans.parent / "l.csv", labelled())
    assert main(arguments(scans, package)) == 0
    files = [scans.parent / "r" / name for name in (JSON, HTML)]
    before = [file.read_bytes() for file in files]
    real = Path.write_bytes

    def killed(file: Path, content: bytes) -> int:
        real(file, content[: len(content) // 2])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(Killed):
            main(arguments(scans, package, "--ppv", "0.8"))
    assert [file.read_bytes() for file in files] == before
    assert main(arguments(scans, package, "--ppv", "0.8")) == 0
    assert files[0].read_bytes() != before[0]


def test_kept_predictions_that_are_no_text_are_refused(scans: Path, package: Path) -> None:
    store = scans.parent / "r" / STORE
    store.parent.mkdir()
    store.write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(Refusal) as refusal:
        main(arguments(scans, package, "--draw", "1"))
    assert refusal.value.code == "config_invalid"
    assert store.read_bytes() == b"\xff\xfe{}\n"  # and left as they are


def test_more_than_there_is_cannot_be_drawn(scans: Path, package: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        main(arguments(scans, package, "--draw", str(COUNT + 1)))
    assert refusal.value.code == "config_invalid"


def test_labels_that_were_left_empty_are_said(scans: Path, package: Path) -> None:
    rows = [row | {"p": "0.7"} for row in labelled()]
    write(scans.parent / "l.csv", [*rows, {"file": "secret-50.png", "label": "", "p": "0.7"}])
    assert main(arguments(scans, package, "--weights", "p")) == 0
    report = json.loads((scans.parent / "r" / JSON).read_text())
    assert (report["labels"]["not_labelled"], report["labels"]["drawn"]) == (1, "at random")
    assert any("not labelled" in note for note in report["notes"])


def test_lines_that_were_taken_out_of_a_draw_or_added_are_seen(scans: Path, package: Path) -> None:
    file, report = scans.parent / "l.csv", scans.parent / "r" / JSON
    assert main(arguments(scans, package, "--draw", "30")) == 0
    rows = [row | {"label": ("normal", "pneumonia")[number % 2]} for number, row in enumerate(read(file))]
    write(file, rows)
    assert main(arguments(scans, package)) == 0
    assert json.loads(report.read_text())["labels"]["not_labelled"] == 0  # the control
    write(file, rows[:24])
    assert main(arguments(scans, package)) == 0
    document = json.loads(report.read_text())
    assert (document["labels"]["n"], document["labels"]["not_labelled"]) == (24, 6)
    assert any("6 images were drawn and not labelled" in note for note in document["notes"])
    others = {f"secret-{number:02d}.png" for number in range(COUNT)} - {row["file"] for row in rows}
    write(file, [*rows, rows[0] | {"file": min(others)}])
    with pytest.raises(Refusal, match="1 labels more") as refusal:
        main(arguments(scans, package))
    assert refusal.value.code == "data_invalid"


def test_one_version_against_another(scans: Path, package: Path, make_package: Callable[..., Path]) -> None:
    write(scans.parent / "l.csv", labelled())
    other = make_package("other")
    assert main(arguments(scans, package, "--against", str(other))) == 0
    comparison = json.loads((scans.parent / "r" / JSON).read_text())["comparison"]
    assert comparison["model"]["sha256"] == Predictor.load(other).sha256
    assert comparison["figures"][0]["disagreement"] == 0
    page = (scans.parent / "r" / HTML).read_text()
    assert "Against other 1.0.0" in page
    assert comparison["model"]["sha256"] in page


def test_a_segmenter_is_refused(scans: Path, make_segmenter: Callable[..., Path]) -> None:
    write(scans.parent / "l.csv", labelled())
    with pytest.raises(Refusal) as refusal:
        main(arguments(scans, make_segmenter()))
    assert refusal.value.code == "package_invalid"
