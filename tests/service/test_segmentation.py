"""A model that finds objects, over HTTP: what is answered, stored, and given again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import shapely

from models.batch import load_model
from models.imaging import read_image
from models.segmenter import SegmenterPredictor
from service.segmentation import pack, record_of, restore, unpack
from service.store import result_row
from tests.service.discs import DISC_PNG, DISCS, GEO, SIDE, ask, check, decoded, draw_discs, png_of, send, square


def test_both_models_answer_side_by_side(caller: Any, draw: Any) -> None:
    listed = {entry["name"]: entry for entry in caller.get("/v1/models").json()["models"]}
    assert {name: (entry["card"]["task"], entry["default"]) for name, entry in listed.items()} == {
        "tiny": ("classification", True),
        "nuclei": ("segmentation", False),
    }
    assert check(caller.predict(draw(1)))["task"] == "classification"
    assert check(ask(caller))["task"] == "segmentation"


def test_an_answer(caller: Any) -> None:
    answer = check(ask(caller))
    assert answer["model"]["name"] == "nuclei"
    assert answer["object_label"] == "nucleus"
    assert answer["verdict"] in {"accept", "review"}
    assert answer["region"] is answer["regions"] is answer["label_image"] is answer["overlay"] is None
    found = [shapely.Polygon(item["polygon"]) for item in answer["objects"]]
    assert len(found) == answer["quantities"]["count"] == len(DISCS)
    for polygon, item in zip(found, answer["objects"], strict=True):
        assert polygon.is_valid
        assert polygon.area == item["area"]
        assert item["score"] > 0.5
    for x, y, _ in DISCS:
        # A pixel's centre lies half a pixel from its corner: Pillow draws around centres
        assert min(polygon.centroid.distance(shapely.Point(x + 0.5, y + 0.5)) for polygon in found) < 3
    assert answer["quantities"]["density_per_mm2"] is None
    assert answer["quantities"]["density_per_megapixel"] == pytest.approx(len(DISCS) / SIDE**2 * 1e6)
    losses = [tile["predicted_loss"] for tile in answer["tiles"]]
    assert len(losses) > 4
    assert answer["predicted_loss"] == pytest.approx(np.mean(losses))
    doubtful = answer["doubtful_regions"]
    assert doubtful
    assert doubtful[0]["predicted_loss"] == max(losses)
    assert [tile["predicted_loss"] for tile in doubtful] == sorted((tile["predicted_loss"] for tile in doubtful), reverse=True)


@pytest.mark.dialects
def test_a_repeat_is_the_same_bytes_and_the_network_rests(caller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(caller)
    pictures = ask(caller, query="&label_image=true&overlay=true")
    geo = ask(caller, **GEO)

    def fail(*_: Any) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(SegmenterPredictor, "predict", fail)
    assert ask(caller).content == first.content
    assert ask(caller, query="&label_image=true&overlay=true").content == pictures.content
    assert ask(caller, **GEO).content == geo.content
    assert send(caller, square(0, 0, 100)).status_code == 200
    result = caller.get(f"/v1/results/{first.json()['result_id']}")
    assert result.content == first.content
    assert caller.get(f"/v1/results/{first.json()['result_id']}", headers=GEO).content == geo.content
    assert pictures.json() | {"label_image": None, "overlay": None} == first.json()
    assert ask(caller, png_of(draw_discs(100))).status_code == 500  # the control: another image needs the network


def test_what_is_stored_is_what_was_made(segmenter: Path) -> None:
    predictor = load_model(segmenter)
    assert isinstance(predictor, SegmenterPredictor)
    image = read_image(DISC_PNG)
    for region in (None, (20, 30, 90, 80)):
        made, _ = predictor.predict(image, region)
        record = record_of(made, image, region)
        assert unpack(pack(record)) == record
        again = restore(result_row(image, made, predictor, [], record))
        np.testing.assert_array_equal(again.label_image, made.label_image)
        assert again.label_image.dtype == made.label_image.dtype
        assert again.label_image.max() > 0
        for mine, theirs in zip(again.objects, made.objects, strict=True):
            np.testing.assert_array_equal(mine.polygon, theirs.polygon)
            assert (mine.area, mine.score) == (theirs.area, theirs.score)
        np.testing.assert_array_equal(again.features, made.features)
        same = ("tiles", "origin", "predicted_loss", "loss_score", "loss_percentile", "domain_distance", "entropy")
        assert [getattr(again, name) for name in same] == [getattr(made, name) for name in same]


def test_geojson(caller: Any) -> None:
    plain = check(ask(caller))
    response = ask(caller, **GEO)
    collection = check(response, "application/geo+json")
    assert response.headers["vary"] == "Accept"
    assert (collection["result_id"], collection["verdict"]) == (plain["result_id"], plain["verdict"])
    rings = [feature["geometry"]["coordinates"][0] for feature in collection["features"]]
    assert [ring[:-1] for ring in rings] == [item["polygon"] for item in plain["objects"]]
    assert {feature["properties"]["classification"]["name"] for feature in collection["features"]} == {"nucleus"}
    # A header may come in several lines
    lines = [("content-type", "image/png"), ("accept", "text/html"), ("accept", "application/geo+json")]
    assert caller.request("POST", "/v1/predict?model=nuclei", content=DISC_PNG, headers=lines).json() == collection
    # A browser's or a tool's usual header means JSON
    assert check(ask(caller, accept="text/html,*/*;q=0.8")) == plain


def test_pictures(caller: Any) -> None:
    answer = check(ask(caller, query="&label_image=true&overlay=true"))
    labels, overlay = decoded(answer["label_image"]), decoded(answer["overlay"])
    assert labels.shape == (SIDE, SIDE)
    assert overlay.shape == (SIDE, SIDE, 3)
    for label, item in enumerate(answer["objects"], 1):
        assert np.count_nonzero(labels == label) == item["area"]
    assert labels.max() == len(answer["objects"])
    changed = (overlay != np.asarray(draw_discs())).any(axis=2)
    assert changed.any()
    assert not changed[labels == 0].any()


def test_a_region(caller: Any) -> None:
    whole = check(ask(caller))
    part = check(ask(caller, query="&region=90,40,60,60&label_image=true"))
    assert part["region"] == [90, 40, 60, 60]
    assert part["result_id"] != whole["result_id"]
    assert part["image_sha256"] == whole["image_sha256"]
    assert part["quantities"]["count"] == 2
    for item in part["objects"]:
        x, y = np.array(item["polygon"]).T
        assert x.min() >= 90
        assert x.max() <= 150
        assert y.min() >= 40
        assert y.max() <= 100
    assert decoded(part["label_image"]).shape == (60, 60)
    for tile in part["tiles"]:
        assert tile["x"] >= 90
        assert tile["x"] + tile["width"] <= 150
    assert ask(caller, query="&region=90,40,60,60&label_image=true").json() == part
    stored = caller.get(f"/v1/results/{part['result_id']}").json()
    assert stored == part | {"label_image": None}
    # Asked for in another way, the whole image is the same result
    assert check(ask(caller, query=f"&region=0,0,{SIDE},{SIDE}")) == whole


def test_quantities_of_regions(caller: Any) -> None:
    collection = {"type": "FeatureCollection", "features": [square(10, 20, 40, "left"), square(150, 10, 30, "empty")]}
    answer = check(send(caller, collection))
    left, empty = answer["regions"]
    assert (left["name"], left["quantities"]["count"]) == ("left", 1)
    assert left["quantities"]["density_per_megapixel"] == pytest.approx(1 / 1600 * 1e6)
    assert (empty["name"], empty["quantities"]["count"], empty["quantities"]["area_fraction"]) == ("empty", 0, 0)
    assert answer["quantities"]["count"] == len(DISCS)
    assert answer | {"regions": None} == check(ask(caller))
    assert check(send(caller, collection, media_type="application/json")) == answer


def test_under_refuse_no_object_is_called(make_site: Any, connect: Any, segmenter: Path) -> None:
    caller = connect(make_site(models=(segmenter,), refuse_domain_distance=1e-9))
    answer = check(caller.predict(DISC_PNG, query="?label_image=true&overlay=true"))
    assert answer["verdict"] == "refuse"
    assert answer["reasons"][0]["code"] == "out_of_domain"
    assert answer["objects"] == []
    assert answer["quantities"] is answer["label_image"] is answer["overlay"] is None
    assert answer["tiles"]
    assert answer["doubtful_regions"]
    assert check(caller.predict(DISC_PNG, **GEO), "application/geo+json")["features"] == []
    (region,) = check(send(caller, square(10, 20, 40)))["regions"]
    assert region == {"name": "tumour", "quantities": None}
    # What was found is stored all the same: other limits show it, without a new result.
    later = connect(make_site(models=(segmenter,)))
    shown = check(later.predict(DISC_PNG))
    assert shown["result_id"] == answer["result_id"]
    assert len(shown["objects"]) == len(DISCS)


def test_no_object_is_an_answer(caller: Any) -> None:
    answer = check(ask(caller, png_of(PIL.Image.new("RGB", (100, 80), (230, 200, 210))), "&label_image=true&overlay=true"))
    assert answer["objects"] == []
    assert answer["quantities"]["count"] == 0
    assert answer["quantities"]["area_px"]["median"] is None
    assert not decoded(answer["label_image"]).any()


def test_metrics_know_both(caller: Any, draw: Any) -> None:
    caller.predict(draw(1))
    ask(caller)
    ask(caller)
    text = caller.get("/metrics").text
    for name in ("tiny", "nuclei"):
        assert f'overread_inference_seconds_count{{model="{name}"}} 1.0' in text
        assert f'overread_verdicts_total{{model="{name}",' in text
    assert 'overread_repeated_results_total{model="nuclei"} 1.0' in text
