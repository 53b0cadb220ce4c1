"""A drawn image with discs, and how a segmenter is asked about it over HTTP."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import jsonschema_rs
import numpy as np
import PIL.Image
import pytest
from PIL import ImageDraw

from service.openapi import document

GEO = {"accept": "application/geo+json"}
DISCS = ((30, 40, 9), (100, 60, 12), (60, 130, 8), (150, 150, 10), (112, 62, 12))
"""Centre (x, y) and radius; two of them touch."""
SIDE = 192


def png_of(pixels: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)).save(stream, "PNG", **options)
    return stream.getvalue()


def draw_discs(side: int = SIDE, mode: str = "RGB") -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", (side, side), (235, 200, 215))
    pen = ImageDraw.Draw(picture)
    for x, y, radius in DISCS:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(80, 40, 110))
    return picture.convert(mode)


DISC_PNG = png_of(draw_discs())


def check(response: Any, media_type: str = "application/json") -> Any:
    """Check an answer against the OpenAPI document, and return it."""
    assert response.headers["content-type"].partition(";")[0] == media_type, response.text[:500]
    api = document()
    content = api["paths"]["/v1/predict"]["post"]["responses"][str(response.status_code)]["content"]
    answer = json.loads(response.text, parse_constant=lambda name: pytest.fail(name))
    jsonschema_rs.validator_for({"components": api["components"]} | content[media_type]["schema"]).validate(answer)
    return answer


def ask(caller: Any, body: bytes = DISC_PNG, query: str = "", **headers: str) -> Any:
    return caller.predict(body, query=f"?model=nuclei{query}", **headers)


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, check(response, "application/problem+json")["code"]


def send(caller: Any, regions: Any, query: str = "", media_type: str = "application/geo+json") -> Any:
    content = regions if isinstance(regions, bytes) else json.dumps(regions).encode()
    files = {"image": ("x", DISC_PNG, "image/png"), "regions": ("x", content, media_type)}
    return caller.request("POST", f"/v1/predict?model=nuclei{query}", files=files)


def square(x: float, y: float, side: float, name: str = "tumour") -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "properties": {"name": name}, "geometry": geometry}


def decoded(picture: dict[str, str]) -> np.ndarray[Any, Any]:
    assert picture["media_type"] == "image/png"
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture["data"]))))
