"""What the service does by itself: items are scored again after a promotion, and what is over is removed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import service.upkeep
from models.card import ModelCard, card_bytes
from models.errors import Refusal
from service.analysis import Site
from service.upkeep import Upkeep
from tests.conftest import tiny_card, tiny_graph
from tests.service.scans import ALL, NONE, ask, scan, take

pytestmark = pytest.mark.dialects

STATES = "SELECT state FROM items ORDER BY id"


@pytest.fixture(scope="module")
def newer(make_package: Callable[..., Path]) -> Path:
    """A package of the same name, whose predicted losses are others."""
    return make_package("tiny", poison=1.7)


def strict(folder: Path, **spec: Any) -> Path:
    """Write a package of the same name that takes less."""
    graph = tiny_graph(poison=2.0)
    card: ModelCard = tiny_card(graph)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(graph)
    (folder / "card.json").write_bytes(card_bytes(card.model_copy(update={"input": card.input.model_copy(update=spec)})))
    return folder


def waiting(site: Site) -> int:
    predictor = site.predictor(None)
    return site.loop.worklist.counts(predictor.card.name, predictor.sha256)["waiting_for_scores"]


def files(site: Site) -> list[Path]:
    return sorted(path for path in site.settings.kept.rglob("*") if path.is_file())


def orphan_of(site: Site) -> Path:
    """Write a file that nothing names, as a crash between the file and its row leaves one."""
    site.loop.kept.write("0" * 64, b"x")
    return site.settings.kept / "00" / f"{'0' * 64}.png"


def test_items_get_the_results_of_the_package_that_is_current_now(
    make_site: Callable[..., Site], newer: Path, tmp_path: Path, draw: Any, file: Path
) -> None:
    scans = [
        scan(1, "A", WindowCenter=2048, WindowWidth=4096),
        scan(2, "B", PhotometricInterpretation="MONOCHROME1"),
        scan(3, "C"),
    ]
    before = make_site(**ALL, sites=("east",))
    for body in scans:
        take(before, body, site="east")
    take(before, draw(4), "image/png")
    old = ask(before, "SELECT result_id FROM items ORDER BY id")
    site = make_site(**ALL, sites=("east",), models=(newer,))
    assert waiting(site) == 4
    assert site.loop.worklist.choose(site.predictor(None).sha256, "anna", 9) == []
    assert Upkeep(site).score_again() == 4
    assert waiting(site) == 0
    assert len(site.loop.worklist.choose(site.predictor(None).sha256, "anna", 9)) == 4
    new = ask(site, "SELECT result_id FROM items ORDER BY id")
    assert not set(new) & set(old)
    # Another installation of the newer package that gets the files themselves says the same
    other = make_site(**ALL, models=(newer,), state=tmp_path / "other")
    sent = [take(other, body) for body in scans] + [take(other, draw(4), "image/png")]
    for (key,), reply in zip(new, sent, strict=True):
        found, told = site.store.find(key), site.store.verdict(key)
        assert found is not None
        assert told is not None
        assert key == reply.stored.result["id"]
        for name in ("predicted_loss", "domain_distance", "loss_score"):
            assert found.result[name] == pytest.approx(reply.stored.result[name], abs=1e-3)
        for name in ("image_sha256", "rows", "columns", "media_type", "notes"):
            assert found.result[name] == reply.stored.result[name]
        assert told == (reply.uid, reply.judgement)
    assert ask(site, "SELECT DISTINCT site FROM items WHERE patient != ''") == [("east",), ("",)]


def test_it_is_scored_even_where_it_would_be_accepted_now(make_site: Callable[..., Site], newer: Path) -> None:
    take(make_site(**ALL), scan(1))
    site = make_site(**NONE, models=(newer,))
    assert Upkeep(site).score_again() == 1
    assert ask(site, "SELECT state, origin FROM items") == [("open", "doubt")]
    key = ask(site, "SELECT result_id FROM items")[0][0]
    assert site.result(key, "").judgement.verdict == "accept"


def test_scans_that_nobody_sent_are_not_counted(make_site: Callable[..., Site], newer: Path) -> None:
    take(make_site(**ALL), scan(1))
    site = make_site(**ALL, models=(newer,))
    Upkeep(site).score_again()
    text = site.telemetry.exposition()[0].decode()
    assert 'overread_items_rescored_total{outcome="ok"} 1.0' in text
    assert "overread_verdicts_total{" not in text


def test_done_items_keep_what_the_reader_was_shown(make_site: Callable[..., Site], newer: Path) -> None:
    before = make_site(**ALL)
    for seed in range(3):
        take(before, scan(seed))
    ask(before, "UPDATE items SET state = CASE id WHEN 1 THEN 'done' WHEN 2 THEN 'adjudicate' ELSE 'open' END")
    site = make_site(**ALL, models=(newer,))
    assert Upkeep(site).score_again() == 2
    assert ask(site, STATES) == [("done",), ("adjudicate",), ("open",)]
    current = site.predictor(None).sha256
    assert [row[0] == current for row in ask(site, "SELECT model_sha256 FROM items ORDER BY id")] == [False, True, True]


def test_an_item_that_is_done_meanwhile_stays_as_it_was(make_site: Callable[..., Site], newer: Path) -> None:
    body = scan(1)
    before = make_site(**ALL)
    take(before, body)
    site = make_site(**ALL, models=(newer,))
    analysis = site.analyse(service.analysis.Upload(body, "application/dicom"), service.analysis.Wanted())
    shown = ask(site, "SELECT result_id, model_sha256 FROM items")
    ask(site, "UPDATE items SET state = 'done'")
    site.conclude(analysis)
    assert ask(site, "SELECT result_id, model_sha256 FROM items") == shown


@pytest.mark.parametrize("spec", [{"views": ("LL",)}, {"body_parts": ("HEAD",)}, {"age_years": (60, 90)}, {"min_side": 81}])
def test_what_the_newer_package_does_not_take_is_withdrawn(
    make_site: Callable[..., Site], tmp_path: Path, spec: dict[str, Any], package: Path
) -> None:
    before = make_site(**ALL)
    take(before, scan(1))
    before.loop.leases.take("anna", before.predictor(None).sha256, [1])
    site = make_site(**ALL, models=(strict(tmp_path / "strict", **spec),))
    assert Upkeep(site).score_again() == 1
    assert ask(site, STATES) == [("withdrawn",)]
    assert ask(site, "SELECT count(*) FROM leases") == [(0,)]
    # A package that takes it again, and the scan once more: the item is back
    site = make_site(**ALL, models=(package,))
    take(site, scan(1))
    assert ask(site, STATES) == [("open",)]


def test_an_item_that_cannot_be_scored_does_not_hold_up_the_others(make_site: Callable[..., Site], newer: Path) -> None:
    before = make_site(**ALL)
    for seed in range(3):
        take(before, scan(seed))
    files(before)[0].write_bytes(b"damaged")
    site = make_site(**ALL, models=(newer,))
    upkeep = Upkeep(site)
    assert upkeep.score_again() == 3
    assert waiting(site) == 1
    assert upkeep.score_again() == 0, "it is not tried for ever"
    assert Upkeep(site).score_again() == 1, "a new start tries it again"


def test_it_goes_on_after_it_was_cut_off(make_site: Callable[..., Site], newer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_site(**ALL)
    for seed in range(3):
        take(before, scan(seed))
    site = make_site(**ALL, models=(newer,))
    again, done = site.score_again, []

    def cut_off(*given: Any) -> None:
        if done:
            raise Refusal("storage_unavailable")
        done.append(again(*given))

    monkeypatch.setattr(site, "score_again", cut_off)
    with pytest.raises(Refusal):
        Upkeep(site).score_again()
    assert waiting(site) == 2
    monkeypatch.undo()
    assert Upkeep(site).score_again() == 2
    assert waiting(site) == 0


def test_requests_come_first(make_site: Callable[..., Site], newer: Path) -> None:
    take(make_site(**ALL), scan(1))
    site = make_site(**ALL, models=(newer,), threads=2)  # a thread is free, and yet it waits
    release = threading.Event()
    held = site.engine._admit(lambda: release.wait(60), site.engine._release)
    upkeep = Upkeep(site)
    worker = threading.Thread(target=upkeep.score_again)
    worker.start()
    time.sleep(0.3)
    assert waiting(site) == 1
    release.set()
    held.result()
    worker.join(60)
    assert waiting(site) == 0


def test_sweeps_do_not_wait_for_a_busy_engine(
    make_site: Callable[..., Site], newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.upkeep, "SWEEP_SECONDS", 0.1)
    take(make_site(**ALL), scan(1))
    site = make_site(**ALL, models=(newer,))
    release = threading.Event()
    held = site.engine._admit(lambda: release.wait(60), site.engine._release)
    upkeep = Upkeep(site)
    assert upkeep.score_again() == 0
    assert not held.done(), "it did not wait"
    release.set()
    held.result()
    monkeypatch.undo()
    assert upkeep.score_again() == 1, "the next round goes on"


def test_stopping_does_not_wait_for_a_busy_engine(make_site: Callable[..., Site], newer: Path) -> None:
    take(make_site(**ALL), scan(1))
    site = make_site(**ALL, models=(newer,))
    release = threading.Event()
    site.engine._admit(lambda: release.wait(60), site.engine._release)
    upkeep = Upkeep(site)
    upkeep.start()
    upkeep.close()
    release.set()
    assert waiting(site) == 1


def test_one_worker_at_a_time(make_site: Callable[..., Site]) -> None:
    first, second = (make_site().store for _ in range(2))
    with first.claimed("upkeep") as mine, second.claimed("upkeep") as too:
        assert (mine, too) == (True, False)


def later(site: Site, days: float) -> datetime:
    assert site.settings.keep_days == 30
    return datetime.now(UTC) + timedelta(days=days)


def test_pixels_are_kept_for_a_time(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    for seed in range(3):
        take(site, scan(seed))
    ask(site, "UPDATE items SET state = 'done' WHERE id = 3")
    site.loop.leases.take("anna", site.predictor(None).sha256, [2])
    assert site.loop.items.expire(later(site, 29.9), 50) == 0
    assert len(files(site)) == 3
    assert site.loop.items.expire(later(site, 30.1), 2) == 2
    assert site.loop.items.expire(later(site, 30.1), 50) == 1
    assert files(site) == []
    assert ask(site, STATES) == [("expired",), ("expired",), ("done",)], "a label stays"
    assert ask(site, "SELECT count(*) FROM leases") == [(0,)]
    assert site.loop.items.kept_bytes() == 0


def test_a_scan_that_comes_again_after_its_time(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    take(site, scan(1))
    site.loop.items.expire(later(site, 31), 50)
    take(site, scan(1))
    assert ask(site, STATES) == [("open",)]
    assert len(files(site)) == 1
    assert site.loop.items.kept_bytes() == files(site)[0].stat().st_size


def test_a_sweep_removes_what_a_crash_left(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    for seed in range(2):
        take(site, scan(seed))
    named, gone = files(site)
    orphan, part = orphan_of(site), named.with_name("x.partial")
    part.write_bytes(b"x")
    gone.unlink()
    Upkeep(site).sweep()
    assert {orphan, part, named} <= set(files(site)), "they may belong to a commit that is under way"
    assert sorted(row[0] for row in ask(site, STATES)) == ["expired", "open"], "an item without its pixels is over"
    hour_ago = time.time() - service.upkeep.GRACE_SECONDS - 1
    for file in (orphan, part, named):
        os.utime(file, (hour_ago, hour_ago))
    upkeep = Upkeep(site)
    upkeep.sweep()
    assert files(site) == [named]
    orphan.write_bytes(b"x")
    os.utime(orphan, (hour_ago, hour_ago))
    upkeep.sweep()
    assert orphan.exists(), "it looks once an hour"


def test_expiring_and_keeping_at_once(make_site: Callable[..., Site]) -> None:
    """Pixels that are removed between the analysis and its commit are missed there, in the transaction."""
    site = make_site(**ALL)
    take(site, scan(1))
    ask(site, "DELETE FROM items")
    analysis = site.analyse(service.analysis.Upload(scan(1), "application/dicom"), service.analysis.Wanted())
    site.loop.items.expire(later(site, 31), 50)
    assert site.conclude(analysis).judgement.verdict == "review"
    assert ask(site, "SELECT count(*) FROM items") == [(0,)]
    live = ask(site, "SELECT count(*) FROM kept_images WHERE removed_at IS NULL")
    assert (live, files(site)) == ([(0,)], [])


def test_the_thread_does_both(make_site: Callable[..., Site], newer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.upkeep, "ROUND_SECONDS", 0.01)
    take(make_site(**ALL), scan(1))
    site = make_site(**ALL, models=(newer,))
    hour_ago = time.time() - 4000
    orphan = orphan_of(site)
    os.utime(orphan, (hour_ago, hour_ago))
    upkeep = Upkeep(site)
    upkeep.start()
    end = time.monotonic() + 60
    while (waiting(site) or orphan.exists()) and time.monotonic() < end:
        time.sleep(0.02)
    upkeep.close()
    assert (waiting(site), orphan.exists()) == (0, False)
