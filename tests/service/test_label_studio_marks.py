"""Marks in Label Studio: percent there, pixels here."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from models.annotation import annotation_of
from tests.service.discs import DISC_PNG, SIDE
from tests.service.label_desk import COUNT, Desk, code
from tests.service.scans import ask
from tests.service.studio import event, part, predict, task, tell


@pytest.fixture
def nuclei(open_desk: Callable[..., Desk], segmenter: Path) -> Desk:
    return open_desk(models=(segmenter,))


def test_outlines_come_in_percent(nuclei: Desk) -> None:
    item = nuclei.item(body=DISC_PNG)
    objects = nuclei.ask("anna", "GET", f"/v1/results/{item['result_id']}").json()["objects"]
    (found,) = predict(nuclei, task(item)).json()["results"]
    assert len(found["result"]) == len(objects) > 3
    for shown, each in zip(found["result"], objects, strict=True):
        assert (shown["original_width"], shown["original_height"], shown["type"]) == (SIDE, SIDE, "polygonlabels")
        assert np.allclose(np.array(shown["value"]["points"]) * SIDE / 100, each["polygon"])
    # What we said comes back as what we said
    assert tell(nuclei, event(item, *found["result"])).status_code == 201
    features = nuclei.listed("otto", item)[0]["document"]["features"]
    assert np.allclose(features[0]["geometry"]["coordinates"][0][:-1], objects[0]["polygon"])


def test_points_polygons_and_the_region_become_pixels(nuclei: Desk) -> None:
    item = nuclei.item(body=DISC_PNG)
    parts = [
        part("keypointlabels", x=15.625, y=20.8333333333, width=0.3, keypointlabels=["nucleus"]),
        part("keypointlabels", x=100, y=100.004, width=0.3, keypointlabels=["nucleus"]),  # on the edge, and a rounding beyond
        part("polygonlabels", points=[[50, 25], [75, 25], [75, 50], [50, 50]], closed=True, polygonlabels=["nucleus"]),
        part("rectanglelabels", x=0, y=0, width=100, height=100, rotation=0, rectanglelabels=["Region"]),
    ]
    assert tell(nuclei, event(item, *parts)).status_code == 201
    found = annotation_of(nuclei.listed("otto", item)[0]["document"], SIDE, SIDE)
    assert np.allclose(found.points, [[30, 40], [SIDE, SIDE]], atol=1e-6)
    assert np.floor(found.points[1]).tolist() == [SIDE - 1, SIDE - 1]  # within the last pixel
    assert np.allclose(found.polygons[0], [[96, 48], [144, 48], [144, 96], [96, 96]])
    assert found.region is not None
    assert np.allclose(found.region, [[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]])


def test_height_and_width_are_not_mixed_up(nuclei: Desk) -> None:
    with PIL.Image.open(io.BytesIO(DISC_PNG)) as picture:
        stream = io.BytesIO()
        picture.crop((0, 0, 192, 96)).save(stream, "PNG")
    item = nuclei.item(body=stream.getvalue())
    point = part("keypointlabels", x=50, y=50, keypointlabels=["nucleus"]) | {"original_height": 96}
    assert tell(nuclei, event(item, point)).status_code == 201
    assert nuclei.listed("otto", item)[0]["document"]["features"][0]["geometry"]["coordinates"] == [[96, 48]]


@pytest.mark.parametrize(
    "bad",
    [
        part("brushlabels", rle=[1, 2], format="rle", brushlabels=["nucleus"]),
        part("ellipselabels", x=1, y=1, radiusX=1, radiusY=1),
        part("rectanglelabels", x=0, y=0, width=10, height=10, rotation=45, rectanglelabels=["Region"]),
        part("keypointlabels", x=120, y=10, keypointlabels=["nucleus"]),
        part("keypointlabels", y=10, keypointlabels=["nucleus"]),
        part("keypointlabels", x=10, y=10, keypointlabels=["Background"]),
        part("polygonlabels", points=[[1, 1], [2, 2]], polygonlabels=["nucleus"]),
        part("keypointlabels", x=10, y=10) | {"original_width": 10},
        part("keypointlabels", x=10, y=10) | {"image_rotation": 90},
        None,
    ],
)
def test_what_is_not_read_is_refused_and_not_half_kept(nuclei: Desk, bad: dict[str, Any] | None) -> None:
    item = nuclei.item(body=DISC_PNG)
    good = part("keypointlabels", x=10, y=10, keypointlabels=["nucleus"])
    answer = tell(nuclei, event(item, good, bad) if bad else event(item))
    assert (answer.status_code, code(answer)) == (422, "label_invalid")
    assert ask(nuclei.site, COUNT) == [(0,)]
