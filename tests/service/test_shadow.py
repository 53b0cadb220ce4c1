"""A candidate beside the package that answers: what it predicts is stored and compared, and nobody waits for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from models.errors import Refusal
from service import candidates, lineup, shadow
from service.analysis import Site
from service.promotion import Desk
from service.store import result_id
from service.tables import labels
from tests.service.discs import ask
from tests.service.packages import count, identity, output, settled, write


@pytest.mark.dialects
def test_a_candidate_predicts_what_was_answered_and_answers_nothing(
    site: Site, desk: Desk, connect: Any, draw: Any, package: Path, tmp_path: Path
) -> None:
    caller, second = connect(site), write(tmp_path / "second", "1.1.0", **output(0.0))
    (unpaired,) = caller.get("/v1/candidates").json()["models"]
    assert unpaired["candidate"] is unpaired["shadow"] is None
    caller.predict(draw(0))  # before there is a candidate
    desk.try_beside(second, "")
    site.lineup.refresh()
    answers = [caller.predict(draw(seed)).json() for seed in (1, 2, 3)]
    assert {answer["model"]["sha256"] for answer in answers} == {identity(package)}
    settled(site, 3)
    (model,) = caller.get("/v1/candidates").json()["models"]
    assert (model["current"]["sha256"], model["candidate"]["sha256"]) == (identity(package), identity(second))
    total = model["shadow"]["total"]
    # The candidate calls every image positive that is not refused, and doubts exactly as much
    same = sum(answer["verdict"] == "refuse" or answer["findings"][0]["positive"] for answer in answers)
    assert (total["compared"], total["same_verdict"], total["same_findings"]) == (3, 3, same)
    mean = sum(answer["predicted_loss"] for answer in answers) / 3
    assert total["current_mean_predicted_loss"] == total["candidate_mean_predicted_loss"] == pytest.approx(mean)
    assert model["shadow"]["errors"] is None
    assert count(site, "overread_candidate_verdicts_total", model="tiny") == 3
    assert count(site, "overread_candidate_findings_total", same="no") == 3 - same
    theirs = result_id(answers[0]["image_sha256"], identity(second))
    assert site.store.find(theirs) is not None
    assert caller.get(f"/v1/results/{theirs}").status_code == 404  # stored, and no answer


@pytest.mark.dialects
def test_what_was_compared_is_not_compared_again(site: Site, desk: Desk, connect: Any, draw: Any, tmp_path: Path) -> None:
    caller = connect(site)
    desk.try_beside(write(tmp_path / "second", "1.1.0"), "")
    site.lineup.refresh()
    for seed in (1, 1, 1, 2):
        caller.predict(draw(seed))
    settled(site, 2)
    (model,) = caller.get("/v1/candidates").json()["models"]
    assert model["shadow"]["total"]["compared"] == 2


@pytest.mark.dialects
def test_a_promoted_candidate_answers_what_it_predicted(site: Site, desk: Desk, connect: Any, draw: Any, tmp_path: Path) -> None:
    caller, second = connect(site), write(tmp_path / "second", "1.1.0")
    desk.try_beside(second, "")
    site.lineup.refresh()
    caller.predict(draw(1))
    settled(site, 1)
    desk.promote(second, "agrees")
    site.lineup.refresh()
    assert site.lineup.candidates == {}
    answer = caller.predict(draw(1)).json()
    assert answer["model"]["version"] == "1.1.0"
    assert caller.get(f"/v1/results/{answer['result_id']}").json() == answer
    (model,) = caller.get("/v1/candidates").json()["models"]
    assert model["candidate"] is None


def test_answers_never_wait_for_a_candidate(
    site: Site, desk: Desk, connect: Any, draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = connect(site)
    monkeypatch.setattr(shadow, "MAX_JOBS", 2)
    desk.try_beside(write(tmp_path / "second", "1.1.0"), "")
    site.lineup.refresh()
    hold, begun = threading.Event(), threading.Event()

    def stuck(*_: Any) -> Any:
        begun.set()
        assert hold.wait(60)
        raise Refusal("not_decodable")

    monkeypatch.setattr(shadow, "predict_row", stuck)
    assert caller.predict(draw(1)).status_code == 200
    assert begun.wait(60)
    for seed in range(2, 7):  # two wait, three are dropped
        assert caller.predict(draw(seed)).status_code == 200
    assert count(site, "overread_candidate_missed_total", model="tiny", reason="queue_full") == 3
    hold.set()
    settled(site, 6)
    assert count(site, "overread_candidate_missed_total", reason="refused") == 3


def test_no_image_is_begun_while_a_request_waits(
    site: Site, desk: Desk, connect: Any, draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = connect(site)
    desk.try_beside(write(tmp_path / "second", "1.1.0"), "")
    site.lineup.refresh()
    busy = True
    monkeypatch.setattr(type(site.engine), "idle", property(lambda _: not busy))
    caller.predict(draw(1))
    time.sleep(0.3)
    assert count(site, "overread_candidate_findings_total") == 0
    busy = False
    settled(site, 1)


def test_a_candidate_that_fails_is_counted_and_costs_nothing(
    site: Site, desk: Desk, connect: Any, draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = connect(site)
    desk.try_beside(write(tmp_path / "second", "1.1.0"), "")
    site.lineup.refresh()
    monkeypatch.setattr(shadow, "predict_row", lambda *_: 1 / 0)
    assert caller.predict(draw(1)).status_code == 200
    settled(site, 1)
    assert count(site, "overread_candidate_missed_total", reason="failed") == 1
    monkeypatch.undo()
    caller.predict(draw(2))
    settled(site, 2)
    assert count(site, "overread_candidate_findings_total") == 1


@pytest.mark.parametrize(("change", "same"), [({"threshold": 0.4}, 1), ({"min_area": 300}, 0)])
def test_a_segmenters_candidate(
    make_site: Any, connect: Any, segmenter: Path, make_segmenter: Any, monkeypatch: pytest.MonkeyPatch, change: Any, same: int
) -> None:
    monkeypatch.setattr(lineup, "POLL_SECONDS", 3600.0)
    site = make_site(models=(segmenter,))
    Desk(site.settings, site.store).try_beside(make_segmenter("nuclei", **change), "")
    site.lineup.refresh()
    caller = connect(site)
    assert ask(caller).status_code == ask(caller, query="&region=0,0,96,96").status_code == 200
    settled(site, 2)
    (model,) = caller.get("/v1/candidates").json()["models"]
    assert model["shadow"]["total"]["compared"] == 2
    # Two of the five discs are smaller than 300 pixels: a Dice of 0.84. The region holds one of them, and parts of others
    assert (model["shadow"]["total"]["same_findings"] == 2) == bool(same)
    assert model["shadow"]["errors"] is None


def label(site: Site, answer: dict[str, Any], number: int, positive: bool, **fields: Any) -> None:
    """Store a label as a reader gave it."""
    from datetime import UTC, datetime

    row = {
        "label_id": f"{number:064x}", "result_id": answer["result_id"], "image_sha256": answer["image_sha256"],
        "model_sha256": answer["model"]["sha256"], "reader": "anna", "standing": "reader", "kind": "classes",
        "document": {"normal": not positive, "pneumonia": positive}, "model_was_right": False, "source": "api",
        "created_at": datetime.now(UTC),
    }  # fmt: skip
    with site.store.writing() as connection:
        connection.execute(sa.insert(labels), row | fields)


@pytest.mark.dialects
def test_labels_say_which_of_the_two_errs(site: Site, desk: Desk, connect: Any, draw: Any, tmp_path: Path) -> None:
    caller = connect(site)
    desk.try_beside(write(tmp_path / "second", "1.1.0", **output(1.0)), "")  # it calls nothing
    site.lineup.refresh()
    answers = [caller.predict(draw(seed)).json() for seed in range(1, 9)]
    called = [answer["findings"][0]["positive"] for answer in answers]
    assert 0 < sum(called) < 8 or all(called)
    settled(site, 8)
    for number, answer in enumerate(answers[:5]):
        label(site, answer, number, positive=True)
    label(site, answers[5], 5, positive=True)  # replaced by
    label(site, answers[5], 6, positive=False, replaces=f"{5:064x}")
    label(site, answers[6], 7, positive=True)  # two readers who differ: nothing is known
    label(site, answers[6], 8, positive=False, reader="bert")
    label(site, answers[7], 9, positive=False)  # two who differ, and a third who decides
    label(site, answers[7], 10, positive=True, reader="bert")
    label(site, answers[7], 11, positive=True, reader="cleo", standing="adjudicator")
    errors = caller.get("/v1/candidates").json()["models"][0]["shadow"]["errors"]
    truth = {0: True, 1: True, 2: True, 3: True, 4: True, 5: False, 7: True}
    ours = sum(called[number] != positive for number, positive in truth.items())
    assert (errors["images"], errors["patients"]) == (7, 7)
    assert (errors["current_errors"], errors["candidate_errors"]) == (ours, 6)
    assert errors["difference"] == pytest.approx((6 - ours) / 7)
    assert errors["low"] <= errors["difference"] <= errors["high"]


def test_the_paired_interval() -> None:
    assert candidates.paired_interval([1.0, 1.0], ["a", "a"]) is None
    assert candidates.paired_interval([0.0] * 5, list("abcde")) == (0.0, 0.0)
    random = np.random.default_rng(1)
    values = random.normal(0.2, 1.0, 400)
    low, high = candidates.paired_interval(list(values), [str(number) for number in range(400)])  # type: ignore[misc]
    half = 1.96 * values.std(ddof=1) / 20  # by the central limit theorem
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.02), pytest.approx(values.mean() + half, abs=0.02))
    # Four images of each patient alike: a hundred observations, and an interval twice as wide
    wide = candidates.paired_interval(list(np.repeat(values[:100], 4)), [str(number // 4) for number in range(400)])
    alone = candidates.paired_interval(list(values[:100]), [str(number) for number in range(100)])
    assert wide == pytest.approx(alone)
