import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.annotation import Annotation, Scribble
from models.card import SEGMENTER_OUTPUTS, ObjectSpec, SegmenterCard, card_bytes, read_package
from models.comparison import read_comparison
from models.errors import Refusal
from models.imaging import read_image
from models.networks.domain_distance import DomainDistance
from models.networks.segmenter import Segmenter
from models.predictor import Graph
from models.segmenter import SegmenterPredictor
from tests.training import segmenter_drawings as drawings
from training import calibrate, evaluate, export, release, segmenter, segmenter_calibrate
from training.config import read_json
from training.metrics import bootstrap
from training.segmenter_calibrate import point_f1, tile_losses
from training.segmenter_config import read_segmenter_run
from training.segmenter_data import Tissue, read_tissues
from training.segmenter_evaluate import METRICS, columns, draft, measure, rank_correlation
from training.segmenter_export import ServedSegmenter


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on drawn tissue, through evaluation: its folder and that of its data. Tests that change it take a copy."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("segmenter")
    data, run = folder / "data", folder / "run"
    drawings.make(data)
    with pytest.MonkeyPatch.context() as patch:
        drawings.small(patch)
        assert segmenter.main(drawings.arguments(data, run, "--epochs", "12", "--supervision", "cluster")) == 0
    for verb in (export, calibrate, evaluate):
        assert verb.main([str(run), "--data", str(data)]) == 0
    return run, data


@pytest.fixture(scope="module")
def tissues(finished: tuple[Path, Path]) -> tuple[Tissue, ...]:
    run, data = finished
    config = read_segmenter_run(run).config
    return read_tissues(data, config).where("test", config)


def released(finished: tuple[Path, Path], about: Path, out: Path) -> Path:
    words = [str(finished[0]), "--name", "drawn", "--version", "1.0.0", "--about", str(about), "--out", str(out)]
    assert release.main(words) == 0
    return out / "drawn"


def test_graph_has_the_contracts_names_and_a_free_batch(finished: tuple[Path, Path]) -> None:
    model = onnx.load(finished[0] / "model.onnx", load_external_data=False)
    assert [item.name for item in model.graph.output] == list(SEGMENTER_OUTPUTS)
    graph = Graph((finished[0] / "model.onnx").read_bytes(), outputs=SEGMENTER_OUTPUTS)
    for count in (1, 3, 8):
        shapes = [values.shape for values in graph.values(np.zeros((count, 3, 48, 48), np.float32))]
        assert shapes == [(count, 1, 48, 48), (count, 16), (count,), (count,)]
    assert b".py" not in (finished[0] / "model.onnx").read_bytes()


def test_without_a_module_the_score_is_the_mean_entropy_of_the_pixels() -> None:
    torch.manual_seed(0)
    network = Segmenter(3, (4, 8), 1).eval()
    served = ServedSegmenter(network, None, DomainDistance(torch.eye(24)[None], torch.zeros(1, 1, 24), torch.zeros(1, 24)))
    logits, _, score, _ = served(torch.randn(2, 3, 16, 16))
    p = torch.sigmoid(logits.double())
    entropy = -(p * torch.log(p) + (1 - p) * torch.log(1 - p)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(score, entropy.float(), rtol=1e-4, atol=1e-5)


def test_the_segmenter_learns_the_drawn_nuclei_from_points(finished: tuple[Path, Path], tissues: tuple[Tissue, ...]) -> None:
    masked = [each for each in tissues if each.objects is not None]
    table = columns(draft(finished[0]), masked)
    area = np.mean([(each.objects > 0).mean() for each in masked if each.objects is not None])
    assert area < 0.3  # what calling everything a nucleus would reach
    assert table["foreground_iou"].mean() > 0.6
    assert table["object_f1"].mean() > 0.6


def test_calibration_says_by_what_it_was_chosen(finished: tuple[Path, Path]) -> None:
    report = read_json(finished[0] / "calibration.json", "missing")
    spec = ObjectSpec.model_validate(report["output"])
    assert spec.overlap == 8
    assert spec.label == "nucleus"
    assert "AJI by the full masks of" in spec.rule
    assert "F1 of points" in spec.rule
    config = read_segmenter_run(finished[0]).config
    images = read_tissues(finished[1], config).where("calibration", config)
    masks = sum(each.objects is not None for each in images)
    assert f"on {len(images)} held-out" in spec.rule
    assert f"masks of {masks} of them" in spec.rule
    assert report["calibration"]["n"] > len(images)  # tiles
    assert report["triage"]["refuse_domain_distance"] > report["calibration"]["domain_quantiles"][99]


def test_inverted_tissue_is_refused(finished: tuple[Path, Path], tissues: tuple[Tissue, ...]) -> None:
    predictor = draft(finished[0])
    own = columns(predictor, tissues)
    turned = [replace(each, image=replace(each.image, pixels=255 - each.image.pixels)) for each in tissues]
    assert columns(predictor, turned)["share_refuse"].mean() == 1
    assert own["share_refuse"].mean() < 0.5  # control


def test_threshold_is_the_best_one_and_ties_go_to_one_half(tissues: tuple[Tissue, ...]) -> None:
    masked = [each for each in tissues if each.objects is not None][:2]
    sure = [np.asarray(each.objects, np.float32).clip(0, 1) for each in masked]
    assert segmenter_calibrate.choose(masked, sure, drawings.config()).threshold == 0.5
    unsure = [0.1 + 0.25 * each for each in sure]  # nuclei at 0.35, ground at 0.1
    assert segmenter_calibrate.choose(masked, unsure, drawings.config()).threshold == 0.35


def test_points_alone_judge_objects(tissues: tuple[Tissue, ...]) -> None:
    tissue = replace(tissues[0], annotation=Annotation(np.array([[2.5, 2.5], [8.5, 2.5], [2.5, 8.5]])), objects=None)
    labels = np.zeros((12, 12), np.int32)
    labels[1:4, 1:4] = 1  # right
    assert point_f1(tissue, labels) == pytest.approx(2 * 1 / (3 + 1))
    labels[1:4, 1:10] = 1  # two points
    assert point_f1(tissue, labels) == 0
    labels[10:, 10:] = 2  # none
    labels[7:10, 1:4] = 3
    assert point_f1(tissue, labels) == pytest.approx(2 * 1 / (3 + 3))


def test_strokes_and_outlines_judge_objects_as_points_do(tissues: tuple[Tissue, ...]) -> None:
    stroke = Scribble("foreground", np.array([[6.5, 2.5], [10.5, 2.5]]))
    on_none = Scribble("background", np.array([[1.5, 6.5], [10.5, 6.5]]))
    outline = np.array([[1, 8], [4, 8], [4, 11], [1, 11]], float)
    marks = Annotation(np.array([[2.5, 9.5]]), (stroke, on_none), (outline,))  # the point lies in the outline
    tissue = replace(tissues[0], annotation=marks, objects=None)
    labels = np.zeros((12, 12), np.int32)
    labels[1:4, 7:11] = 1  # four of the stroke's five pixels
    labels[7:11, 1:4] = 2
    assert point_f1(tissue, labels) == 1
    labels[1:4, 9:11] = 0  # the most of them are on nothing
    assert point_f1(tissue, labels) == pytest.approx(2 * 1 / (2 + 2))


def test_objects_outside_what_was_marked_are_no_errors(tissues: tuple[Tissue, ...]) -> None:
    labels = np.zeros((12, 24), np.int32)
    labels[1:4, 1:4], labels[1:4, 11:14], labels[1:4, 20:23] = 1, 2, 3

    def judged(annotation: Annotation) -> float:
        return point_f1(replace(tissues[0], annotation=annotation, objects=None), labels)

    everywhere = Annotation(np.array([[2.5, 2.5]]))
    assert judged(everywhere) == pytest.approx(2 * 1 / (1 + 3))  # control
    assert judged(replace(everywhere, complete=False)) == 1
    left = np.array([[0, 0], [8, 0], [8, 12], [0, 12]], float)
    assert judged(replace(everywhere, region=left)) == 1
    assert judged(replace(everywhere, region=left * (1.5, 1))) == pytest.approx(2 * 1 / (1 + 2))
    assert judged(Annotation(np.array([[2.5, 2.5], [3.5, 2.5]]), complete=False)) == 0
    assert judged(Annotation(np.array([[2.5, 2.5], [7.5, 7.5]]), complete=False)) == pytest.approx(2 * 1 / (2 + 1))


def test_tile_losses_are_one_minus_dice_of_each_box(tissues: tuple[Tissue, ...]) -> None:
    objects = np.zeros((10, 20), np.int32)
    objects[2:4, 2:4] = 1
    found = np.zeros((10, 20), bool)
    found[2:4, 2:6] = True
    tissue = replace(tissues[0], objects=objects)
    losses = tile_losses(tissue, found, [(0, 0, 10, 10), (10, 0, 10, 10), (4, 0, 10, 10)])
    assert losses.tolist() == pytest.approx([1 - 2 * 4 / (4 + 8), 0.0, 1.0])


def test_one_group_has_no_interval() -> None:
    table = {"aji": np.array([0.2, 0.5, 0.7])}
    assert bootstrap(["aji"], table, ["a", "a", "a"], definitions=METRICS) == {"aji": None}
    assert bootstrap(["aji"], table, ["a", "a", "b"], definitions=METRICS)["aji"] is not None  # control


def test_rank_correlation_has_a_sign_and_is_undefined_where_nothing_varies() -> None:
    loss = np.array([0.1, 0.2, 0.3, 0.4])
    assert rank_correlation(loss**2, loss) == pytest.approx(1)
    assert rank_correlation(-loss, loss) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(4), loss))
    assert np.isnan(rank_correlation(loss[:2], loss[:2]))


def test_released_package_is_a_segmenter_and_its_figures_hold(
    finished: tuple[Path, Path], about: Path, tmp_path: Path, tissues: tuple[Tissue, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    package = released(finished, about, tmp_path)
    card = read_package(package)[0]
    assert isinstance(card, SegmenterCard)
    assert {figure.metric for figure in card.evaluation} == set(METRICS)
    assert card.training.sources[0].domain == "east"
    segmentation, foreground = SegmenterPredictor.load(package).predict(tissues[0].image)
    assert foreground.shape == (drawings.SIDE, drawings.SIDE)
    assert len(segmentation.objects) == segmentation.label_image.max()
    assert evaluate.main([str(package), "--data", str(finished[1])]) == 0
    assert "holds" in capsys.readouterr().out
    first = card.evaluation[0]
    assert first.value is not None
    changed = card.model_copy(
        update={"evaluation": (first.model_copy(update={"value": first.value + 0.01}), *card.evaluation[1:])}
    )
    (package / "card.json").write_bytes(card_bytes(changed))
    assert evaluate.main([str(package), "--data", str(finished[1])]) == 1  # control


def test_a_segmenter_is_compared_by_its_masks(finished: tuple[Path, Path], about: Path, tmp_path: Path) -> None:
    package = released(finished, about, tmp_path / "in-use")
    words = [str(finished[0]), "--name", "drawn", "--version", "1.1.0", "--about", str(about), "--out", str(tmp_path / "new")]
    gate = ["--current", str(package), "--compare", str(finished[1])]
    with pytest.raises(Refusal, match="too few to tell") as caught:  # the test split holds few images
        release.main([*words, *gate])
    assert caught.value.code == "candidate_worse"
    assert release.main([*words, *gate, "--accept-worse", "the same weights"]) == 0
    comparison = read_comparison(tmp_path / "new" / "drawn")
    assert comparison is not None
    assert comparison.left_out > 0
    assert comparison.decisive == ("true_loss", "foreground_iou")
    east = {each.metric: each for each in comparison.differences if each.site == "east"}
    card = read_package(package)[0]
    figures = {figure.metric: figure.value for figure in card.evaluation}
    for metric in ("true_loss", "foreground_iou", "dice"):
        assert east[metric].difference == 0
        assert east[metric].current == pytest.approx(figures[metric])


def test_gaps_and_mixtures_are_refused(finished: tuple[Path, Path], about: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    card = tmp_path / "out"
    (run / "evaluation.json").unlink()
    with pytest.raises(Refusal, match=r"evaluation\.json"):
        released((run, finished[1]), about, card)
    shutil.copy(finished[0] / "evaluation.json", run)
    (run / "model.onnx").write_bytes((run / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(Refusal, match="calibrate"):
        evaluate.main([str(run), "--data", str(finished[1])])
    other = tmp_path / "data"
    shutil.copytree(finished[1], other)
    image = other / "0.png"
    picture = bytearray(image.read_bytes())
    shutil.copy(other / "1.png", image)
    assert read_image(bytes(picture)).sha256 != read_image(image.read_bytes()).sha256
    (other / "1.png").write_bytes(bytes(picture))
    for verb in (export, calibrate, evaluate):
        shutil.copy(finished[0] / "model.onnx", run)
        with pytest.raises(Refusal, match="not the rows and images") as caught:
            verb.main([str(run), "--data", str(other)])
        assert caught.value.code == "data_invalid"


def test_training_page_explains_every_figure_and_makes_the_shipped_model() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    table = text[text.index("| figure of a segmenter | meaning |") :].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(METRICS)
    line = next(line for line in text.replace("\\\n", " ").splitlines() if line.startswith("overread train segmenter"))
    documented = segmenter._parser().parse_args(line.split()[3:])
    options = text[text.index("| option | what the foreground") :].split("\n\n")[0]
    for words in re.findall(r"^\| `([^`]+)` \|", options, re.MULTILINE):
        segmenter._parser().parse_args([*line.split()[3:], *words.split()])
    package = Path(__file__).parents[2] / "models" / "zoo" / "nuclei"
    command = read_package(package)[0].training.command.replace("--labels", "--supervision")  # as it is called today
    made = segmenter._parser().parse_args(command.split()[3:])
    for name in (
        "domains",
        "label",
        "supervision",
        "edges",
        "crf",
        "stain",
        "normalization",
        "loss_prediction",
        "seed",
        "epochs",
    ):
        assert getattr(documented, name) == getattr(made, name), name


def test_the_shipped_model_was_trained_from_points_on_cc0_images_alone() -> None:
    zoo = Path(__file__).parents[2] / "models" / "zoo"
    card, control = (read_package(zoo / name)[0].training for name in ("nuclei", "cxr-pneumonia"))
    assert {source.licence for source in card.sources} == {"CC0"} != {source.licence for source in control.sources}
    assert {source.domain for source in card.sources} == set(card.config["domains"])
    assert all(domain.startswith("dsb18_") for domain in card.config["domains"])
    assert card.config["labels"] == "cluster"
    for file in (zoo / "nuclei").iterdir():
        assert not re.search(rb"\.py\b|/(home|root|work|tmp)/", file.read_bytes()), file.name


def test_figures_that_need_masks_are_not_defined_without(finished: tuple[Path, Path], tissues: tuple[Tissue, ...]) -> None:
    pointed = [each for each in tissues if each.objects is None]
    figures = {figure.metric: figure for figure in measure(draft(finished[0]), pointed)}
    assert figures["aji"].value is None
    assert figures["aji"].n == 0
    assert "masks" in figures["aji"].note
    assert figures["point_f1"].value is not None
    mixed = {figure.metric: figure for figure in measure(draft(finished[0]), tissues)}
    assert mixed["aji"].value is not None  # control
    assert mixed["aji"].n + len(pointed) == mixed["point_f1"].n == len(tissues)
