"""What ``overread adapt`` refuses, and that it does so before it writes anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from models.errors import Refusal
from models.imaging import read_image
from models.seen import patient_of
from tests.conftest import tiny_graph
from tests.training.bars import bar, write_rows
from training import adapt
from training import target as target_module
from training.adaptation_config import Adaptation
from training.adapted import plan_adaptation
from training.classifier import ClassifierTraining, sibling
from training.config import Run, RunConfig, make_config, read_input_spec, sha256, write_json
from training.target import LEAST, check_target, read_labels, read_target

LIMIT = 1.0
Labels = Callable[..., Path]


def config_of(spec_file: Path, **more: Any) -> RunConfig:
    spec = read_input_spec(spec_file).model_copy(update={"height": 64, "width": 64})
    values = {"seed": 0, "domains": ("east",), "leave_out": (), "classes": ("level", "upright"), "finding": "upright"} | more
    return make_config(**values, input=spec, widths=(4, 8), blocks=1)


def write_run(folder: Path, config: RunConfig) -> Path:
    """Write an untrained run, with the tiny graph as what was exported: its domain distance is the mean of the image."""
    folder.mkdir(parents=True)
    trained_on = dict.fromkeys(config.domains, (10, 5))
    run = Run(config=config, data_sha256="0" * 64, trained_on=trained_on, command="overread train classifier", versions={})
    write_json(folder / "run.json", run.model_dump(mode="json"))
    module = ClassifierTraining(config)
    torch.save({name: getattr(module, name).state_dict() for name in ("classifier", "loss_prediction")}, folder / "model.pt")
    graph = tiny_graph()
    (folder / "model.onnx").write_bytes(graph)
    ramp = [float(value) for value in np.linspace(0, 1, 101)]
    write_json(folder / "calibration.json", {
        "model_sha256": sha256(graph),
        "calibration": {"temperature": 1.0, "loss_knots": [[0, 0.1], [1, 1]], "loss_quantiles": ramp, "domain_quantiles": ramp,
                        "n": 9, "method": "given"},
        "output": {"classes": list(config.classes), "findings": [{"label": "upright", "operating_point": 0.5, "rule": "given"}]},
        "triage": {"review_loss_percentile": 95, "review_domain_percentile": 95, "refuse_domain_distance": LIMIT},
    })  # fmt: skip
    return folder


@pytest.fixture
def run(spec_file: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", config_of(spec_file))


def scans(folder: Path, count: int, bright: bool = False) -> Path:
    """Draw a target; a bright one lies beyond the limit: nearly all of it has the highest grey value."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        picture = bar(index % 2 == 0, "east", random)
        if bright:
            picture = np.full_like(picture, 255)
            picture[0, :8] = index
        Image.fromarray(np.kron(picture, np.ones((2, 2), dtype=np.uint8))).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    def write(rows: list[tuple[str, str]]) -> Path:
        file = tmp_path / "labels.csv"
        write_rows(file, [{"image": str(image), "label": label} for image, label in rows])
        return file

    return write


def refused(run: Path, out: Path, target: Path, *more: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        adapt.main([str(run), "--unlabelled", str(target), "--domain", "new", "--out", str(out), *more])
    assert not out.exists()
    return caught.value


def test_a_target_that_is_too_small(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = scans(tmp_path / "scans", LEAST - 1)
    shutil.copy(target / "0.png", target / "copy.png")  # the same image again does not help
    (target / "broken.png").write_bytes(b"\x89PNG broken")
    refusal = refused(run, tmp_path / "out", target)
    assert refusal.code == "data_invalid"
    assert f"{LEAST - 1} usable images" in refusal.detail
    told = capsys.readouterr().err
    assert f"passed over: file {LEAST} in the order of their paths" in told
    assert "broken.png" not in told
    assert "broken.png" not in str(refusal)
    found = read_target(target, config_of_run(run).input)
    assert found.passed_over == 2


def config_of_run(run: Path) -> RunConfig:
    return RunConfig.model_validate(json.loads((run / "run.json").read_bytes())["config"])


def test_a_target_unlike_anything_seen_unless_labels_of_every_class_guide_it(run: Path, tmp_path: Path, labels: Labels) -> None:
    far = scans(tmp_path / "far", LEAST + 4, bright=True)
    refusal = refused(run, tmp_path / "out", far)
    assert refusal.code == "data_invalid"
    assert "unlike anything" in refusal.detail
    one_class = labels([(far / "0.png", "level"), (far / "1.png", "level")])
    assert "unlike anything" in refused(run, tmp_path / "out", far, "--target-labels", str(one_class)).detail
    words = [str(run), "--unlabelled", str(far), "--domain", "new", "--out", str(tmp_path / "guided")]
    both = labels([(far / "0.png", "level"), (far / "1.png", "upright")])
    words += ["--rounds", "1", "--members", "1", "--epochs", "1", "--target-labels", str(both)]
    assert adapt.main(words) == 0
    report = json.loads((tmp_path / "guided" / "adaptation.json").read_text())
    assert report["target"]["share_beyond"] > 0.5
    near = read_target(scans(tmp_path / "near", LEAST), config_of_run(run).input)
    assert check_target(near, adapt.draft(run), guided=False)["share_beyond"] < 0.5  # control


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--domain", "east"), "domain that the run was trained on"),
        (("--domain", "a/b"), "--domain"),
        (("--rounds", "0"), "--rounds"),
        (("--seed", "-1"), "--seed"),
        (("--method", "adabn", "--rounds", "2"), "statistics of the target alone"),
        (("--method", "adabn", "--data", "."), "statistics of the target alone"),
        (("--method", "adabn", "--target-labels", "x.csv"), "statistics of the target alone"),
    ],
)
def test_settings(run: Path, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    refusal = refused(run, tmp_path / "out", tmp_path, *more)
    assert refusal.code == "config_invalid"
    assert message in refusal.detail


def test_what_is_no_run_of_a_classifier(run: Path, package: Path, tmp_path: Path) -> None:
    refusal = refused(package, tmp_path / "out", tmp_path)
    assert refusal.code == "config_invalid"
    assert "model package" in refusal.detail
    document = json.loads((run / "run.json").read_bytes())
    for change, message in (
        ({"verb": "train segmenter"}, "segmenter"),
        ({"adaptation": Adaptation(
            method="adabn", domain="x", base_sha256="", target_sha256="", labels_sha256=None, source=False
        ).model_dump()}, "adapted already"),
    ):  # fmt: skip
        write_json(run / "run.json", document | {"config": document["config"] | change})
        assert message in refused(run, tmp_path / "out", tmp_path).detail
    write_json(run / "run.json", document)
    (run / "calibration.json").rename(tmp_path / "elsewhere")
    assert "overread calibrate" in refused(run, tmp_path / "out", tmp_path).detail
    (tmp_path / "elsewhere").rename(run / "calibration.json")
    (run / "model.pt").unlink()
    assert "not finished" in refused(run, tmp_path / "out", scans(tmp_path / "scans", LEAST)).detail


def test_labels(run: Path, tmp_path: Path, labels: Labels) -> None:
    target = scans(tmp_path / "scans", 4)
    shutil.copy(target / "0.png", target / "again.png")
    good = (target / "0.png", "level")
    for rows, message in (
        ([good, (target / "again.png", "upright")], "row 2: this image has two labels that contradict each other"),
        ([good, (target / "again.png", "level")], "row 2: this image occurs twice"),
        ([good, (target / "1.png", "slanted")], "row 2: its label is not one of level, upright"),
        ([good, (target / "1.png", "")], "row 2: a column is empty"),
        ([good, (target / "missing.png", "level")], "row 2: "),
    ):
        refusal = refused(run, tmp_path / "out", target, "--target-labels", str(labels(rows)))
        assert refusal.code == "data_invalid"
        assert message in refusal.detail
        assert "png" not in refusal.detail
    spec, classes = config_of_run(run).input, ("level", "upright")
    found = read_labels(labels([good, (target / "1.png", "upright")]), classes, "new", spec)
    assert [(row.label, row.domain) for row in found.rows] == [(0, "new"), (1, "new")]
    assert found.digests == {read_image((target / f"{index}.png").read_bytes()).sha256 for index in (0, 1)}


def test_siblings_are_adapted_by_the_same_recipe(spec_file: Path, tmp_path: Path) -> None:
    config = config_of(spec_file, domains=("east", "west"), leave_out=("east", "west"))
    base = write_run(tmp_path / "run", config)
    for domain in config.domains:
        write_run(sibling(base, domain), config.without(domain))
    settings = Adaptation(
        method="consistency", domain="new", base_sha256="", target_sha256="t", labels_sha256=None, source=True, rounds=2
    )
    planned = plan_adaptation(base, tmp_path / "out", settings)
    assert set(planned) == {tmp_path / "out", tmp_path / "out" / "without_east", tmp_path / "out" / "without_west"}
    for out, (folder, adapted) in planned.items():
        assert adapted.adaptation is not None
        assert adapted.adaptation.base_sha256 == sha256((folder / "model.pt").read_bytes())
        assert adapted.adaptation.rounds == 2
        assert out.relative_to(tmp_path / "out") == folder.relative_to(base)
    assert planned[tmp_path / "out" / "without_east"][1].domains == ("west",)
    (sibling(base, "west") / "model.pt").unlink()
    with pytest.raises(Refusal, match="not finished"):
        plan_adaptation(base, tmp_path / "out", settings)


def test_a_patient_is_told_by_the_header_and_the_header_alone() -> None:
    dicom = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    image = read_image(dicom)
    assert image.header is not None
    assert patient_of(image) != image.sha256
    assert str(image.header.PatientID) not in patient_of(image)
    image.header.PatientID = ""
    assert patient_of(image) == image.sha256


@pytest.fixture
def vanish_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function after which a folder goes away as soon as a file of a target is read."""
    real = target_module.read_file

    def arrange(folder: Path) -> None:
        def vanish(path: Path, *rest: Any) -> Any:
            if folder.exists():
                shutil.move(folder, tmp_path / "away")
            return real(path, *rest)

        monkeypatch.setattr(target_module, "read_file", vanish)

    return arrange


def test_a_target_that_vanishes_is_told_apart_from_a_bad_file(
    run: Path, tmp_path: Path, vanish_when_read: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scans(tmp_path / "target", 4)
    (folder / "broken.png").write_bytes(b"no image")
    spec = config_of_run(run).input
    assert len(read_target(folder, spec).digests) == 4  # the control: a bad file is passed over
    told = capsys.readouterr().err
    assert "passed over: file 5 in the order of their paths: [not_decodable]" in told
    assert "broken" not in told
    vanish_when_read(folder)
    with pytest.raises(Refusal) as refusal:
        read_target(folder, spec)
    assert refusal.value.code == "folder_unavailable"
    assert "passed over" not in capsys.readouterr().err


def test_labels_that_vanish_are_told_apart_from_a_bad_row(
    run: Path, tmp_path: Path, labels: Labels, vanish_when_read: Callable[[Path], None]
) -> None:
    target = scans(tmp_path / "scans", 2)
    file = labels([(target / "0.png", "level"), (target / "1.png", "upright")])
    folder = tmp_path / "labels"
    folder.mkdir()
    file = file.rename(folder / "labels.csv")
    spec = config_of_run(run).input
    (target / "1.png").write_bytes(b"no image")
    with pytest.raises(Refusal, match="row 2") as refusal:  # the control: the folder is there
        read_labels(file, ("level", "upright"), "new", spec)
    assert refusal.value.code == "data_invalid"

    vanish_when_read(folder)
    with pytest.raises(Refusal) as refusal:
        read_labels(file, ("level", "upright"), "new", spec)
    assert refusal.value.code == "folder_unavailable"
