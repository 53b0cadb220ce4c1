"""Who read or changed what is noted, before it is answered and with what it changes; and stays."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from service import audit
from service.audit import ACTIONS, Audit, Who, note
from service.store import Store
from tests.service.scans import ALL, ask

Row = tuple[Any, ...]

pytestmark = pytest.mark.dialects


def rows(store: Store, after: int = 0) -> list[Row]:
    """Return (actor, role, action, subject, number) of the rows after the first ones."""
    with store.reading() as connection:
        found = connection.exec_driver_sql("SELECT actor, role, action, subject, number FROM audit ORDER BY id")
        return [tuple(row) for row in found][after:]


@pytest.fixture
def flagged(make_site: Any, connect: Any, tokens: dict[str, str], draw: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A caller of a site with tokens, a stored answer, and the headers of each role."""
    caller = connect(make_site(**ALL))
    headers = {role: {"authorization": f"Bearer {token}"} for role, token in tokens.items()}
    answer = caller.predict(draw(1), **headers["device"]).json()
    return caller, answer, headers


def test_answers_to_the_sender_are_no_reads(flagged: Any, draw: Any) -> None:
    caller, _, headers = flagged
    caller.predict(draw(1), **headers["device"])
    assert rows(caller.api.site.store) == []


def test_every_read_of_an_image_or_result_is_a_row(flagged: Any) -> None:
    caller, answer, headers = flagged
    annotator, image = headers["annotator"], answer["image_sha256"]
    (item,) = caller.get("/v1/worklist", headers=annotator).json()["items"]
    asked = {
        f"/v1/results/{answer['result_id']}": "result_read",
        f"/v1/images/{image}": "image_read",
        f"/v1/items/{item['item_id']}": "item_read",
    }
    assert rows(caller.api.site.store) == [("annotator", "annotator", "item_read", image, 1)]
    for path, action in asked.items():
        before = len(rows(caller.api.site.store))
        assert caller.get(path, headers=headers["operator"]).status_code == 200
        assert rows(caller.api.site.store, before) == [("operator", "operator", action, image, 1)]
    before = len(rows(caller.api.site.store))
    lease = caller.request("POST", "/v1/worklist/lease", json={}, headers=annotator).json()
    lease_id = lease["lease_id"]
    caller.request("POST", f"/v1/worklist/lease/{lease_id}/renew", headers=annotator)
    caller.request("POST", f"/v1/worklist/lease/{lease_id}/return", headers=annotator)
    assert rows(caller.api.site.store, before) == [("annotator", "annotator", "item_read", image, 1)] * 3


def test_what_is_refused_or_shows_nothing_is_no_row(flagged: Any) -> None:
    caller, answer, headers = flagged
    for path in (f"/v1/images/{answer['image_sha256']}", "/v1/worklist"):
        assert caller.get(path, headers=headers["device"]).status_code == 403
    assert caller.get("/v1/images/" + "0" * 64, headers=headers["operator"]).status_code == 404
    assert caller.get("/v1/models", headers=headers["operator"]).status_code == 200
    assert rows(caller.api.site.store) == []


def test_a_label_and_its_row_are_one_transaction(flagged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, answer, headers = flagged
    label = {
        "image_sha256": answer["image_sha256"],
        "model_sha256": answer["model"]["sha256"],
        "result_id": answer["result_id"],
        "classes": {"pneumonia": True},
        "model_was_right": False,
    }

    def give() -> int:
        return int(caller.request("POST", "/v1/labels", json=label, headers=headers["annotator"]).status_code)

    with monkeypatch.context() as patch:
        patch.setattr("service.labels.note", lambda *_: (_ for _ in ()).throw(Refusal("storage_full")))
        assert give() == 507
    assert ask(caller.api.site, "SELECT count(*) FROM labels") == [(0,)]
    assert give() == 201
    assert give() == 201  # the same once more adds neither label nor row
    assert rows(caller.api.site.store) == [("annotator", "annotator", "label_added", answer["image_sha256"], 1)]
    caller.get(f"/v1/labels?result_id={answer['result_id']}", headers=headers["operator"])
    assert rows(caller.api.site.store, 1) == [("operator", "operator", "labels_read", answer["image_sha256"], 1)]


def test_what_cannot_be_noted_is_not_shown(flagged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, answer, headers = flagged
    paths = (f"/v1/results/{answer['result_id']}", f"/v1/images/{answer['image_sha256']}")
    assert [caller.get(path, headers=headers["operator"]).status_code for path in paths] == [200, 200]

    def full(*_: object, **__: object) -> None:
        raise Refusal("storage_full")

    monkeypatch.setattr(audit, "note", full)
    assert [caller.get(path, headers=headers["operator"]).status_code for path in paths] == [507, 507]


def test_signing_in_is_noted(flagged: Any, tokens: dict[str, str]) -> None:
    caller, _, _ = flagged
    headers = {"x-overread-request": "page"}
    caller.request("POST", "/v1/session", json={"token": tokens["annotator"]}, headers=headers)
    ((name, _, action, _, _),) = rows(caller.api.site.store)
    assert (name, action) == ("annotator", "signed_in")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 2",
        "INSERT OR REPLACE INTO audit VALUES (1, '2026-01-01', 'nobody', 'operator', 'image_read', '', 1)",
    ],
)
def test_rows_are_only_ever_added(store: Any, file: Path, statement: str) -> None:
    for subject in ("a" * 64, "b" * 64):
        Audit(store).read(Who("anna", "annotator"), "image_read", [subject])
    before = rows(store)
    connection = sqlite3.connect(file)
    with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
        connection.execute(statement)
    connection.rollback()
    assert rows(store) == before
    # The control: without the triggers, the statement goes through
    for name in ("update", "delete", "replace"):
        connection.execute(f"DROP TRIGGER audit_no_{name}")
    connection.execute(statement)
    connection.commit()
    connection.close()
    assert rows(store) != before


def test_an_unknown_action_is_refused(store: Any) -> None:
    with store.writing() as connection, pytest.raises(KeyError):
        note(connection, Who("anna", "annotator"), "looked", ["a" * 64])


def test_the_command_lists_rows(store: Any, environment: pytest.MonkeyPatch, capsys: Any) -> None:
    for subject in ("a" * 64, "b" * 64):
        Audit(store).read(Who("anna", "annotator"), "image_read", [subject])
    assert audit.main([]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1:] for line in lines] == [["anna", "annotator", "image_read", each * 64, "1"] for each in "ab"]
    audit.main(["--subject", "b" * 64])
    assert capsys.readouterr().out.count("\n") == 1
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    audit.main(["--since", later])
    assert capsys.readouterr().out == ""
    with pytest.raises(Refusal, match="config_invalid"):
        audit.main(["--subject", "1.2.3"])


def test_the_operations_page_lists_every_action() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    table = page.partition("| action |")[2].partition("\n\n")[0].splitlines()[2:]
    listed = {line.split("|")[1].strip(" `"): line.split("|")[2].strip() for line in table}
    assert listed == ACTIONS
