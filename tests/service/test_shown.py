"""The image beside an answer: the pixels that were sent, as they are to be shown."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import pytest

from models.example import chest_phantom, draw_chest, tissue_phantom
from models.imaging import read_image
from service.shown import PICTURE_SIDE, shown_picture


def pixels_of(picture: dict[str, Any]) -> Any:
    with PIL.Image.open(BytesIO(base64.b64decode(picture["data"]))) as image:
        assert image.info == {}, "a PNG without any text or time"
        return np.asarray(image).copy()


def test_a_radiograph_keeps_its_depth(client: Any) -> None:
    answer = client.predict(chest_phantom(), "application/dicom", "?picture=true").json()
    picture = answer["picture"]
    shown = pixels_of(picture)
    # The phantom's window, 2048 and 4096, leaves its 12 bits as they are (PS3.3, C.11.2.1.2: 0 to 4095 is the whole range)
    expected = np.rint(draw_chest() * (65535 / 4095))
    assert shown.dtype == np.uint16
    assert np.abs(shown.astype(float) - expected).max() <= 1
    assert (picture["rows"], picture["columns"], picture["window"]) == (1024, 1024, [0, 4095])
    assert picture["pixel_spacing_mm"] == [0.35, 0.35]


def test_a_picture_changes_nothing_else(client: Any, draw: Any) -> None:
    plain = client.predict(draw(1)).json()
    assert plain["picture"] is None
    assert client.predict(draw(1), query="?picture=true").json() | {"picture": None} == plain
    first = client.predict(draw(2), query="?picture=true&heatmap=true").json()
    assert client.predict(draw(2)).json() == first | {"picture": None, "heatmap": None}


def test_grey_and_colour_pictures_are_as_they_were_sent(caller: Any, draw: Any) -> None:
    sent = np.asarray(PIL.Image.open(BytesIO(draw(1))))
    assert (pixels_of(caller.predict(draw(1), query="?picture=true").json()["picture"]) == sent).all()
    tissue = np.asarray(PIL.Image.open(BytesIO(tissue_phantom())))
    answer = caller.predict(tissue_phantom(), query="?model=nuclei&picture=true&region=0,0,128,128").json()
    assert (pixels_of(answer["picture"]) == tissue).all(), "the whole image, also where a part was predicted"


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_large_one_is_made_smaller(depth: type) -> None:
    rows, columns = 60, 2 * PICTURE_SIDE
    values = (np.arange(columns) // 64 * 500 % np.iinfo(depth).max).astype(depth)
    stream = BytesIO()
    PIL.Image.fromarray(np.tile(values, (rows, 1))).save(stream, "PNG")
    picture = shown_picture(read_image(stream.getvalue()), stream.getvalue()).model_dump()
    shown = pixels_of(picture)
    assert shown.shape == (rows // 2, PICTURE_SIDE)
    assert shown.dtype == depth
    assert (shown == values[::2]).all(), "blocks of equal pixels keep their value"
    assert (picture["rows"], picture["columns"]) == (rows, columns)


def test_what_the_model_took_smaller_is_shown_whole() -> None:
    rng = np.random.default_rng(3)
    stream = BytesIO()
    smooth = PIL.Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).resize((1600, 1600))
    smooth.save(stream, "JPEG", quality=95)
    reduced = read_image(stream.getvalue(), target=(224, 224))
    assert reduced.pixels.shape != (1600, 1600), "otherwise this test shows nothing"
    shown = pixels_of(shown_picture(reduced, stream.getvalue()).model_dump())
    assert (shown == np.asarray(PIL.Image.open(BytesIO(stream.getvalue())))).all()


def test_geojson_has_no_room_for_it(caller: Any) -> None:
    refused = caller.predict(tissue_phantom(), query="?model=nuclei&picture=true", accept="application/geo+json")
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


def test_limits_in_force_are_told(make_site: Any, connect: Any) -> None:
    (model,) = connect(make_site(review_loss_percentile=42.0)).get("/v1/models").json()["models"]
    assert model["limits"]["review_loss_percentile"] == 42
    assert model["limits"]["review_domain_percentile"] == model["card"]["triage"]["review_domain_percentile"]
