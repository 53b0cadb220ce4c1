"""Label Studio: tasks out, stored results as predictions, annotations back as labels; and nothing is ever fetched."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest

from models import cli
from models.imaging import read_image
from tests.service.label_desk import COUNT, Desk, code
from tests.service.scans import ask, scan
from tests.service.studio import URL, choice, event, predict, task, tell


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


def test_the_backend_says_that_it_is_there(desk: Desk) -> None:
    assert desk.ask("anna", "GET", f"{URL}/health").json()["status"] == "UP"
    body = {"project": "2.1", "schema": "<View/>", "hostname": "http://127.0.0.1:1", "access_token": "their secret"}
    answer = desk.ask("anna", "POST", f"{URL}/setup", json=body)
    assert answer.json()["model_version"].startswith("overread ")
    assert "their secret" not in answer.text


def test_a_token_may_come_as_a_password_there_and_nowhere_else(desk: Desk) -> None:
    def basic(name: str, password: str) -> dict[str, str]:
        return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}

    good = basic("label-studio", desk.tokens["anna"])
    assert desk.client.get(f"{URL}/health", headers=good).status_code == 200
    assert desk.client.get("/v1/labels?item_id=1", headers=good).status_code == 401
    for bad in (
        basic("anna", "wrong"),
        basic(desk.tokens["anna"], ""),
        {"authorization": "Basic %"},
        {"authorization": "Basic"},
        {},
    ):
        assert desk.client.get(f"{URL}/health", headers=bad).status_code == 401
    assert desk.client.get(f"{URL}/health", headers=basic("", desk.tokens["ct"])).status_code == 403


def test_a_stored_result_is_the_prediction(desk: Desk) -> None:
    items = [desk.item(1), desk.item(2)]
    (first, second) = predict(desk, *map(task, items)).json()["results"]
    for item, found in zip(items, (first, second), strict=True):
        result = desk.ask("anna", "GET", f"/v1/results/{item['result_id']}").json()
        called = "pneumonia" if result["findings"][0]["positive"] else "normal"
        assert found["result"] == [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [called]}}]
        assert found["score"] == pytest.approx(1 - result["loss_percentile"] / 100)
        assert found["model_version"] == f"tiny 1.0.0 {item['model_sha256'][:12]}"


@pytest.mark.parametrize(
    ("change", "status", "expected"),
    [
        ({"result_id": "0" * 64}, 404, "not_found"),
        ({"result_id": "http://127.0.0.1:1/x"}, 400, "bad_request"),
        ({"result_id": None}, 400, "bad_request"),
        ({"result_id": 7}, 400, "bad_request"),
    ],
)
def test_a_task_that_is_not_ours_is_refused_with_all_others(
    desk: Desk, change: dict[str, Any], status: int, expected: str
) -> None:
    item = desk.item()
    answer = predict(desk, task(item), task(item, **change))
    assert (answer.status_code, code(answer)) == (status, expected)
    told = event(item, choice("normal"))
    told["task"]["data"] |= change
    answer = tell(desk, told)
    assert (answer.status_code, code(answer)) == (status, expected)
    del told["task"]
    assert code(tell(desk, told)) == "bad_request"
    assert ask(desk.site, COUNT) == [(0,)]


@pytest.mark.dialects
def test_an_annotation_becomes_a_label_once(desk: Desk) -> None:
    item = desk.item()
    first = tell(desk, event(item, choice("normal")))
    assert (first.status_code, first.json()["status"]) == (201, "ok")
    assert tell(desk, event(item, choice("normal"))).json() == first.json()
    (record,) = desk.listed("otto", item)
    assert (record["reader"], record["source"], record["seconds"]) == ("anna:7", "label-studio", 37.13)
    assert record["document"] == {"normal": True, "pneumonia": False}
    assert desk.state(item) == "done"


@pytest.mark.dialects
def test_an_update_replaces_it_also_back_again(desk: Desk) -> None:
    item = desk.item()
    told = [
        event(item, choice(name), action=action, updated_at=f"2026-08-17T13:5{number}:00Z")
        for number, (name, action) in enumerate(
            [("normal", "ANNOTATION_CREATED"), ("pneumonia", "ANNOTATION_UPDATED"), ("normal", "ANNOTATION_UPDATED")]
        )
    ]
    for document in (*told, told[0], told[2]):  # and twice late
        assert tell(desk, document).status_code == 201
    found = desk.listed("otto", item)
    assert [row["document"]["normal"] for row in found] == [True, False, True]
    assert [row["in_force"] for row in found] == [False, False, True]


@pytest.mark.dialects
def test_users_are_readers(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(readers=2)
    item = desk.item()
    tell(desk, event(item, choice("normal"), id=1, completed_by=7))
    tell(desk, event(item, choice("pneumonia"), id=2, completed_by={"id": 8, "email": "b@example.org"}))
    assert desk.state(item) == "adjudicate"
    assert [row["reader"] for row in desk.listed("otto", item)] == ["anna:7", "anna:8"]
    assert ask(desk.site, "SELECT count(*) FROM labels WHERE reader LIKE '%example%'") == [(0,)]
    refused = tell(desk, event(item, choice("normal"), id=3, completed_by=10**60))  # as of a token with a long name
    assert (refused.status_code, code(refused)) == (422, "label_invalid")
    assert tell(desk, event(item, choice("normal"), id=3, completed_by=10**58)).status_code == 201


def test_a_lease_of_somebody_here_does_not_lose_what_was_read_there(desk: Desk) -> None:
    item = desk.item()
    assert desk.ask("ben", "POST", "/v1/worklist/lease", json={}).status_code == 200
    assert tell(desk, event(item, choice("normal"))).status_code == 201


@pytest.mark.parametrize(
    "told",
    [
        {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 17}]},
        {"action": "START_TRAINING", "project": {"id": 2}},
        {"action": "TASKS_CREATED", "tasks": [{"id": 1, "data": {"image": "http://127.0.0.1:1/x"}}]},
    ],
)
def test_other_events_are_passed_over(desk: Desk, told: dict[str, Any]) -> None:
    answer = tell(desk, told)
    assert (answer.status_code, answer.json()) == (200, {"status": "passed_over", "label_id": None})


def test_a_skipped_task_is_no_label(desk: Desk) -> None:
    assert tell(desk, event(desk.item(), was_cancelled=True)).json()["status"] == "passed_over"
    assert ask(desk.site, COUNT) == [(0,)]


@pytest.mark.parametrize("names", [[], ["normal", "pneumonia"], ["covid"], [""], ["x" * 200]])
def test_one_choice_of_the_card(desk: Desk, names: list[str]) -> None:
    item = desk.item()
    answer = tell(desk, event(item, choice("") | {"value": {"choices": names}}))
    assert answer.status_code in (400, 422)
    assert ask(desk.site, COUNT) == [(0,)]


@pytest.mark.dialects
@pytest.mark.parametrize("images", [False, True])
def test_tasks_carry_what_is_needed_and_nothing_else(
    desk: Desk, tmp_path: Path, environment: pytest.MonkeyPatch, images: bool
) -> None:
    waiting, done = desk.item(body=scan(1, patient="Canary")), desk.item(2)
    desk.label("anna", done, "normal")
    environment.setenv("OVERREAD_MODELS", ",".join(map(str, desk.site.settings.models)))
    words = ["labels", "export", "--label-studio", str(tmp_path / "out" / "tasks.json")]
    assert cli.main([*words, *(["--images", str(tmp_path / "pictures")] if images else [])]) == 0
    text = (tmp_path / "out" / "tasks.json").read_text()
    (found,) = json.loads(text)
    data = found["data"]
    assert {name: data[name] for name in ("result_id", "image_sha256", "item_id")}.items() <= waiting.items()
    assert "Canary" not in text
    if images:
        assert data["image"] == f"/data/local-files/?d=pictures/{waiting['image_sha256']}.png"
        png = (tmp_path / "pictures" / f"{waiting['image_sha256']}.png").read_bytes()
    else:
        png = base64.b64decode(data["image"].removeprefix("data:image/png;base64,"))
    pixels = np.asarray(PIL.Image.open(io.BytesIO(png)))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(float) - read_image(scan(1)).pixels.astype(float) / 4095 * 255).max() < 1.01
    config = ElementTree.fromstring((tmp_path / "out" / "label_config.xml").read_text())
    assert [(each.tag, each.get("value")) for each in config.iter("Choice")] == [("Choice", "normal"), ("Choice", "pneumonia")]
    left = ask(desk.site, "SELECT role, subject FROM audit WHERE action = 'labels_exported'")
    assert left == [("command", waiting["image_sha256"])]
    assert predict(desk, found).status_code == 200
    assert cli.main(words) == 2  # it is there


@pytest.fixture
def ear() -> Iterator[tuple[str, list[Any]]]:
    """A port that notes who connects."""
    heard: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                heard.append(connection.recv(100))
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x.png", heard
        over.set()
        thread.join()


def test_no_url_is_ever_fetched(desk: Desk, ear: tuple[str, list[Any]]) -> None:
    url, heard = ear
    item = desk.item()
    ours = task(item, image=url, url=url) | {"storage": url, "file_upload": url}
    assert predict(desk, ours).status_code == 200
    for stranger in ({"data": {"image": url}}, {"data": url}, url, {"data": {"result_id": url}}):
        assert predict(desk, stranger).status_code == 400
    told = event(item, choice("normal")) | {"hostname": url, "url": url}
    told["task"] = ours
    told["annotation"]["result"][0] |= {"value": {"choices": [url], "image": url}}
    assert tell(desk, told).status_code == 422
    told["annotation"]["result"][0] = choice("normal")
    assert tell(desk, told).status_code == 201
    setup = {"project": "2.1", "schema": f"<View><Image value='{url}'/></View>", "hostname": url, "access_token": url}
    assert desk.ask("anna", "POST", f"{URL}/setup", json=setup).status_code == 200
    assert heard == []
    with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) as control:  # the ear hears
        control.sendall(b"control")
    end = time.monotonic() + 60
    while not heard and time.monotonic() < end:
        time.sleep(0.02)
    assert heard == [b"control"]
