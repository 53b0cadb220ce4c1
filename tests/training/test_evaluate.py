import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.card import Figure
from models.errors import Refusal
from training import evaluate, release
from training.config import read_run
from training.data import Row
from training.evaluate import draft, largest_gap
from training.export import load_run_images
from training.metrics import METRICS
from training.unseen import UNSEEN


def figures(run: Path) -> list[Figure]:
    return [Figure.model_validate(figure) for figure in json.loads((run / "evaluation.json").read_text())["figures"]]


def test_every_domain_has_every_figure_both_ways(finished: tuple[Path, Path]) -> None:
    run, data = finished
    found = figures(run)
    for domain in ("east", "west"):
        for held_out in ("patients", "domain"):
            here = [figure for figure in found if figure.domain == domain and figure.held_out == held_out]
            expected = set(METRICS) - ({UNSEEN} if held_out == "patients" else set())
            assert {figure.metric for figure in here if figure.subgroup == "all"} == expected
            assert {figure.subgroup for figure in here} == {"all", "view=AP", "view=unknown", "sex=unknown", "age=unknown"}
            unknown = [figure for figure in here if figure.subgroup in ("sex=unknown", "age=unknown")]
            assert all(figure.value is None and figure.note for figure in unknown)
    abroad = next(figure for figure in found if figure.held_out == "domain" and figure.metric == "auroc")
    assert abroad.n == 120  # all images of the domain, because the sibling saw none
    config = read_run(run).config
    test = load_run_images(run, data).where("test", config)
    home = [figure for figure in found if figure.held_out == "patients" and figure.metric == "auroc" and figure.subgroup == "all"]
    assert sum(figure.n for figure in home) == len(test.rows)


def test_intervals_hold_their_values(finished: tuple[Path, Path]) -> None:
    intervals = [figure for figure in figures(finished[0]) if figure.low is not None]
    assert intervals
    for figure in intervals:
        assert figure.value is not None
        assert figure.high is not None
        assert figure.low <= figure.high


def test_columns_are_those_of_the_predictor(finished: tuple[Path, Path]) -> None:
    run, data = finished
    images = load_run_images(run, data).where("test", read_run(run).config)
    predictor = draft(run)
    table = evaluate.columns(predictor, images, size=7)
    prediction = predictor.predict_tensor(images.tensors[8:9])[0]
    assert table["probability"][8] == pytest.approx(prediction.probabilities["spot"], abs=1e-6)
    assert table["predicted_loss"][8] == pytest.approx(prediction.predicted_loss, abs=1e-6)
    label = ("normal", "spot")[images.rows[8].label]
    assert table["true_loss"][8] == pytest.approx(-np.log(prediction.probabilities[label]), abs=1e-6)
    assert table["wrong"].tolist() == (table["called"] != table["positive"]).tolist()


def test_a_stale_calibration_is_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.copy(copy / "without_east" / "model.onnx", copy / "model.onnx")
    with pytest.raises(Refusal, match="calibrate it again") as caught:
        draft(copy)
    assert caught.value.code == "config_invalid"
    (copy / "calibration.json").unlink()
    with pytest.raises(Refusal, match="overread calibrate writes it"):
        draft(copy)


@pytest.fixture
def package(finished: tuple[Path, Path], about: Path, tmp_path: Path) -> Path:
    words = [str(finished[0]), "--name", "drawn", "--version", "1.0.0", "--about", str(about), "--out", str(tmp_path)]
    assert release.main(words) == 0
    return tmp_path / "drawn"


def test_a_released_package_gives_its_cards_figures_again(
    finished: tuple[Path, Path], package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = finished
    assert evaluate.main([str(package), "--data", str(data), "--run", str(run)]) == 0
    assert "holds" in capsys.readouterr().out


def test_a_card_with_other_figures_is_found_out(
    finished: tuple[Path, Path], package: Path, rewrite: Callable[[Path, Callable[[dict], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def flatter(document: dict) -> None:
        figure = next(f for f in document["evaluation"] if f["metric"] == "accuracy" and f["held_out"] == "patients")
        figure["value"] += 0.002

    rewrite(package, flatter)
    assert evaluate.main([str(package), "--data", str(finished[1])]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def figure(**change: object) -> Figure:
    plain = {"domain": "a", "held_out": "patients", "subgroup": "all", "metric": "auroc", "value": 0.9, "low": 0.8, "high": 1.0}
    return Figure.model_validate(plain | {"n": 9, "note": ""} | change)


def test_gap_sees_values_intervals_counts_and_what_is_missing() -> None:
    assert largest_gap([figure()], [figure()])[0] == 0
    assert largest_gap([figure()], [figure(value=0.91)])[0] == pytest.approx(0.01)
    assert largest_gap([figure()], [figure(low=0.7)])[0] == pytest.approx(0.1)
    assert largest_gap([figure()], [figure(n=10)])[0] == 1
    assert largest_gap([figure()], [figure(value=None, low=None, high=None)])[0] == float("inf")
    assert largest_gap([figure()], [])[0] == float("inf")
    assert largest_gap([], [figure()])[0] == float("inf")
    nothing = figure(value=None, low=None, high=None)
    assert largest_gap([nothing], [nothing])[0] == 0


def test_figures_of_calls_count_refused_images_and_say_so() -> None:
    called = np.array([True, True, False, False] * 5)
    refuse = np.arange(20) < 3
    columns = {name: np.linspace(0, 1, 20) for name in ("probability", "true_loss", "predicted_loss", "confidence", "entropy")}
    columns |= {name: np.linspace(0, 1, 20) for name in ("loss_score", "domain_distance")}
    table = columns | {
        "positive": called, "called": called, "wrong": called != called, "correct": called == called,
        "review": np.zeros(20, bool), "refuse": refuse,
    }  # fmt: skip
    rows = [Row(index, Path("x"), 0, "a", str(index), "") for index in range(20)]
    found = {figure.metric: figure for figure in evaluate.measure(table, rows, "patients") if figure.subgroup == "all"}
    assert found["sensitivity"].value == 1.0  # as served, 8 of 10: two of the three that are refused are called
    for metric in ("sensitivity", "specificity", "accuracy"):
        assert found[metric].note.startswith("3 of these 20 images are refused")
    assert found["share_refuse"].value == pytest.approx(0.15)
    assert found["auroc"].note == ""
    none = evaluate.measure(table | {"refuse": np.zeros(20, bool)}, rows, "patients")
    assert not any("refused" in figure.note for figure in none)


def test_other_data_are_refused(finished: tuple[Path, Path], package: Path, drawn: tuple[Path, list[dict[str, str]]]) -> None:
    with pytest.raises(Refusal, match="not the rows and images") as caught:
        evaluate.main([str(package), "--data", str(drawn[0])])
    assert caught.value.code == "data_invalid"
