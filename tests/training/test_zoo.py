"""What is claimed of the released model holds: on the real images, from the released file alone."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.card import ModelCard, read_package
from models.errors import Refusal
from models.predictor import Predictor
from models.triage import judge
from training import evaluate
from training.calibrate import inverted
from training.config import RunConfig
from training.data import SPLITS, ImageSet, load_images, read_manifest, split_of

PACKAGE = Path(__file__).parents[2] / "models" / "zoo" / "cxr-pneumonia"
SOURCES = {"kermany_guangzhou", "nih_chestxray"}


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return read_package(PACKAGE)[0]


@pytest.fixture(scope="module")
def config(card: ModelCard) -> RunConfig:
    return RunConfig.model_validate(card.training.config)


@pytest.fixture(scope="module")
def test_split(config: RunConfig, data_root: Path) -> ImageSet:
    rows = read_manifest(data_root / "cxr", config.domains, config.classes).rows
    return load_images([row for row in rows if split_of(row.patient, config) == "test"], config.input, "test split")


def test_splits_are_disjoint_by_patient(config: RunConfig, data_root: Path) -> None:
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for row in read_manifest(data_root / "cxr", config.domains, config.classes).rows:
        patients[split_of(row.patient, config)].add(row.patient)
    pairs = [(first, second) for first in SPLITS for second in SPLITS if first < second]
    assert [len(patients[first] & patients[second]) for first, second in pairs] == [0, 0, 0]
    assert min(map(len, patients.values())) > 300


def test_a_split_by_image_would_overlap(config: RunConfig, data_root: Path) -> None:
    """The control of the test above: so many patients have several images that any other split shows."""
    sides: dict[str, set[str]] = {}
    for row in read_manifest(data_root / "cxr", config.domains, config.classes).rows:
        sides.setdefault(row.patient, set()).add(split_of(f"{row.patient}{row.number}", config))
    assert sum(len(split) > 1 for split in sides.values()) > 100


def test_only_permitted_images_trained_it(card: ModelCard) -> None:
    assert {source.domain for source in card.training.sources} == SOURCES
    kermany = next(source for source in card.training.sources if source.domain == "kermany_guangzhou")
    assert "CC BY 4.0" in kermany.licence
    assert "Not for diagnosis" in card.intended_use.not_for


def test_neither_file_names_the_machine_that_made_it() -> None:
    for file in PACKAGE.iterdir():
        assert not re.search(rb"\.py\b|/(home|root|work|tmp)/", file.read_bytes()), file.name
    assert re.search(rb"\.py\b|/(home|root|work|tmp)/", b'File "/tmp/somewhere/export.py"')  # control


@pytest.mark.parametrize(("domain", "least"), [("kermany_guangzhou", 0.95), ("nih_chestxray", 0.70)])
def test_it_is_good_enough_on_held_out_patients(card: ModelCard, domain: str, least: float) -> None:
    found = [
        figure.value for figure in card.evaluation
        if (figure.domain, figure.held_out, figure.subgroup, figure.metric) == (domain, "patients", "all", "auroc")
    ]  # fmt: skip
    assert len(found) == 1
    assert found[0] is not None
    assert found[0] >= least


def test_each_domain_is_also_reported_unseen(card: ModelCard) -> None:
    unseen = Counter(figure.domain for figure in card.evaluation if figure.held_out == "domain" and figure.value is not None)
    assert set(unseen) == SOURCES


def test_evaluate_gives_the_cards_figures_again(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(PACKAGE), "--data", str(data_root / "cxr")]) == 0
    assert "holds" in capsys.readouterr().out


def verdicts(predictor: Predictor, tensors: np.ndarray) -> Counter[str]:
    found = [p for start in range(0, len(tensors), 32) for p in predictor.predict_tensor(tensors[start : start + 32])]
    return Counter(judge(prediction, predictor.card.triage).verdict for prediction in found)


def test_inverted_images_are_reviewed_or_refused(test_split: ImageSet, config: RunConfig) -> None:
    predictor = Predictor.load(PACKAGE)
    wrong = verdicts(predictor, inverted(test_split.tensors, config.input))
    assert wrong["accept"] / wrong.total() <= 0.05
    right = verdicts(predictor, test_split.tensors)
    assert right["accept"] / right.total() >= 0.75  # control: it does not flag whatever comes
    assert right["refuse"] / right.total() <= 0.03


@pytest.mark.parametrize("turn", [lambda x: x[:, :, ::-1], lambda x: np.rot90(x, 1, (2, 3))], ids=["upside down", "on its side"])
def test_turned_images_are_reviewed_or_refused(test_split: ImageSet, turn: Callable[[np.ndarray], np.ndarray]) -> None:
    wrong = verdicts(Predictor.load(PACKAGE), np.ascontiguousarray(turn(test_split.tensors)))
    assert wrong["accept"] / wrong.total() <= 0.15


def test_what_is_no_xray_is_refused_or_reviewed(config: RunConfig) -> None:
    spec = config.input
    noise = np.random.default_rng(0).random((20, 1, spec.height, spec.width))
    blank = np.zeros((1, 1, spec.height, spec.width))
    tensors = ((np.concatenate([noise, blank]) - spec.mean) / spec.std).astype(np.float32)
    assert verdicts(Predictor.load(PACKAGE), tensors) == {"refuse": 21}


def paths(document: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every field of a card, nested documents included."""
    for name, value in document.items():
        yield (*at, name)
        if isinstance(value, dict) and (*at, name) not in {("training", "config"), ("training", "versions")}:
            yield from paths(value, (*at, name))


def remove(document: dict[str, Any], path: tuple[str, ...]) -> None:
    for name in path[:-1]:
        document = document[name]
    del document[path[-1]]


def test_a_card_without_any_one_field_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(PACKAGE, package)
    document = json.loads((package / "card.json").read_bytes())
    assert Predictor.load(package).card.name == "cxr-pneumonia"  # control: the intact card loads
    places = list(paths(document))
    assert len(places) > 45
    for path in places:
        changed = json.loads(json.dumps(document))
        remove(changed, path)
        (package / "card.json").write_text(json.dumps(changed))
        with pytest.raises(Refusal) as caught:
            read_package(package)
        assert caught.value.code == "package_invalid", path
        # What may be absent, but not be taken out, is seen by the digest
        unnamed = path in (("schema_version",), ("calibration", "unseen_loss_knots"))
        assert path[-1] in caught.value.detail or unnamed, caught.value.detail


def test_a_finding_without_any_one_field_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(PACKAGE, package)
    whole = json.loads((package / "card.json").read_bytes())
    for where in (("output", "findings"), ("training", "sources"), ("evaluation",)):
        for name in _at(whole, where)[0]:
            changed = json.loads(json.dumps(whole))
            del _at(changed, where)[0][name]
            (package / "card.json").write_text(json.dumps(changed))
            with pytest.raises(Refusal, match=name):
                read_package(package)


def _at(document: dict[str, Any], where: tuple[str, ...]) -> Any:
    for name in where:
        document = document[name]
    return document
