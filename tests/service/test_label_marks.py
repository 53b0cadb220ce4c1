"""Labels of a model that finds objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.service.discs import DISC_PNG, SIDE
from tests.service.label_desk import COUNT, Desk, code, marks
from tests.service.scans import ask


@pytest.fixture
def desk(open_desk: Callable[..., Desk], segmenter: Any) -> Desk:
    return open_desk(models=(segmenter,), readers=2)


def test_marks_are_stored_and_compared(desk: Desk) -> None:
    item = desk.item(body=DISC_PNG)
    desk.label("anna", item, annotation=marks((30, 40), (100, 60), (60, 130)))
    answer = desk.label("ben", item, annotation=marks((32, 42), (100, 62), (60, 130), (150, 150))).json()
    assert answer["agreement"] == {"measure": "f1", "value": pytest.approx(6 / 7), "agree": True}
    assert answer["item_state"] == "done"
    assert desk.listed("anna", item)[0]["document"]["features"][0]["geometry"]["coordinates"][0] == [30, 40]


def test_the_models_outlines_are_confirmed_as_they_were_shown(desk: Desk) -> None:
    item = desk.item(body=DISC_PNG)
    shown = desk.ask("anna", "GET", f"/v1/results/{item['result_id']}").json()["objects"]
    assert desk.label("anna", item, model_was_right=True).status_code == 201
    features = desk.listed("anna", item)[0]["document"]["features"]
    assert [feature["geometry"]["coordinates"][0][:-1] for feature in features] == [each["polygon"] for each in shown]
    again = desk.label("ben", item, annotation={"type": "FeatureCollection", "features": features}).json()
    assert again["agreement"] == {"measure": "dice", "value": pytest.approx(1), "agree": True}


def outlined(ring: list[list[int]], name: str = "Nucleus") -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}
    return {"type": "FeatureCollection", "features": [feature]}


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        ({"type": "FeatureCollection", "features": []}, "features"),
        ({"type": "FeatureCollection", "features": "x"}, "features"),
        ({}, "features"),
        (outlined([[10, 10], [60, 60], [60, 10], [10, 60], [10, 10]]), "crosses or touches itself"),
        (outlined([[0, 0], [9, 0], [9, 9], [0, 0]], "Region*"), "no nucleus is marked"),
        (marks(*[(0.5, 0.5)] * (SIDE**2 + 1)), "more nuclei are marked than the image has pixels"),
        ("outside", "outside the image"),
        ("nan", ""),
    ],
)
def test_marks_that_do_not_fit_are_refused(desk: Desk, annotation: Any, says: str) -> None:
    item = desk.item(body=DISC_PNG)
    if annotation == "outside":
        annotation = marks((30, 40), (192, 10))
    if annotation == "nan":
        text = json.dumps(item | {"annotation": marks((float("nan"), 1)), "model_was_right": False})
        headers = {"content-type": "application/json"}
        answer = desk.ask("anna", "POST", "/v1/labels", content=text, headers=headers)
        assert answer.status_code in (400, 422)
    else:
        answer = desk.label("anna", item, annotation=annotation)
        assert (answer.status_code, code(answer)) == (422, "label_invalid")
        assert says in answer.json()["detail"]
    assert ask(desk.site, COUNT) == [(0,)]


def test_classes_are_no_marks(desk: Desk) -> None:
    assert code(desk.label("anna", desk.item(body=DISC_PNG), "nucleus")) == "label_invalid"
