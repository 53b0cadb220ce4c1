"""A model that finds objects, over HTTP: requests that are refused, images that are converted."""

from __future__ import annotations

import zlib
from typing import Any

import PIL.Image
import pytest

from models import pictures
from models.errors import Refusal
from models.segmenter import SegmenterPredictor
from tests.service.discs import DISC_PNG, GEO, SIDE, ask, check, draw_discs, png_of, refusal, send, square


@pytest.mark.parametrize(
    ("region", "code"),
    [
        ("0,0,0,10", "bad_request"),
        ("0,0,10", "bad_request"),
        ("0,0,10,10,10", "bad_request"),
        ("-1,0,50,50", "bad_request"),
        ("0.5,0,50,50", "bad_request"),
        ("a,b,c,d", "bad_request"),
        ("", "bad_request"),
        ("\u0661,0,50,50", "bad_request"),
        ("9999999999,0,50,50", "bad_request"),
        (f"1,0,{SIDE},{SIDE}", "bad_request"),
        (f"0,{SIDE},50,50", "bad_request"),
        ("0,0,15,50", "too_small"),
    ],
)
def test_bad_regions(caller: Any, region: str, code: str) -> None:
    assert refusal(ask(caller, query=f"&region={region}"))[1] == code


BOW_TIE = {"type": "Polygon", "coordinates": [[[10, 10], [60, 60], [60, 10], [10, 60], [10, 10]]]}


@pytest.mark.parametrize(
    "regions",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"x,y\n1,2\n", id="csv"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"\xff\xfe", id="no-text"),
        pytest.param(b"null", id="null"),
        pytest.param({}, id="nothing"),
        pytest.param({"type": "FeatureCollection", "features": []}, id="no-polygon"),
        pytest.param(BOW_TIE, id="crosses-itself"),
        pytest.param({"type": "Polygon", "coordinates": [[[10, 10], [20, 20], [10, 10]]]}, id="two-corners"),
        pytest.param({"type": "Polygon", "coordinates": [[[1, 1], [2, 2], [3, 3], [1, 1]]]}, id="no-area"),
        pytest.param(square(SIDE + 10, 10, 50), id="outside"),
        pytest.param(square(SIDE - 10, 10, 50), id="half-outside"),
        pytest.param(square(-1, 10, 50), id="negative"),
        pytest.param({"type": "Point", "coordinates": [3, 3]}, id="a-point"),
        pytest.param(b'{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 1], [2, 2], [NaN, 1]]]}', id="nan"),
        pytest.param(b'{"type": "Polygon", "coordinates": [[[1e999, 1], [2, 1], [2, 2], [1e999, 1]]]}', id="infinite"),
    ],
)
def test_bad_polygons(caller: Any, regions: Any) -> None:
    response = send(caller, regions)
    assert refusal(response) == (400, "bad_request")
    assert "x,y" not in response.json()["detail"]


def test_a_polygon_beyond_the_region_is_refused(caller: Any) -> None:
    assert check(send(caller, square(10, 20, 40), "&region=0,0,100,100"))["regions"][0]["quantities"]["count"] == 1
    assert refusal(send(caller, square(10, 20, 40), "&region=20,0,100,100")) == (400, "bad_request")


def test_what_a_model_of_the_kind_does_not_have(caller: Any, draw: Any) -> None:
    assert refusal(ask(caller, query="&heatmap=true")) == (400, "bad_request")
    assert check(ask(caller, query="&heatmap=false"))["objects"]
    for query in ("label_image=true", "overlay=true", "region=0,0,64,64"):
        assert refusal(caller.predict(draw(1), query=f"?{query}")) == (400, "bad_request")
    for query in ("label_image=1", "overlay=", "region=0,0,64,64&region=0,0,64,64", "polygon=1"):
        assert refusal(ask(caller, query=f"&{query}")) == (400, "bad_request")
    files = {"image": ("x", draw(1), "image/png"), "regions": ("x", b"{}", "application/json")}
    assert refusal(caller.request("POST", "/v1/predict", files=files)) == (400, "bad_request")
    assert refusal(caller.predict(draw(1), **GEO)) == (406, "not_acceptable")
    assert refusal(ask(caller, accept="text/csv")) == (406, "not_acceptable")
    for query in ("&label_image=true", "&overlay=true"):
        assert refusal(ask(caller, query=query, **GEO)) == (400, "bad_request")
    classified = caller.predict(draw(1)).json()
    stored = caller.get(f"/v1/results/{classified['result_id']}", headers=GEO)
    assert (stored.status_code, stored.json()["code"]) == (406, "not_acceptable")


def header_of(width: int, height: int) -> bytes:
    """Return a PNG whose header says it is large, with hardly any data."""
    body = bytearray(png_of(PIL.Image.new("RGB", (1, 1))))
    body[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    body[29:33] = zlib.crc32(bytes(body[12:29])).to_bytes(4, "big")
    return bytes(body)


def test_large_images(caller: Any, make_site: Any, connect: Any, make_segmenter: Any) -> None:
    for query in ("", "&region=0,0,100,100"):
        assert refusal(ask(caller, header_of(50_000, 50_000), query)) == (413, "image_too_large")
    small = connect(make_site(models=(make_segmenter("nuclei", max_pixels=10_000),)))
    assert refusal(ask(small)) == (413, "image_too_large")
    assert check(ask(small, query="&region=50,20,100,100"))["quantities"]["count"] == 2


def test_conversions(caller: Any) -> None:
    """docs/http.md says what becomes of pictures that are not plain colour."""
    colour = check(ask(caller))
    for mode in ("L", "P", "RGBA"):
        answer = check(ask(caller, png_of(draw_discs(mode=mode))))
        assert answer["quantities"]["count"] == colour["quantities"]["count"], mode
    # What is transparent is black: here everything left of the middle, which hides one disc and becomes an object
    veiled = draw_discs(mode="RGBA")
    veiled.paste((0, 0, 0, 0), (0, 0, 50, SIDE))
    black = draw_discs()
    black.paste((0, 0, 0), (0, 0, 50, SIDE))
    kept = ("objects", "quantities", "predicted_loss")
    transparent, opaque = check(ask(caller, png_of(veiled))), check(ask(caller, png_of(black)))
    assert [transparent[name] for name in kept] == [opaque[name] for name in kept]
    assert transparent["objects"] != colour["objects"]


def test_nothing_that_is_no_number_is_answered(make_site: Any, connect: Any, make_segmenter: Any) -> None:
    for output in ("foreground_logits", "loss_score", "domain_distance", "features"):
        caller = connect(make_site(models=(make_segmenter(f"nuclei-{output[:4]}", poison={output: float("nan")}),)))
        assert refusal(caller.predict(DISC_PNG)) == (500, "model_output_invalid")


def test_what_is_refused_beside_a_result_does_not_cost_the_result(caller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(_: Any) -> bytes:
        raise Refusal("bad_request", "A label image cannot number all objects.")

    runs = []
    monkeypatch.setattr(pictures, "label_png", too_many)
    predict = SegmenterPredictor.predict
    monkeypatch.setattr(SegmenterPredictor, "predict", lambda self, *given: runs.append(1) or predict(self, *given))
    assert refusal(ask(caller, query="&label_image=true"))[1] == "bad_request"
    assert ask(caller).json()["objects"]
    assert runs == [1]  # the second answer came from the store
