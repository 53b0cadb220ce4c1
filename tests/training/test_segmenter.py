import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2hed, rgb_from_hed

from models.card import InputSpec
from models.errors import Refusal
from tests.training import segmenter_drawings as drawings
from training import segmenter
from training.augmentation import stain_jitter
from training.segmenter import SegmenterTraining, load_segmenter
from training.segmenter_config import read_segmenter_run
from training.segmenter_crops import Crops, crop_loader, supervision
from training.segmenter_data import look_alikes, read_tissues
from training.weak_labels import IGNORE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "data"
    drawings.make(folder)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings.small(monkeypatch)


def moved(config: Any, data: Path) -> set[str]:
    """Return the networks all of whose parameters one step moves."""
    torch.manual_seed(0)
    module = SegmenterTraining(config)
    optimiser = module.configure_optimizers()["optimizer"]
    images, labels = next(iter(crop_loader(read_tissues(data, config).images, config, 0)))
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    task, ranking = module.losses(images, labels, True)
    torch.autograd.backward(task + ranking)
    optimiser.step()
    still = {name for name, value in module.named_parameters() if torch.equal(value, before[name])}
    networks = {".".join(name.split(".")[:2]) for name in before}
    return {network for network in networks if not any(name.startswith(network) for name in still)}


def test_every_networks_parameters_move(data: Path) -> None:
    found = moved(drawings.config(edges="pseudo_edge_attention"), data)
    networks = {"pseudo_edge.edges", "pseudo_edge.attention", "segmenter.stem", "segmenter.stages", "segmenter.lateral"}
    assert networks | {"segmenter.smooth", "segmenter.head", "loss_prediction.branches"} <= found
    without = moved(drawings.config(edges="pseudo_edge_attention", edge_weight=0.0, weight_decay=0.0), data)
    assert not {"pseudo_edge.edges", "pseudo_edge.attention"} & without  # control: what teaches them is the edge loss


def test_each_method_changes_the_loss(data: Path) -> None:
    def loss(**values: Any) -> float:
        settings = drawings.config(**values)
        torch.manual_seed(0)
        images, labels = next(iter(crop_loader(read_tissues(data, settings).images, settings, 0)))
        return float(SegmenterTraining(settings).losses(images, labels, True)[0].detach())

    plain = loss()
    assert loss() == plain
    others = [loss(labels="cluster"), loss(edges="pseudo_edge"), loss(crf=True), loss(edges="pseudo_edge_attention")]
    assert len({plain, *others}) == 5


def test_ranking_loss_reaches_the_encoder_only_while_joint(data: Path) -> None:
    settings = drawings.config()
    images, labels = next(iter(crop_loader(read_tissues(data, settings).images, settings, 0)))
    for joint in (True, False):
        torch.manual_seed(0)
        module = SegmenterTraining(settings)
        module.losses(images, labels, joint)[1].backward()
        reached = module.segmenter.stem[0].weight.grad
        assert (reached is not None and bool(reached.any())) == joint
        assert module.loss_prediction.score.weight.grad is not None
        assert module.segmenter.head.weight.grad is None  # the true loss is detached


def test_labels_are_what_was_asked_for(data: Path) -> None:
    masked, _, pointed = read_tissues(data, drawings.config()).images[:3]
    assert masked.objects is not None
    assert pointed.objects is None
    assert len(masked.annotation.points) == len(pointed.annotation.points) == 9
    points = supervision(masked, drawings.config(labels="points"))[0]
    assert set(np.unique(points)) == {IGNORE, 1}
    voronoi = supervision(masked, drawings.config(labels="voronoi"))
    assert voronoi.shape == (1, drawings.SIDE, drawings.SIDE)
    assert (voronoi == 0).any()
    both = supervision(pointed, drawings.config(labels="cluster"))
    assert both.shape[0] == 2
    np.testing.assert_array_equal(both[0], supervision(pointed, drawings.config())[0])
    np.testing.assert_array_equal(supervision(masked, drawings.config(labels="masks"))[0], masked.objects > 0)


def test_crops_move_image_and_labels_alike_and_follow_from_their_numbers() -> None:
    place = np.arange(60 * 50).reshape(60, 50)
    colours = np.stack([place % 50, place // 50, 0 * place], axis=2).astype(np.uint8)
    labels = np.stack([place % 50, place // 50]).astype(np.int8)
    crops = Crops([colours], [labels], drawings.config())
    images, known = crops[[(0, (seed,)) for seed in range(16)]]
    shown = torch.round((images * 0.25 + 0.5) * 255)
    assert torch.equal(shown[:, :2], known.float())
    assert len({known[index, :, 0, 0].numpy().tobytes() for index in range(16)}) > 8
    assert torch.equal(crops[[(0, (3,))]][1][0], known[3])


def test_images_that_look_alike_form_a_group() -> None:
    random = np.random.default_rng(0)
    pink, grey = ([drawings.draw(random, ground)[0] for _ in range(3)] for ground in (230, 110))
    groups = look_alikes([*pink, *grey])
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1
    assert groups[0] != groups[3]


def test_images_without_a_patient_are_grouped_and_merged_masks_are_never_measured_by(data: Path, tmp_path: Path) -> None:
    rows = drawings.make(tmp_path / "data", 6)
    for row in rows:
        row["patient"] = ""
        row["label_kind"] = "binary_cc"
    drawings.write(tmp_path / "data", rows)
    config = drawings.config()
    tissues = read_tissues(tmp_path / "data", config)
    assert len({each.group for each in tissues.images}) == 1
    assert all(each.objects is None for each in tissues.images)
    masked = [each for each in tissues.images if each.foreground is not None]
    assert len(masked) == 4
    for seed in range(5):
        assert set(masked) <= set(tissues.where("train", drawings.config(seed=seed)))
    assert {len(read_tissues(data, config).where(split, config)) > 0 for split in ("train", "calibration", "test")} == {True}


def _points_outside(folder: Path, row: dict[str, str]) -> None:
    (folder / row["points"]).write_text("x,y\n10,10\n500,10\n")


def _crossing(folder: Path, row: dict[str, str]) -> None:
    geometry = '{"type": "Polygon", "coordinates": [[[10, 10], [20, 20], [20, 10], [10, 20], [10, 10]]]}'
    (folder / "a.geojson").write_text(f'[{{"type": "Feature", "geometry": {geometry}}}]')
    row |= {"points": "a.geojson"}


def _more_points_than_pixels(folder: Path, row: dict[str, str]) -> None:
    (folder / row["points"]).write_text("x,y\n" + "1,1\n" * (drawings.SIDE**2 + 1))


def _no_points(folder: Path, row: dict[str, str]) -> None:
    (folder / row["points"]).write_text("x,y\n")


def _no_image(folder: Path, row: dict[str, str]) -> None:
    (folder / row["image"]).unlink()


def _broken_image(folder: Path, row: dict[str, str]) -> None:
    (folder / row["image"]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def _twice(folder: Path, row: dict[str, str]) -> None:
    (folder / row["image"]).write_bytes((folder / "0.png").read_bytes())


def _other_size(folder: Path, row: dict[str, str]) -> None:
    Image.fromarray(np.ones((10, 12), np.uint16)).save(folder / "map.png")
    row |= {"label_map": "map.png"}


def _empty_map(folder: Path, row: dict[str, str]) -> None:
    Image.fromarray(np.zeros((drawings.SIDE, drawings.SIDE), np.uint16)).save(folder / "map.png")
    row |= {"label_map": "map.png"}


def _colour_map(folder: Path, row: dict[str, str]) -> None:
    row |= {"label_map": row["image"]}


def _nothing_known(folder: Path, row: dict[str, str]) -> None:
    row |= {"points": ""}


def _too_small(folder: Path, row: dict[str, str]) -> None:
    Image.fromarray(np.full((20, 90, 3), (200, 100, 100), np.uint8)).save(folder / row["image"])


SPOIL = (
    _points_outside, _crossing, _more_points_than_pixels, _no_points, _no_image, _broken_image, _twice, _other_size, _empty_map,
    _colour_map, _nothing_known, _too_small,
)  # fmt: skip


@pytest.mark.parametrize("spoil", SPOIL)
@pytest.mark.usefixtures("small")
def test_bad_rows_are_named_before_time_is_spent(tmp_path: Path, spoil: Callable[[Path, dict[str, str]], None]) -> None:
    rows = drawings.make(tmp_path / "data", 3)
    read_tissues(tmp_path / "data", drawings.config())  # control
    spoil(tmp_path / "data", rows[2])
    drawings.write(tmp_path / "data", rows)
    with pytest.raises(Refusal, match="row 3: ") as caught:
        segmenter.main(drawings.arguments(tmp_path / "data", tmp_path / "run"))
    assert caught.value.code == "data_invalid"
    assert ".png" not in caught.value.detail
    assert ".csv" not in caught.value.detail
    assert "a.geojson" not in caught.value.detail
    assert not (tmp_path / "run").exists()


def test_masks_that_are_not_there_and_domains_without_rows_are_refused(data: Path) -> None:
    with pytest.raises(Refusal, match="row 3: it has no masks"):
        read_tissues(data, drawings.config(labels="masks"))
    with pytest.raises(Refusal, match="no row of the domain west"):
        read_tissues(data, drawings.config(domains=("east", "west")))
    config = drawings.config(fractions=(0.998, 0.001, 0.001))
    images = read_tissues(data, config)
    with pytest.raises(Refusal, match="in the split"):
        segmenter.check_splits(images, config)


def test_grey_inputs_are_refused_and_what_they_would_be() -> None:
    for change in ({"channels": 1}, {"intensity": "percentile"}):
        with pytest.raises(Refusal, match="colour") as caught:
            drawings.config(input=InputSpec.model_validate(drawings.SPEC | change))
        assert caught.value.code == "config_invalid"


def start(command: list[str]) -> subprocess.Popen[bytes]:
    code = (
        "import pytest\nfrom tests.training import segmenter_drawings as d\nfrom training import segmenter\n"
        f"d.small(pytest.MonkeyPatch())\nraise SystemExit(segmenter.main({command!r}))"
    )
    quiet = subprocess.DEVNULL
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=quiet, stderr=quiet, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.usefixtures("small")
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)

    def command(out: Path, *more: str) -> list[str]:
        return drawings.arguments(data, out, "--epochs", "12", "--edges", "pseudo_edge_attention", "--stain", *more)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(command(killed))
    while not (killed / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not (killed / "model.pt").exists()
    with pytest.raises(Refusal, match="not finished"):
        load_segmenter(killed)
    assert segmenter.main(command(killed)) == 0
    assert "120 steps, going on from step" in capsys.readouterr().out
    assert segmenter.main(command(whole, "--workers", "1")) == 0
    ours, theirs = (torch.load(folder / "model.pt", weights_only=True) for folder in (killed, whole))
    assert set(ours) == {"segmenter", "loss_prediction"}
    for part in ours:
        for name, value in ours[part].items():
            torch.testing.assert_close(value, theirs[part][name], rtol=0, atol=0, msg=f"{part}.{name} differs")
    assert segmenter.main(command(killed)) == 0
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(Refusal, match="another setting"):
        segmenter.main(command(killed, "--crf"))
    recorded = segmenter._parser().parse_args(read_segmenter_run(killed).command.split()[3:])
    assert (recorded.edges, recorded.stain, recorded.crf, recorded.epochs) == ("pseudo_edge_attention", True, False, 12)


def test_stain_jitter_changes_the_stains_of_each_image_alone() -> None:
    spec = InputSpec.model_validate(drawings.SPEC)
    image = (torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2 - 0.5) / 0.25
    pair = stain_jitter(image.expand(2, 3, 6, 6), spec, torch.Generator().manual_seed(0))
    assert not torch.allclose(pair[0], pair[1], atol=0.05)
    assert not torch.allclose(pair[0], image[0], atol=0.05)
    again = stain_jitter(image.expand(2, 3, 6, 6), spec, torch.Generator().manual_seed(0))
    assert torch.equal(pair, again)
    density = -torch.log(pair * 0.25 + 0.5)[0].flatten(1)
    original = -torch.log(image * 0.25 + 0.5)[0].flatten(1)
    inside = (density > 1e-3).all(dim=0) & (density < 6).all(dim=0)
    design = torch.cat([original, torch.ones(1, 36)])[:, inside].T
    solution = torch.linalg.lstsq(design, density[:, inside].T).solution
    torch.testing.assert_close(design @ solution, density[:, inside].T, rtol=1e-3, atol=1e-3)  # linear in absorbed light


def test_stain_jitter_is_as_strong_as_published_in_natural_logarithms() -> None:
    spec = InputSpec.model_validate(drawings.SPEC)
    colours = torch.tensor([[0.5, 0.3, 0.45], [0.35, 0.25, 0.3]])  # of two pixels; none is changed to more than 1
    image = ((colours.T.reshape(1, 3, 1, 2) - spec.mean) / spec.std).expand(2000, 3, 1, 2)
    changed = (stain_jitter(image, spec, torch.Generator().manual_seed(0)) * spec.std + spec.mean).numpy()[:, :, 0]

    def stains(rgb: np.ndarray) -> np.ndarray:
        return np.linalg.solve(rgb_from_hed.T, -np.log(rgb))  # (..., stain, pixel)

    before, after = stains(colours.T.numpy().astype(np.float64)), stains(changed.astype(np.float64))
    factor = (after[..., 1] - after[..., 0]) / (before[:, 1] - before[:, 0])
    offset = after[..., 0] - factor * before[:, 0]
    for got, middle in ((factor, 1.0), (offset, 0.0)):
        assert np.abs(got - middle).max() <= 0.2 + 1e-3
        assert (np.abs(got - middle).max(axis=0) > 0.19).all()
    # The control: scikit-image's unit is another, so 0.2 of it would be 2.8 here
    skimage = rgb2hed(colours.numpy().astype(np.float64)[None])[0].T
    np.testing.assert_allclose(np.maximum(before, 0), skimage * np.log(1e6), rtol=1e-6, atol=1e-9)
