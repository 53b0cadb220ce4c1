"""The server fetches nothing it is told to (row 20 of docs/reliability.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access import ACCESS
from service.openapi import document
from service.settings import PROXIES
from tests.routes import URLS


def filled(schema: dict[str, Any], url: str) -> Any:
    """Return what a schema describes, with a URL for every string in it."""
    if "$ref" in schema:
        return filled(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]], url)
    for one in ("anyOf", "oneOf"):
        if one in schema:
            return filled(schema[one][0], url)
    if schema.get("type") == "object" or "properties" in schema:
        return {name: filled(part, url) for name, part in schema.get("properties", {}).items()} | {"url": url, "image": url}
    if schema.get("type") == "array":
        return [filled(schema.get("items", {}), url)]
    return {"number": 1.0, "integer": 1, "boolean": True}.get(schema.get("type", ""), url)


def elsewhere(url: str, draw_dicom: Callable[..., bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, request) of each other route that takes a body, with a URL wherever a string can stand."""
    for method, route in ACCESS:
        if method == "POST":
            content = document()["paths"][route]["post"].get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {"type": "object"})
            given = filled(schema, url) | {"hostname": url, "access_token": url, "data": {"image": url}, "file_upload": url}
            for body in (
                given,
                given | {"tasks": [given]},
                {"tasks": [{"data": {"image": url, "result_id": "0" * 64}}]},
                [url],
                url,
            ):
                yield URLS[route], {"json": body, "headers": {"x-overread-request": url}}
    part = draw_dicom(5, RetrieveURL=url, RetrieveURI=url, PixelDataProviderURL=url)
    head = f"--bb\r\nContent-Type: application/dicom\r\nContent-Location: {url}\r\n\r\n".encode()
    for kind in ("application/dicom", "application/dicom+json"):
        study = {"content-type": f'multipart/related; type="{kind}"; boundary=bb', "content-location": url}
        for body in (part, f'[{{"7FE00010": {{"vr": "OW", "BulkDataURI": "{url}"}}}}]'.encode()):
            yield "/v1/dicomweb/studies", {"content": head + body + b"\r\n--bb--\r\n", "headers": study}


def requests_with(url: str, image: bytes, draw_dicom: Callable[..., bytes]) -> list[dict[str, Any]]:
    """Return requests that name a URL wherever a string can stand."""
    text = url.encode()
    dicom = draw_dicom(
        1,
        PatientName=url,
        PatientID=url,
        RetrieveURL=url,
        RetrieveURI=url,
        PixelDataProviderURL=url,
        Modality=url,
        BodyPartExamined=url,
        SpecificCharacterSet=url,
    )
    without_pixels = draw_dicom(2, PixelData=None, PixelDataProviderURL=url)
    bodies = [
        text,
        b'{"image": "' + text + b'", "url": "' + text + b'"}',
        b"<svg xmlns:xlink='x'><image href='" + text + b"'/></svg>",
    ]
    types = [
        "image/png",
        "application/dicom",
        "text/plain",
        "application/json",
        "image/svg+xml",
        "text/uri-list",
        "message/external-body",
    ]
    requests: list[dict[str, Any]] = [{"content": body, "headers": {"content-type": kind}} for body in bodies for kind in types]
    requests += [{"content": body, "headers": {"content-type": "application/dicom"}} for body in (dicom, without_pixels)]
    for kind in (*types, "application/octet-stream"):
        for name in ("image", "url", "file"):
            requests.append({"files": {name: (url, text, kind)}})
        requests.append({"data": {"image": url, "url": url}, "files": {"other": ("x", image, "image/png")}})
    requests.append({"data": {"image": url}})
    good = {"content": image, "headers": {"content-type": "image/png"}}
    requests += [good | {"params": {name: url}} for name in ("model", "heatmap", "url", "image")]
    for header in (
        "referer",
        "origin",
        "x-forwarded-for",
        "x-forwarded-host",
        "forwarded",
        "link",
        "location",
        "x-original-url",
        "content-location",
    ):
        requests.append(good | {"headers": {"content-type": "image/png", header: url}})
    requests.append(good | {"headers": {"content-type": f'multipart/form-data; boundary="{url}"'}})
    return requests


@pytest.mark.parametrize("proxied", [False, True])
def test_nothing_connects(
    start_server: Callable[..., Any], server: Any, package: Path, draw: Any, draw_dicom: Any, listener: Any, proxied: bool
) -> None:
    tested = start_server(package, **dict.fromkeys(PROXIES, listener.url)) if proxied else server
    # With a proxy set, a fetch of anything would go to the listener; without one, a fetch of the listener's own URL.
    target = "http://192.0.2.1/x.png" if proxied else f"{listener.url}/x.png"
    with httpx.Client(trust_env=False, timeout=30) as client:
        for request in requests_with(target, draw(3), draw_dicom):
            response = client.post(f"{tested.url}/v1/predict", **request)
            assert response.status_code < 500
            assert target not in response.text
        for path, request in elsewhere(target, draw_dicom):
            response = client.post(tested.url + path, **request)
            assert response.status_code < 500
            assert target not in response.text
        for path in (f"/{target}", f"/v1/results/{target}", f"/v1/models?url={target}"):
            assert client.get(tested.url + path).status_code in {400, 404}
    time.sleep(0.5)
    assert listener.heard == []


def test_the_listener_would_have_heard(listener: Any) -> None:
    """The control: something that does fetch what a body says."""
    body = f"{listener.url}/x.png".encode()
    with pytest.raises(httpx.TransportError):
        httpx.get(body.decode(), timeout=60)
    assert listener.heard[0].startswith(b"GET /x.png ")
    with httpx.Client(proxy=listener.url, timeout=60) as client, pytest.raises(httpx.TransportError):
        client.get("http://192.0.2.1/x.png")
    assert listener.heard[1].startswith(b"GET http://192.0.2.1/x.png ")
