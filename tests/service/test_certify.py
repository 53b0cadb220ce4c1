"""Certifying from the worklist: only what was drawn at random speaks for accepted scans, one a patient, of one package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from models.certify import HTML, JSON
from models.errors import Refusal
from models.predictor import Predictor
from models.sampling import share_holds
from service.certify import document_of, main
from service.items import DOUBT, RANDOM
from service.random_share import random_share
from service.store import Store
from service.tables import instances, items, kept_images, labels, models, results, verdicts

NOW = datetime.now(UTC)
TARGETS = (0.9, 0.95, 0.05)
SHARE, LIMIT = 0.3, 0.25
"""Of accepted scans that are drawn; doubt from which on a scan is sent to review."""
HARD, FLIPPED = 0.3, 0.9
"""Of scans that an earlier package doubted, and of their labels that are the other one."""
Row = dict[str, Any]
Fill = Callable[..., None]


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@pytest.fixture
def fill(store: Store, predictor: Predictor) -> Fill:
    """Return a function that stores scans: ``fill(site, scans)``, each a dict of what differs from an accepted, drawn one."""
    classes = predictor.card.output.classes

    def fill(site: str, scans: list[Row], sha256: str = predictor.sha256) -> None:
        rows: dict[Any, list[Row]] = {table: [] for table in (results, verdicts, instances, kept_images, items, labels)}
        with store.reading() as connection:
            item = connection.execute(sa.select(sa.func.coalesce(sa.func.max(items.c.id), 0))).scalar_one()
        for number, scan in enumerate(scans):
            image = scan.get("image") or digest(site, number)
            result, chance = digest(image, sha256), scan["chance"]
            loss = min(chance, 1 - chance)
            rows[results].append({
                "id": result, "image_sha256": image, "model_sha256": sha256, "provider": "x", "media_type": "image/png",
                "rows": 9, "columns": 9, "probabilities": dict(zip(classes, (1 - chance, chance), strict=True)),
                "loss_score": loss, "predicted_loss": loss, "loss_percentile": 200 * loss, "domain_distance": 0.0,
                "domain_percentile": 1.0, "entropy": 0.1, "features": b"", "notes": [], "created_at": NOW,
            })  # fmt: skip
            uid = f"1.2.{digest(image)[:8]}" if "patient" in scan else ""
            if uid:
                rows[instances].append({
                    "sop_instance_uid": uid, "image_sha256": image, "first_seen_at": NOW, "patient": scan["patient"],
                })  # fmt: skip
            verdict = scan.get("verdict", "accept")
            rows[verdicts].append({
                "result_id": result, "sop_instance_uid": uid, "triage_sha256": "t", "verdict": verdict,
                "reasons": ["within_limits"], "created_at": NOW, "site": site, "scored_again": scan.get("again", False),
            })  # fmt: skip
            origin = scan.get("origin", RANDOM)
            if origin is None:
                continue
            item += 1
            rows[kept_images].append({
                "image_sha256": image, "rows": 9, "columns": 9, "bytes": 1, "facts": {}, "kept_at": NOW, "expires_at": NOW,
                "removed_at": None,
            })  # fmt: skip
            given = scan.get("labels", [])
            rows[items].append({
                "id": item, "image_sha256": image, "model_name": predictor.card.name, "result_id": result,
                "model_sha256": sha256, "origin": origin, "site": site, "patient": scan.get("patient") or digest("of", image),
                "state": scan.get("state", "done" if given else "open"), "created_at": NOW, "updated_at": NOW,
            })  # fmt: skip
            for place, (reader, kind, standing) in enumerate(given):
                name = digest("label", image, place)
                rows[labels].append({
                    "label_id": name, "item_id": item, "result_id": result, "image_sha256": image, "model_sha256": sha256,
                    "reader": reader, "standing": standing, "kind": "classes", "model_was_right": True, "source": "api",
                    "document": {each: each == kind for each in classes}, "created_at": NOW,
                    "replaces": rows[labels][-1]["label_id"] if standing == "reader" and place and given[place - 1][0] == reader
                    else None,
                })  # fmt: skip
        with store.writing() as connection:
            for table, values in rows.items():
                if values:
                    connection.execute(sa.insert(table), values)

    return fill


def said(kind: str, reader: str = "a", standing: str = "reader") -> tuple[str, str, str]:
    return reader, kind, standing


def simulated(random: np.random.Generator, count: int, classes: tuple[str, ...]) -> list[Row]:
    """Return scans whose label follows from the probability; every drawn and every doubtful one is labelled.

    Three in ten are of a kind at which the model is nearly always wrong, and sure: an earlier package doubted them, this one
    accepts them. No score tells them.
    """
    scans: list[Row] = []
    for chance in random.beta(0.7, 0.7, count):
        hard, drawn = random.random() < HARD, random.random() < SHARE
        kind = (random.random() < chance) != (hard and random.random() < FLIPPED)
        doubtful = min(chance, 1 - chance) >= LIMIT
        kept = DOUBT if doubtful or hard else RANDOM if drawn else None
        verdict = "review" if doubtful else "accept"
        scans.append({
            "chance": float(chance), "verdict": verdict, "origin": kept, "labels": [said(classes[int(kind)])] if kept else [],
        })  # fmt: skip
    return scans


def test_intervals_hold_at_simulated_sites_and_not_if_doubtful_labels_count_as_random(
    store: Store, fill: Fill, predictor: Predictor
) -> None:
    card, sites = predictor.card, [f"site{number}" for number in range(20)]
    chances = np.random.default_rng(99).beta(0.7, 0.7, 200_000)
    chances = chances[np.minimum(chances, 1 - chances) < LIMIT]  # what is accepted
    called = chances >= card.output.findings[0].operating_point
    truth = float(np.where(called, 1 - chances, chances).mean())
    everything = (1 - HARD) * truth + HARD * (truth * (1 - FLIPPED) + (1 - truth) * FLIPPED)
    for number, site in enumerate(sites):
        fill(site, simulated(np.random.default_rng(number), 400, card.output.classes))

    def error(site: str) -> Row:
        share = random_share(store, card, predictor.sha256, site)
        figures = document_of(share, card, predictor.sha256, SHARE, TARGETS)["figures"]
        return next(figure for figure in figures if figure["metric"] == "error")

    found = [error(site) for site in sites]
    assert sum(figure["low"] <= truth <= figure["high"] for figure in found) >= 17
    assert np.mean([figure["value"] for figure in found]) == pytest.approx(truth, abs=0.03)
    with store.writing() as connection:  # the control: what was labelled for being doubtful passes for drawn
        connection.execute(sa.update(items).values(origin=RANDOM))
    wrong = [error(site) for site in sites]
    assert sum(figure["low"] <= everything <= figure["high"] for figure in wrong) <= 3
    assert np.mean([figure["value"] for figure in wrong]) > everything + 0.1


@pytest.mark.dialects
def test_only_the_drawn_of_one_package_and_the_first_scan_of_a_patient(store: Store, fill: Fill, predictor: Predictor) -> None:
    card = predictor.card
    no, yes = card.output.classes
    other = "f" * 64
    with store.writing() as connection:
        row = dict(connection.execute(sa.select(models)).mappings().one())
        connection.execute(sa.insert(models), row | {"sha256": other, "version": "0.0.1"})
    scans = [
        {"chance": 0.1, "labels": [said(no)], "image": "a" * 64},
        {"chance": 0.2, "origin": None},
        {"chance": 0.5, "verdict": "review", "origin": DOUBT, "labels": [said(yes)]},
        {"chance": 0.5, "verdict": "refuse", "origin": DOUBT},
        {"chance": 0.3, "origin": DOUBT, "labels": [said(yes)]},  # flagged by an earlier package, accepted now
        {"chance": 0.1, "origin": None, "patient": "p"},
        {"chance": 0.1, "labels": [said(yes)], "patient": "p"},  # the second of that patient: it would be chosen for its label
        {"chance": 0.1, "again": True, "labels": [said(yes)]},  # scored again for the worklist: no scan of this package
        {"chance": 0.9, "labels": [], "image": "b" * 64},
        {"chance": 0.9, "labels": [said(no), said(yes)], "image": "c" * 64},  # corrected by the same reader
        {"chance": 0.9, "labels": [said(no), said(yes, "b"), said(yes, "c", "adjudicator")], "image": "d" * 64},
        {"chance": 0.9, "labels": [said(no), said(yes, "b")], "state": "adjudicate", "image": "e" * 64},
    ]
    fill("east", scans)
    fill("west", [{"chance": 0.1, "labels": [said(no)]}])
    with store.writing() as connection:  # the same image by another package
        result = dict(connection.execute(sa.select(results).where(results.c.image_sha256 == "a" * 64)).mappings().one())
        connection.execute(sa.insert(results), result | {"id": "other", "model_sha256": other})
        values = {"result_id": "other", "sop_instance_uid": "", "triage_sha256": "t", "verdict": "accept", "reasons": []}
        connection.execute(sa.insert(verdicts), values | {"created_at": NOW, "site": "east", "scored_again": False})
    share = random_share(store, card, predictor.sha256, "east")
    assert {label.file[0]: label.label for label in share.labels} == {"a": no, "c": yes, "d": yes}
    assert len(share.site.rows) == 7
    assert share.drawn == 5
    assert {label.probability for label in share.labels} == {5 / 7}
    assert share.others == {"review": 1, "refuse": 1, "flagged": 1, "again": 1}
    assert len(random_share(store, card, other, "east").site.rows) == 1
    assert random_share(store, card, predictor.sha256, "").site.rows == []


@pytest.mark.dialects
def test_the_report_says_what_it_is_about(
    fill: Fill, predictor: Predictor, tmp_path: Path, package: Path, environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    environment.setenv("OVERREAD_MODELS", str(package))
    environment.setenv("OVERREAD_SITES", "east,west")
    environment.setenv("OVERREAD_KEEP_RANDOM_SHARE", str(SHARE))
    scans = simulated(np.random.default_rng(0), 300, predictor.card.output.classes)
    fill("east", [scan | {"patient": f"secret{number}"} for number, scan in enumerate(scans)])
    arguments = ["--site", "east", "--out", str(tmp_path / "report")]
    assert main(arguments) == 0
    assert "error" in capsys.readouterr().out
    text = (tmp_path / "report" / JSON).read_text()
    document = json.loads(text)
    assert document["model"]["sha256"] == predictor.sha256
    assert document["labels"]["draw"]["by"] == "the worklist's random share"
    assert document["command"].startswith("overread certify worklist --site east --model ")
    assert not any("independent" in note for note in document["notes"])
    assert "Of accepted scans alone" in document["notes"][0]
    assert not any("which does not fit the" in note for note in document["notes"])
    page = (tmp_path / "report" / HTML).read_text()
    assert "Of accepted scans alone" in page
    assert "secret" not in text + page
    assert "1.2." not in text
    environment.setenv("OVERREAD_KEEP_RANDOM_SHARE", "0.9")
    assert main(arguments) == 0
    assert any("which does not fit the" in note for note in json.loads((tmp_path / "report" / JSON).read_text())["notes"])
    for words, code in ((["--site", "north"], "unknown_site"), (["--site", "west"], "too_few_labels"),
                        (["--model", "x"], "unknown_model"), (["--ppv", "2"], "config_invalid")):  # fmt: skip
        with pytest.raises(Refusal) as caught:
            main([*words, "--out", str(tmp_path / "other")])
        assert caught.value.code == code
    fill("west", [{"chance": 0.1, "labels": [said(predictor.card.output.classes[0])]} for _ in range(30)])
    with pytest.raises(Refusal) as caught:
        main(["--site", "west"])
    assert caught.value.code == "one_class"


def test_a_draw_that_does_not_fit_its_share_is_seen() -> None:
    assert share_holds(31, 100, 0.3)
    assert not share_holds(60, 100, 0.3)
    assert share_holds(0, 0, 0.3)
