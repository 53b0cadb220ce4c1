"""``overread predict``: one row a file, bad files named and passed over, the same numbers as the predictor's."""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from models.batch import MAX_FILE_BYTES, find_files, main
from models.errors import Refusal
from models.example import tissue_phantom
from models.imaging import read_image
from models.predictor import Predictor
from models.segmenter import SegmenterPredictor
from models.triage import Judgement
from tests.models.bombs import png
from tests.models.slides import SPACING, slide_bytes


@pytest.fixture
def folder(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    scans = tmp_path / "scans"
    (scans / "deeper").mkdir(parents=True)
    (scans / "a.png").write_bytes(draw(1))
    (scans / "deeper" / "b.png").write_bytes(draw(2))
    (scans / "broken.png").write_bytes(draw(3)[:200])
    (scans / "empty.dcm").write_bytes(b"")
    with (scans / "huge.dcm").open("wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    (scans / "notes.txt").write_text("not a scan")
    (scans / ".hidden.png").write_bytes(draw(4))
    return scans


def test_csv_holds_one_row_a_file_and_goes_on_past_bad_ones(folder: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    assert main([str(folder), "--out", str(out), "--model", str(package)]) == 1
    rows = {Path(row["file"]).name: row for row in csv.DictReader(out.read_text().splitlines())}
    assert {name: row["error"] for name, row in rows.items()} == {
        "a.png": "",
        "b.png": "",
        "broken.png": "not_decodable",
        "empty.dcm": "not_decodable",
        "huge.dcm": "too_large",
    }
    predictor = Predictor.load(package)
    (expected,) = predictor.predict([read_image((folder / "a.png").read_bytes())])
    assert float(rows["a.png"]["predicted_loss"]) == pytest.approx(expected.predicted_loss)
    assert float(rows["a.png"]["probability_pneumonia"]) == pytest.approx(expected.probabilities["pneumonia"])
    assert rows["a.png"]["verdict"] in {"accept", "review", "refuse"}
    assert rows["a.png"]["model_sha256"] == predictor.sha256


def test_jsonl_and_single_files(folder: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    assert main([str(folder / "a.png"), str(folder / "deeper"), "--out", str(out), "--model", str(package)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png"]


def test_a_file_named_outright_is_read_whatever_its_ending(folder: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    assert main([str(folder / "notes.txt"), "--out", str(out), "--model", str(package)]) == 1
    assert json.loads(out.read_text())["error"] == "not_decodable"


def test_files_named_by_a_uid_are_found(tmp_path: Path) -> None:
    for name in ("1.2.840.113619.2.55", "IM0001", "a.PNG", "notes.txt", "a.v2", ".1.2.3"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_files([tmp_path])] == ["1.2.840.113619.2.55", "IM0001", "a.PNG"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["missing", "--out", "r.csv"], "data_invalid"),
        ([".", "--out", "r.txt"], "config_invalid"),
        ([".", "--out", "r.csv", "--threads", "0"], "config_invalid"),
    ],
)
def test_misuse_is_refused(
    arguments: list[str], code: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal) as refusal:
        main([*arguments, "--model", str(package)])
    assert refusal.value.code == code


def test_a_path_that_is_not_there_is_told_by_its_number_and_not_by_its_name(folder: Path, package: Path, tmp_path: Path) -> None:
    named = [str(folder), str(tmp_path / "Erika-Mustermann.png")]
    with pytest.raises(Refusal, match="number 2") as refusal:
        main([*named, "--out", str(tmp_path / "r.csv"), "--model", str(package)])
    assert "Mustermann" not in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


@pytest.fixture
def tissue(tmp_path: Path) -> Path:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "tissue.png").write_bytes(tissue_phantom())
    (slides / "broken.png").write_bytes(tissue_phantom()[:300])
    return slides


def test_a_segmenter_gives_rows_too(tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = make_segmenter(), tmp_path / "results.csv"
    assert main([str(tissue), "--out", str(out), "--model", str(folder)]) == 1
    broken, row = csv.DictReader(out.read_text().splitlines())
    assert broken["error"] == "not_decodable"
    found, _ = SegmenterPredictor.load(folder).predict(read_image(tissue_phantom()))
    assert int(row["count"]) == len(found.objects) > 20
    assert row["density_per_mm2"] == ""
    assert float(row["density_per_megapixel"]) == pytest.approx(int(row["count"]) / 512**2 * 1e6)
    assert 0.05 < float(row["area_fraction"]) < 0.4
    assert float(row["predicted_loss"]) == found.predicted_loss
    assert row["verdict"] in {"accept", "review"}
    assert "objects" not in row


def test_columns_are_those_of_the_docs(
    folder: Path, tissue: Path, package: Path, make_segmenter: Callable[..., Path], tmp_path: Path
) -> None:
    found = set()
    for file, model in ((folder / "a.png", package), (tissue / "tissue.png", make_segmenter())):
        out = tmp_path / "results.csv"
        assert main([str(file), "--out", str(out), "--model", str(model)]) == 0
        found |= {re.sub("_pneumonia$", "_LABEL", name) for name in out.read_text().splitlines()[0].split(",")}
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    table = page[page.index("| column | holds |") :].split("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall("`(.*?)`", line.split("|")[1])]
    assert sorted(named) == sorted(found)


def test_objects_are_written_where_asked(tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    out, objects = tmp_path / "results.jsonl", tmp_path / "new" / "objects"
    assert main([str(tissue), "--out", str(out), "--model", str(make_segmenter()), "--objects", str(objects)]) == 1
    _, row = (json.loads(line) for line in out.read_text().splitlines())
    (written,) = objects.iterdir()
    assert written.name == f"tissue.png-{row['image_sha256'][:12]}.geojson"
    collection = json.loads(written.read_text())
    rings = [feature["geometry"]["coordinates"][0][:-1] for feature in collection["features"]]
    assert rings == [item["polygon"] for item in row["objects"]]
    assert len(rings) == row["count"] == row["quantities"]["count"]
    assert row["tiles"]


def test_file_names_may_be_long_and_no_text(tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    scans, objects = tmp_path / "named", tmp_path / "objects"
    scans.mkdir()
    names = ["n" * 240 + ".png", os.fsdecode(b"\xff.png")]
    for name in names:
        (scans / name).write_bytes((tissue / "tissue.png").read_bytes())
    for ending in ("csv", "jsonl"):
        out = tmp_path / f"results.{ending}"
        assert main([str(scans), "--out", str(out), "--model", str(make_segmenter()), "--objects", str(objects)]) == 0
    with (tmp_path / "results.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as rows:
        assert sorted(Path(row["file"]).name for row in csv.DictReader(rows)) == sorted(names)
    assert len(list(objects.iterdir())) == 2


def test_what_cannot_be_written_is_refused(tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    file, model = tmp_path / "file", str(make_segmenter())
    file.write_text("in the way")
    for options in (["--out", str(tmp_path / "missing" / "r.csv")], ["--out", str(tmp_path / "r.csv"), "--objects", str(file)]):
        with pytest.raises(Refusal, match="cannot be written") as caught:
            main([str(tissue), "--model", model, *options])
        assert caught.value.code == "config_invalid"


def test_under_refuse_no_object_is_called(
    tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, objects = tmp_path / "results.jsonl", tmp_path / "objects"
    monkeypatch.setattr("models.batch.judge", lambda *_: Judgement("refuse", ("out_of_domain",)))
    main([str(tissue / "tissue.png"), "--out", str(out), "--model", str(make_segmenter()), "--objects", str(objects)])
    row = json.loads(out.read_text())
    assert (row["verdict"], row["objects"], row["count"], row["quantities"]) == ("refuse", [], None, None)
    (written,) = objects.iterdir()
    assert json.loads(written.read_text())["features"] == []


def test_a_classifier_has_no_objects_to_write(folder: Path, package: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        main([str(folder), "--out", str(tmp_path / "r.csv"), "--model", str(package), "--objects", str(tmp_path / "o")])
    assert refusal.value.code == "config_invalid"
    assert not (tmp_path / "o").exists()


def test_a_part_of_an_image_and_of_a_slide(tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    """The slide holds the same pixels: what is found in it is what is found in the picture."""
    picture, objects, model = tissue / "tissue.png", tmp_path / "objects", str(make_segmenter())
    (tmp_path / "slide.dcm").write_bytes(slide_bytes(np.asarray(PIL.Image.open(picture).convert("RGB"))))
    paths = [str(picture), str(tmp_path / "slide.dcm")]
    options = ["--out", str(tmp_path / "r.jsonl"), "--model", model, "--objects", str(objects)]
    assert main([*paths, *options, "--region", "100,60,300,200"]) == 0
    of_picture, of_slide = (json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines())
    assert of_picture["objects"] == of_slide["objects"]
    points = np.concatenate([item["polygon"] for item in of_slide["objects"]])
    assert (points.min(0) >= (100, 60)).all()
    assert (points.max(0) <= (400, 260)).all()
    assert of_slide["density_per_mm2"] == pytest.approx(of_slide["count"] / (300 * 200 * SPACING**2))
    assert len({path.name for path in objects.iterdir() if path.name.endswith("-100-60-300-200.geojson")}) == 2
    assert main([*paths, *options]) == 1, "a slide needs a region"
    _, refused = (json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines())
    assert refused["error"] == "region_required"


def test_a_picture_of_50000_pixels_is_passed_over(tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    (tissue / "large.png").write_bytes(png(50_000, 50_000))
    options = ["--out", str(tmp_path / "r.jsonl"), "--model", str(make_segmenter())]
    for region in ([], ["--region", "0,0,200,200"]):
        assert main([str(tissue), *options, *region]) == 1
        rows = {Path(row["file"]).name: row for row in map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())}
        assert rows["large.png"]["error"] == "image_too_large"
        assert rows["tissue.png"]["count"] > 0, "the control: what lies beside it is analysed"


@pytest.mark.parametrize("region", ["1,2,3", "a,b,c,d", "1,2,3,-4", "1.5,0,9,9"])
def test_a_region_that_is_none(tissue: Path, make_segmenter: Callable[..., Path], tmp_path: Path, region: str) -> None:
    with pytest.raises(Refusal, match="x,y,width,height"):
        main([str(tissue), "--out", str(tmp_path / "r.csv"), "--model", str(make_segmenter()), "--region", region])


def test_a_classifier_predicts_no_part(folder: Path, package: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="config_invalid"):
        main([str(folder), "--out", str(tmp_path / "r.csv"), "--model", str(package), "--region", "0,0,64,64"])
