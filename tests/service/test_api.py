"""Routes, methods, queries, and the documents that answer them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from models.card import ZOO, read_package
from service.access import ACCESS
from service.analysis import Site
from service.api import HANDLERS, HEADERS
from service.openapi import document
from service.page_files import HEADERS as PAGE_HEADERS
from service.routes import match
from service.schemas import STATUS
from tests.routes import NOTHING, URLS

ID = NOTHING
# Leases that nobody holds, and labels of no item
OTHERWISE = {("POST", "/v1/worklist/lease/{lease_id}/" + name): 409 for name in ("renew", "return")} | {
    ("GET", "/v1/labels"): 400
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def schema_of(response: Any, method: str, route: str) -> dict[str, Any]:
    """Return the schema that the OpenAPI document promises for an answer, with the definitions it refers to."""
    api = document()
    content = api["paths"][route][method.lower()]["responses"][str(response.status_code)]["content"]
    media_type = response.headers["content-type"].partition(";")[0]
    return {"components": api["components"]} | content[media_type]["schema"]


def check(response: Any, method: str, route: str) -> None:
    """Check an answer against the OpenAPI document."""
    text = response.headers["content-type"].startswith("text/") or route == "/v1/openapi.json"
    value = response.text if text else json.loads(response.text, parse_constant=lambda name: pytest.fail(name))
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json"
        assert STATUS[value["code"]] == value["status"] == response.status_code
        assert value["code"] in document()["paths"][route][method.lower()]["responses"][str(response.status_code)]["description"]
    jsonschema_rs.validator_for(schema_of(response, method, route)).validate(value)


def test_the_document_is_openapi_and_names_each_route_once() -> None:
    schemathesis.openapi.from_dict(document()).validate()
    routes = {(method.upper(), route) for route, operations in document()["paths"].items() for method in operations}
    assert routes == set(ACCESS)
    assert set(HANDLERS) | {("GET", "/healthz")} == set(ACCESS)
    names = [operation["operationId"] for operations in document()["paths"].values() for operation in operations.values()]
    assert len(set(names)) == len(names) == len(ACCESS)


def test_an_answer_says_for_what_its_model_is_not(client: Any, draw: Any) -> None:
    answer = client.predict(draw(1)).json()
    (model,) = client.get("/v1/models").json()["models"]
    assert answer["model"]["intended_use"] == model["card"]["intended_use"]


@pytest.mark.parametrize("name", ["cxr-pneumonia", "nuclei"])
def test_the_shipped_models_are_not_for_diagnosis(name: str) -> None:
    assert read_package(ZOO / name)[0].intended_use.not_for.startswith("Not for diagnosis")


def test_the_document_says_who_may() -> None:
    for (method, route), roles in ACCESS.items():
        operation = document()["paths"][route][method.lower()]
        assert operation["security"] == ([] if "public" in roles else [{"token": []}])
        assert set(operation.get("x-roles", ())) == (set() if "public" in roles else set(roles))


def test_a_validator_would_see_a_broken_document() -> None:
    broken = json.loads(json.dumps(document()))
    broken["paths"]["/"]["get"]["responses"] = 5
    with pytest.raises(Exception, match="5"):
        schemathesis.openapi.from_dict(broken).validate()


@pytest.mark.parametrize("route", sorted(URLS))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_every_route(client: Any, draw: Any, method: str, route: str) -> None:
    response = client.request(
        method, URLS[route], content=draw(1) if method == "POST" else b"", headers={"content-type": "image/png"}
    )
    asked = "GET" if method == "HEAD" else method
    same = HEADERS if response.status_code != 200 or route != "/ui" else HEADERS | PAGE_HEADERS
    assert {name: response.headers[name] for name in same} == same
    if (asked, route) in ACCESS:
        takes = document()["paths"][route][asked.lower()].get("requestBody", {}).get("content", {"image/png": {}})
        usual = 404 if "{" in route else 200
        assert response.status_code == (OTHERWISE.get((asked, route), usual) if "image/png" in takes else 415)
        if method != "HEAD":
            check(response, method, route)
    else:
        assert response.status_code == 405
        known = {method for method, path in ACCESS if path == route}
        assert set(response.headers["allow"].split(", ")) == known | ({"HEAD"} if "GET" in known else set())
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v2/predict",
        "/v1/predict/",
        "//v1/predict",
        "/V1/predict",
        "/v1/results",
        "/v1/results/",
        "/v1/results/{result_id}",
        f"/v1/results/{ID}/",
        f"/v1/results/{ID}0",
        "/v1/results/" + "G" * 64,
        "/v1/results/" + "A" * 64,
        f"/v1/results/{ID}\n",
        "/v1/results/" + "\u0660" * 64,
        "/docs.json",
        "/static/index.html",
        "/schema.json",
        "/livez",
        "/.",
        "/../etc/passwd",
        "",
        "*",
    ],
)
def test_other_paths_are_no_route(path: str) -> None:
    assert match(path) == (None, {})


def test_unknown_paths_and_results(client: Any) -> None:
    for path in ("/nowhere", "/v1/results/xyz", f"/v1/results/{ID}", "/docs", "/schema"):
        response = client.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?x=1", "bad_request"),
        ("?model=tiny&model=tiny", "bad_request"),
        ("?heatmap=1", "bad_request"),
        ("?heatmap=True", "bad_request"),
        ("?heatmap=", "bad_request"),
        ("?Heatmap=true", "bad_request"),
        ("?" + "&".join(f"a{i}=1" for i in range(2000)), "bad_request"),
        ("?model=none", "unknown_model"),
        ("?model=", "unknown_model"),
        ("?model=../tiny", "unknown_model"),
        ("?model=%00%ff", "unknown_model"),
    ],
)
def test_queries(client: Any, draw: Any, query: str, code: str) -> None:
    response = client.predict(draw(1), query=query)
    assert response.json()["code"] == code
    check(response, "POST", "/v1/predict")


@pytest.mark.parametrize("route", ["/v1/models", "/v1/results/{result_id}"])
def test_routes_that_take_no_query(client: Any, route: str) -> None:
    assert client.get(URLS[route] + "?x=1").json()["code"] == "bad_request"


def test_an_answer(client: Any, draw: Any) -> None:
    response = client.predict(draw(1))
    check(response, "POST", "/v1/predict")
    answer = response.json()
    assert answer["sop_instance_uid"] is None
    assert answer["heatmap"] is None
    assert [finding["label"] for finding in answer["findings"]] == ["pneumonia"]
    again = client.get(f"/v1/results/{answer['result_id']}")
    check(again, "GET", "/v1/results/{result_id}")
    assert again.json() == answer
    assert client.predict(draw(1)).json() == answer
    assert client.predict(draw(2)).json()["result_id"] != answer["result_id"]


def test_a_heatmap_is_added_and_nothing_else_changes(client: Any, draw: Any) -> None:
    plain = client.predict(draw(1)).json()
    with_map = client.predict(draw(1), query="?heatmap=true")
    check(with_map, "POST", "/v1/predict")
    assert with_map.json() | {"heatmap": None} == plain
    assert with_map.json()["heatmap"]["label"] == "pneumonia"
    first = client.predict(draw(2), query="?heatmap=true").json()
    assert client.predict(draw(2), query="?heatmap=false").json() == first | {"heatmap": None}


def test_models_are_chosen_by_name(make_site: Any, make_package: Any, package: Path, connect: Any, draw: Any) -> None:
    client = connect(make_site(models=(package, make_package("other"))))
    listed = client.get("/v1/models")
    check(listed, "GET", "/v1/models")
    assert [(entry["name"], entry["default"]) for entry in listed.json()["models"]] == [("tiny", True), ("other", False)]
    default, other = client.predict(draw(1)).json(), client.predict(draw(1), query="?model=other").json()
    assert (default["model"]["name"], other["model"]["name"]) == ("tiny", "other")
    assert default["result_id"] != other["result_id"]
    assert default["image_sha256"] == other["image_sha256"]


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"", "image/png", "empty_body"),
        (b"{}", "image/png", "not_decodable"),
        (b"\x89PNG\r\n\x1a\n", "image/png", "not_decodable"),
        (b"\xff\xd8\xff\xe0", "image/jpeg", "not_decodable"),
        (bytes(128) + b"DICM", "application/dicom", "not_decodable"),
        (b"http://127.0.0.1:1/x.png", "text/plain", "unsupported_media_type"),
        (b"x", "application/json", "unsupported_media_type"),
        (b"x", "multipart/form-data", "bad_request"),
    ],
)
def test_bad_images(client: Any, body: bytes, media_type: str, code: str) -> None:
    response = client.predict(body, media_type)
    assert response.json()["code"] == code
    check(response, "POST", "/v1/predict")


def test_bytes_must_be_what_the_type_says(client: Any, draw: Any) -> None:
    assert client.predict(draw(1), "image/jpeg").json()["code"] == "unsupported_media_type"
    assert client.predict(draw(1), "application/dicom").json()["code"] == "unsupported_media_type"


def test_small_and_large(client: Any, draw: Any, make_site: Any, connect: Any) -> None:
    assert client.predict(draw(1, 20)).json()["code"] == "too_small"
    small = connect(make_site(max_body_bytes=1024))
    response = small.predict(draw(1))
    assert response.json()["code"] == "too_large"
    assert response.headers["connection"] == "close"
    check(response, "POST", "/v1/predict")


def test_before_and_after_there_is_a_site(connect: Any) -> None:
    caller = connect(None)
    assert caller.get("/healthz").json() == {"status": "ok"}
    for response in (caller.get("/readyz"), caller.get("/metrics"), caller.predict(b"x")):
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        assert response.headers["retry-after"]


def test_site_limits_change_the_verdict_and_not_the_result(make_site: Any, connect: Any, draw: Any) -> None:
    first = connect(make_site()).predict(draw(1)).json()
    strict = connect(make_site(review_loss_percentile=0))
    second = strict.predict(draw(1)).json()
    assert (first["verdict"], second["verdict"]) == ("accept", "review")
    changed = {"verdict", "reasons"}
    assert {key: first[key] for key in first if key not in changed} == {key: second[key] for key in second if key not in changed}
    assert strict.get(f"/v1/results/{first['result_id']}").json() == second


def test_a_refused_image_has_no_positive_finding(make_site: Any, connect: Any, draw: Any) -> None:
    caller = connect(make_site(refuse_domain_distance=1e-9))
    for seed in range(8):
        answer = caller.predict(draw(seed))
        assert answer.status_code == 200
        assert answer.json()["verdict"] == "refuse"
        assert not any(finding["positive"] for finding in answer.json()["findings"])


def test_a_result_outlives_its_model(make_site: Any, make_package: Any, package: Path, connect: Any, draw: Any) -> None:
    answer = connect(make_site()).predict(draw(1)).json()
    later = connect(make_site(models=(make_package("other"),)))
    assert later.get(f"/v1/results/{answer['result_id']}").json() == answer
    assert [entry["name"] for entry in later.get("/v1/models").json()["models"]] == ["other"]


def test_two_models_of_one_name_are_refused(make_site: Callable[..., Site], make_package: Any, package: Path) -> None:
    with pytest.raises(Exception, match="same name"):
        make_site(models=(package, make_package("tiny")))


def test_every_caller_meets_the_table(make_site: Any, connect: Any, tokens: dict[str, str]) -> None:
    caller = connect(make_site(), base_url="http://anything.example")
    for (method, route), roles in ACCESS.items():
        for role, token in [*tokens.items(), ("public", None), ("wrong", "ovr_wrong")]:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            response = caller.request(method, URLS[route], headers=headers)
            if role == "wrong":
                allowed = route == "/healthz"
                expected = 401
            else:
                allowed = role in roles
                expected = 401 if role == "public" else 403
            assert (response.status_code not in {401, 403}) if allowed else (response.status_code == expected), (route, role)
            if response.status_code == 401:
                assert response.headers["www-authenticate"] == "Bearer"


def test_the_limit_of_a_caller(make_site: Any, connect: Any, tokens: dict[str, str]) -> None:
    caller = connect(make_site(rate_limit_per_minute=2))
    headers = {"authorization": f"Bearer {tokens['operator']}"}
    codes = [caller.get("/v1/models", headers=headers).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    refused = caller.get("/v1/models", headers=headers)
    assert refused.json()["code"] == "rate_limited"
    assert int(refused.headers["retry-after"]) > 0
    assert caller.get("/v1/models", headers={"authorization": f"Bearer {tokens['device']}"}).status_code == 200
    # Health checks come without a token; strangers must not be able to make them fail.
    assert {caller.get("/readyz").status_code for _ in range(10)} == {200}


def test_an_open_service_answers_this_machine_only(make_site: Any, connect: Any) -> None:
    site = make_site()
    for base, headers, status in [
        ("http://localhost:3000", {}, 200),
        ("http://[::1]:3000", {}, 200),
        ("http://10.0.0.1:3000", {}, 403),
        ("http://127.0.0.1:3000", {"host": "evil.example"}, 403),
        ("http://127.0.0.1:3000", {"origin": "http://evil.example"}, 403),
        ("http://127.0.0.1:3000", {"origin": "http://127.0.0.1:3000"}, 200),
    ]:
        assert connect(site, base_url=base).get("/v1/models", headers=headers).status_code == status, (base, headers)
