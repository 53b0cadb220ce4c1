"""Objects, doubts and regions of a segmenter's package, on drawn nuclei whose pixels are known."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from models import uncertainty
from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from models.objects import Segmentation, TileDoubt
from models.predictor import Predictor
from models.segmenter import Box, SegmenterPredictor, doubtful_regions
from models.triage import judge

Make = Callable[..., Path]


def draw(rows: int, columns: int, discs: list[tuple[float, float, float]], dark: int = 40) -> np.ndarray:
    """Draw dark discs (x, y, radius), corner origin, on a bright ground: uint8 (rows, columns, 3), pink."""
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    picture = np.empty((rows, columns, 3), np.uint8)
    picture[:] = (240, 200, 220)
    for left, top, radius in discs:
        picture[(x - left) ** 2 + (y - top) ** 2 <= radius**2] = (dark, dark, dark + 60)
    return picture


def image(picture: np.ndarray) -> Image:
    stream = BytesIO()
    PIL.Image.fromarray(picture).save(stream, "PNG")
    return read_image(stream.getvalue())


@pytest.fixture(scope="module")
def predictor(make_segmenter: Make) -> SegmenterPredictor:
    return SegmenterPredictor.load(make_segmenter())


def code(call: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.code


def test_objects_are_the_drawn_discs(predictor: SegmenterPredictor) -> None:
    discs = [(30.5, 25.5, 9.0), (100.0, 60.0, 7.0), (140.5, 12.0, 8.0), (64.0, 64.0, 10.0)]  # the last across four tiles
    segmentation, foreground = predictor.predict(image(draw(130, 170, discs)))
    assert foreground.shape == segmentation.label_image.shape == (130, 170)
    assert foreground.dtype == np.float32
    assert segmentation.label_image.dtype == np.int32
    assert len(segmentation.objects) == 4
    for label, found in enumerate(segmentation.objects, start=1):
        rows, columns = np.nonzero(segmentation.label_image == label)
        centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        left, top, radius = min(discs, key=lambda disc: np.hypot(*(centre - disc[:2])))
        assert np.hypot(*(centre - (left, top))) < 0.3
        y, x = np.mgrid[0:130, 0:170] + 0.5
        assert found.area == np.count_nonzero((x - left) ** 2 + (y - top) ** 2 <= radius**2) == len(rows)
        assert 0.99 < found.score <= 1
        assert abs(found.polygon.mean(axis=0) - (left, top)).max() < 1


DISCS = [(30.0, 25.0, 9.0), (52.0, 30.0, 8.0), (100.0, 60.0, 7.0), (140.0, 12.0, 8.0), (64.0, 96.0, 10.0), (166.0, 100.0, 9.0)]


def same(first: Segmentation, second: Segmentation) -> bool:
    """Whether two segmentations agree in every value."""
    return (
        np.array_equal(first.label_image, second.label_image)
        and np.array_equal(first.features, second.features)
        and [(item.polygon.tolist(), item.area, item.score) for item in first.objects]
        == [(item.polygon.tolist(), item.area, item.score) for item in second.objects]
        and replace(first, label_image=None, objects=(), features=None)  # type: ignore[arg-type]
        == replace(second, label_image=None, objects=(), features=None)  # type: ignore[arg-type]
    )


def test_doubts_are_those_of_the_tiles(predictor: SegmenterPredictor) -> None:
    picture = draw(64, 150, DISCS[:4]) // 2 + 50  # mean values from 0 to 1, as the card's quantiles of the distance
    segmentation, _ = predictor.predict(image(picture))
    # The graph's score is the tile's variance, its distance the size of the tile's mean; the margin (16) is reflected
    wide = np.pad((picture / 255 - 0.5) / 0.25, ((16, 60), (16, 16), (0, 0)), mode="reflect")
    calibration = predictor.card.calibration
    assert [(tile.x, tile.y) for tile in segmentation.tiles] == [(x, y) for y in (0, 16) for x in (0, 16, 48, 96)]
    scores, distances = [], []
    for tile in segmentation.tiles:
        left, top = (tile.x or -16) + 16, (tile.y or -16) + 16
        part = wide[top : top + 64, left : left + 64]
        scores.append(part.var())
        distances.append(abs(part.mean()))
        assert tile.predicted_loss == pytest.approx(uncertainty.predicted_loss(scores[-1:], calibration)[0], abs=1e-5)
        assert tile.loss_percentile == pytest.approx(uncertainty.percentile(scores[-1:], calibration.loss_quantiles)[0], abs=1e-3)
        assert tile.domain_distance == pytest.approx(distances[-1], abs=1e-5)
        assert tile.domain_percentile == pytest.approx(100 * distances[-1], abs=1e-2)
    assert segmentation.tiles[0].width == 48
    assert segmentation.tiles[-1].x + segmentation.tiles[-1].width == 150
    assert len({round(score, 6) for score in scores}) > 3  # the tiles differ, so that their order is tested
    assert segmentation.loss_score == pytest.approx(np.mean(scores), abs=1e-5)
    assert segmentation.domain_distance == pytest.approx(np.mean(distances), abs=1e-5)
    assert segmentation.predicted_loss == pytest.approx(np.mean([tile.predicted_loss for tile in segmentation.tiles]))
    # Eight tiles: three of them are more than a third
    assert segmentation.loss_percentile == pytest.approx(100 * sorted(scores)[-3] / 4, abs=1e-3)
    assert segmentation.domain_percentile == pytest.approx(100 * sorted(distances)[-3], abs=1e-2)
    assert segmentation.features.shape == (2,)
    assert segmentation.features.dtype == np.float32
    assert segmentation.features[1] == pytest.approx(np.mean(scores), abs=1e-5)


def test_a_picture_of_which_a_half_is_in_doubt_is_for_review(predictor: SegmenterPredictor) -> None:
    """The graph's score is a tile's variance, and the mean over the tiles lies in the middle of the card's quantiles."""
    plain, doubtful = np.full((64, 300, 3), 128, np.uint8), np.zeros((64, 300, 3), np.uint8)
    doubtful[:, ::2] = 255  # variance 4, the largest of the card's quantiles
    picture = np.concatenate([plain, doubtful], axis=1)
    segmentation, _ = predictor.predict(image(picture))
    assert 1.5 < segmentation.loss_score < 2.5
    assert segmentation.loss_percentile >= 95
    assert "predicted_loss_high" in judge(segmentation, predictor.card.triage).reasons
    calm, _ = predictor.predict(image(np.concatenate([plain, plain, plain, doubtful[:, :100]], axis=1)))
    assert calm.loss_percentile < 95  # a tenth of it is not enough
    assert "predicted_loss_high" not in judge(calm, predictor.card.triage).reasons


def test_entropy_is_that_of_the_pixels(predictor: SegmenterPredictor) -> None:
    grey = image(np.random.default_rng(0).integers(120, 135, (70, 80, 3), np.uint8))
    segmentation, foreground = predictor.predict(grey)
    p = foreground.astype(np.float64)
    assert segmentation.entropy == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(), rel=1e-4)
    assert 0.3 < segmentation.entropy < np.log(2)
    sure, _ = predictor.predict(image(draw(70, 80, [])))
    assert 0 <= sure.entropy < 1e-3


def test_a_region_is_predicted_as_if_it_were_the_image(predictor: SegmenterPredictor) -> None:
    picture = draw(130, 180, DISCS)
    part, foreground = predictor.predict(image(picture), (20, 10, 90, 70))
    alone, expected = predictor.predict(image(picture[10:80, 20:110]))
    np.testing.assert_array_equal(foreground, expected)
    np.testing.assert_array_equal(part.label_image, alone.label_image)
    assert (part.origin, alone.origin) == ((20, 10), (0, 0))
    assert len(part.objects) == 3
    for shifted, item in zip(part.objects, alone.objects, strict=True):
        np.testing.assert_array_equal(shifted.polygon, item.polygon + np.array([20, 10]))
    assert [(tile.x - 20, tile.y - 10) for tile in part.tiles] == [(tile.x, tile.y) for tile in alone.tiles]
    everything, _ = predictor.predict(image(picture), (0, 0, 180, 130))
    assert same(everything, predictor.predict(image(picture))[0])
    assert not same(everything, part)


@pytest.mark.parametrize(
    "region",
    [(-1, 0, 50, 50), (0, -1, 50, 50), (131, 0, 50, 50), (0, 81, 50, 50), (0, 0, 0, 50), (0, 0, 50, -3), (0, 0, 181, 130)],
)
def test_regions_outside_are_refused(predictor: SegmenterPredictor, region: Box) -> None:
    assert code(lambda: predictor.predict(image(draw(130, 180, [])), region)) == "bad_request"


def test_limits_of_size(make_segmenter: Make) -> None:
    predictor = SegmenterPredictor.load(make_segmenter(max_pixels=10_000))
    assert code(lambda: predictor.predict(image(draw(101, 100, [])))) == "image_too_large"
    assert predictor.predict(image(draw(100, 100, [])))[1].shape == (100, 100)
    large = image(draw(300, 300, []))
    assert predictor.predict(large, (200, 200, 100, 100))[1].shape == (100, 100)
    assert code(lambda: predictor.predict(large, (0, 0, 101, 100))) == "image_too_large"
    assert code(lambda: predictor.predict(large, (0, 0, 15, 100))) == "too_small"
    assert code(lambda: predictor.predict(image(draw(15, 40, [])))) == "too_small"
    assert predictor.predict(image(draw(16, 40, [])))[1].shape == (16, 40)  # smaller than a tile


def test_a_strip_costs_whole_tiles(make_segmenter: Make) -> None:
    """Of 16 rows, the card's least, every tile is run whole: so many pixels are counted."""
    predictor = SegmenterPredictor.load(make_segmenter(max_pixels=20_000))
    side = predictor.card.input.height
    assert predictor.predict(image(draw(16, 20_000 // side, [])))[0].tiles
    assert code(lambda: predictor.predict(image(draw(16, 20_000 // side + 1, [])))) == "image_too_large"
    assert code(lambda: predictor.predict(image(draw(20_000 // side + 1, 16, [])))) == "image_too_large"


@pytest.mark.parametrize("output", ["foreground_logits", "features", "loss_score", "domain_distance"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(make_segmenter: Make, output: str, value: float) -> None:
    predictor = SegmenterPredictor.load(make_segmenter(poison={output: value}))
    assert code(lambda: predictor.predict(image(draw(70, 70, DISCS[:1])))) == "model_output_invalid"


def test_packages_of_the_other_kind_are_refused(make_segmenter: Make, make_package: Make) -> None:
    assert code(lambda: SegmenterPredictor.load(make_package())) == "package_invalid"
    assert code(lambda: Predictor.load(make_segmenter())) == "package_invalid"


def test_a_classifier_under_a_segmenter_card_is_refused(tmp_path: Path) -> None:
    from models.card import card_bytes
    from tests.conftest import tiny_graph
    from tests.segmenters import segmenter_card

    (tmp_path / "model.onnx").write_bytes(tiny_graph())
    (tmp_path / "card.json").write_bytes(card_bytes(segmenter_card(tiny_graph())))
    with pytest.raises(Refusal, match="foreground_logits") as caught:
        SegmenterPredictor.load(tmp_path)
    assert caught.value.code == "package_invalid"


def test_calls_side_by_side_agree(predictor: SegmenterPredictor) -> None:
    picture = image(draw(130, 180, DISCS))
    expected, _ = predictor.predict(picture)
    with ThreadPoolExecutor(4) as pool:
        for found, _ in pool.map(lambda _: predictor.predict(picture), range(12)):
            assert same(found, expected)


def test_intensities_are_stretched_over_the_image_and_not_over_tiles(predictor: SegmenterPredictor) -> None:
    spec = predictor.card.input.model_copy(update={"intensity": "percentile", "low": 0.0, "high": 100.0})
    stretching = SegmenterPredictor(predictor.card.model_copy(update={"input": spec}), predictor.graph, predictor.sha256)
    rng = np.random.default_rng(0)
    picture = rng.integers(230, 250, (64, 200, 3), np.uint8)  # noise on a bright ground: stretched alone, half of it is dark
    picture[20:40, 20:40] = 20
    segmentation, foreground = stretching.predict(image(picture))
    assert len(segmentation.objects) == 1
    assert foreground[:, 100:].max() < 0.01
    assert stretching.predict(image(picture), (100, 0, 100, 64))[1].max() > 0.99  # the control: a region without the dark part


def encoded(picture: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    PIL.Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def test_grey_sixteen_bit_and_transparent_pictures(predictor: SegmenterPredictor) -> None:
    grey = draw(100, 100, DISCS[:2]).mean(axis=2).astype(np.uint8)
    expected, _ = predictor.predict(read_image(encoded(np.stack([grey] * 3, axis=2), "PNG")))
    assert len(expected.objects) == 2
    for data in (encoded(grey, "PNG"), encoded(grey.astype(np.uint16) * 257, "PNG")):
        np.testing.assert_array_equal(predictor.predict(read_image(data))[0].label_image, expected.label_image)
    layer = np.dstack([draw(100, 100, DISCS[:2]), np.full((100, 100), 255, np.uint8)])
    layer[60:80, 60:80, 3] = 0  # transparent parts are laid on black, as for X-rays, and so look dark
    assert len(predictor.predict(read_image(encoded(layer, "PNG")))[0].objects) == 3


def test_dicom_goes_through_its_rendering(predictor: SegmenterPredictor) -> None:
    from tests.models.dicom_files import dicom

    grey = draw(100, 100, DISCS[:2]).mean(axis=2).astype(np.uint16)
    expected, _ = predictor.predict(read_image(encoded(grey.astype(np.uint8), "PNG")))
    stored = 4000 - 4 * grey  # inverted, in the middle of 12 bits: only the window and MONOCHROME1 make it a picture
    window = {"WindowCenter": 3490.5, "WindowWidth": 1021, "RescaleSlope": 1, "RescaleIntercept": 0}
    shown, _ = predictor.predict(read_image(dicom(stored, 12, "MONOCHROME1", **window)))
    np.testing.assert_array_equal(shown.label_image, expected.label_image)
    plain, _ = predictor.predict(read_image(dicom(stored, 12, "MONOCHROME2", **window)))
    assert not np.array_equal(plain.label_image, expected.label_image)


def test_a_reduced_image_is_a_programming_error(predictor: SegmenterPredictor) -> None:
    picture = encoded(draw(512, 512, []), "JPEG")
    with pytest.raises(ValueError, match="reduced"):
        predictor.predict(read_image(picture, target=(64, 64)))


def tiled(rows: int, columns: int, doubts: dict[tuple[int, int], float], origin: tuple[int, int] = (0, 0)) -> Segmentation:
    """Make a segmentation with 100 pixel tiles at (x, y), with these predicted losses."""
    tiles = tuple(TileDoubt(x, y, 100, 100, loss, 100 * loss, 0.5, 50.0) for (x, y), loss in doubts.items())
    labels = np.zeros((rows, columns), np.int32)
    return Segmentation((), labels, tiles, *[0.0] * 6, features=np.zeros(1, np.float32), origin=origin)


def test_doubtful_regions_come_most_doubtful_first() -> None:
    doubts = {(0, 0): 0.1, (100, 0): 0.5, (200, 0): 0.3, (150, 0): 0.45, (300, 0): 0.2}
    chosen = doubtful_regions(tiled(100, 400, doubts), 3, 60)
    assert [(item.x, item.y, item.width, item.height) for item in chosen] == [
        (120, 20, 60, 60),
        (220, 20, 60, 60),
        (320, 20, 60, 60),
    ]
    assert [item.predicted_loss for item in chosen] == [0.5, 0.3, 0.2]  # the one at 150 overlaps both
    assert [item.loss_percentile for item in chosen] == [50, 30, 20]
    assert doubtful_regions(tiled(100, 400, doubts), 1, 60) == chosen[:1]
    assert len(doubtful_regions(tiled(100, 400, doubts), 99, 60)) == 4
    assert doubtful_regions(tiled(100, 400, doubts), 0, 60) == ()


def test_doubtful_regions_stay_inside() -> None:
    doubts = {(1000, 500): 0.9, (1100, 620): 0.8}
    chosen = doubtful_regions(tiled(220, 200, doubts, origin=(1000, 500)), 5, 150)
    assert [(item.x, item.y, item.width, item.height) for item in chosen] == [(1000, 500, 150, 150)]
    small = doubtful_regions(tiled(80, 90, {(0, 0): 0.9}), 5, 200)
    assert [(item.x, item.y, item.width, item.height) for item in small] == [(0, 0, 90, 80)]


def test_doubtful_regions_of_a_predicted_image(predictor: SegmenterPredictor) -> None:
    picture = draw(300, 400, [])
    picture[200:260, 300:360] = draw(60, 60, [(20.0, 20.0, 9.0), (42.0, 40.0, 8.0)])
    segmentation, _ = predictor.predict(image(picture))
    first, *others = doubtful_regions(segmentation, 4, 60)
    assert 240 <= first.x <= 360  # where there is anything at all, the variance is greatest
    assert 140 <= first.y <= 260
    assert len(others) == 3
    for index, one in enumerate((first, *others)):
        for other in others[index:]:
            assert abs(one.x - other.x) >= 60 or abs(one.y - other.y) >= 60


def test_one_channel_takes_the_luma(predictor: SegmenterPredictor) -> None:
    spec = predictor.card.input.model_copy(update={"channels": 1})
    grey = SegmenterPredictor(predictor.card.model_copy(update={"input": spec}), predictor.graph, predictor.sha256)
    picture = draw(100, 120, DISCS[:3])
    luma = np.rint(picture @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    found, _ = grey.predict(image(picture))
    assert len(found.objects) == 3
    np.testing.assert_array_equal(found.label_image, predictor.predict(image(luma))[0].label_image)
