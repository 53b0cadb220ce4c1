"""Which scans become items, what is kept of them, and what happens where it cannot be kept."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import service.intake
from models.errors import Refusal
from models.imaging import read_image
from service.analysis import Site
from service.outgoing import analyse as analyse_outgoing
from service.pseudonyms import Pseudonyms, read_key
from service.store import Store
from service.telemetry import MISSED
from tests.service.scans import ALL, NONE, ask, scan, take

pytestmark = pytest.mark.dialects

ITEMS = "SELECT origin, site, state, model_name FROM items ORDER BY id"


def kept_files(site: Site) -> list[Path]:
    return sorted(path for path in site.settings.kept.rglob("*") if path.is_file())


def missed(site: Site) -> dict[str, float]:
    text = site.telemetry.exposition()[0].decode()
    lines = [line for line in text.splitlines() if line.startswith("overread_items_missed_total{")]
    counts = {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}
    assert set(counts) == set(MISSED)
    return {reason: number for reason, number in counts.items() if number}


def test_a_scan_for_review_becomes_an_item(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    reply = take(site, scan(1, BurnedInAnnotation="NO"))
    assert reply.judgement.verdict == "review"
    assert ask(site, ITEMS) == [("doubt", "", "open", "tiny")]
    (file,) = kept_files(site)
    sha256 = reply.stored.result["image_sha256"]
    assert file.name == f"{sha256}.png"
    assert file.stat().st_mode & 0o777 == 0o600
    assert {folder.stat().st_mode & 0o777 for folder in (site.settings.kept, file.parent)} == {0o700}
    ((facts, size),) = ask(site, "SELECT facts, bytes FROM kept_images")
    assert size == file.stat().st_size
    assert (facts if isinstance(facts, dict) else json.loads(facts)) == {
        "bits": 16,
        "window": [0, 4095],
        "pixel_spacing_mm": None,
        "modality": "DX",
        "body_part": "CHEST",
        "view": "PA",
        "age_years": 50,
        "phantom": False,
        "burned_in": "no",
    }
    shown = np.asarray(PIL.Image.open(io.BytesIO(file.read_bytes()))).astype(float)
    assert np.abs(shown / 65535 * 4095 - read_image(scan(1)).pixels).max() < 0.05


def test_a_scan_that_is_accepted_does_not(make_site: Callable[..., Site]) -> None:
    site = make_site(**NONE)
    assert take(site, scan(1)).judgement.verdict == "accept"
    assert ask(site, ITEMS) == []
    assert kept_files(site) == []


def test_a_refused_scan_does(make_site: Callable[..., Site]) -> None:
    site = make_site(**NONE | {"refuse_domain_distance": 1e-6})
    assert take(site, scan(1)).judgement.verdict == "refuse"
    assert ask(site, ITEMS) == [("doubt", "", "open", "tiny")]


def test_a_share_of_the_accepted_is_drawn(make_site: Callable[..., Site]) -> None:
    site = make_site(**NONE | {"keep_random_share": 1.0})
    assert take(site, scan(1)).judgement.verdict == "accept"
    assert ask(site, ITEMS) == [("random", "", "open", "tiny")]


def test_the_draw_depends_on_the_image_and_the_secret_alone() -> None:
    one, other = Pseudonyms(bytes(32)), Pseudonyms(bytes(31) + b"\1")
    digests = [f"{number:064x}" for number in range(4000)]
    drawn = [one.drawn(digest, 0.1) for digest in digests]
    assert drawn == [one.drawn(digest, 0.1) for digest in digests]
    assert 320 < sum(drawn) < 480  # 400 expected, four standard deviations of 19
    assert not any(one.drawn(digest, 0.0) for digest in digests)
    assert all(one.drawn(digest, 1.0) for digest in digests)
    assert all(one.drawn(digest, 0.2) for digest, chosen in zip(digests, drawn, strict=True) if chosen)
    assert drawn != [other.drawn(digest, 0.1) for digest in digests]


def test_sending_again_makes_no_second_item(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    for _ in range(2):
        take(site, scan(1))
        take(site, scan(1, SOPInstanceUID="1.2.3"))
    assert len(ask(site, ITEMS)) == len(kept_files(site)) == 1
    before = kept_files(site)[0].stat().st_mtime_ns
    take(site, scan(1))
    assert kept_files(site)[0].stat().st_mtime_ns == before


def test_a_reused_uid_is_for_review_and_kept(make_site: Callable[..., Site]) -> None:
    site = make_site(**NONE)
    take(site, scan(1, SOPInstanceUID="1.2.3"))
    assert take(site, scan(2, SOPInstanceUID="1.2.3")).judgement.reasons == ("uid_reused",)
    assert len(ask(site, ITEMS)) == 1


def test_what_was_answered_before_there_were_items_becomes_one(make_site: Callable[..., Site]) -> None:
    """A verdict that is in the store already is reason enough, so that a missed item is made up for by sending again."""
    body = scan(1)
    site = make_site(**ALL | {"keep_max_bytes": 0})
    take(site, body)
    assert ask(site, ITEMS) == []
    site = make_site(**ALL)
    take(site, body)
    assert len(ask(site, ITEMS)) == 1
    assert len(ask(site, "SELECT * FROM verdicts")) == 1


def test_each_model_has_its_own_item_and_the_pixels_are_kept_once(
    make_site: Callable[..., Site], make_package: Any, package: Path
) -> None:
    site = make_site(**ALL, models=(package, make_package("other")))
    take(site, scan(1))
    take(site, scan(1), model="other")
    assert [row[3] for row in ask(site, ITEMS)] == ["tiny", "other"]
    assert len(kept_files(site)) == 1


def test_an_image_that_was_decoded_in_part_is_kept_whole(make_site: Callable[..., Site]) -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 500), dtype=np.uint8)).save(stream, "JPEG")
    site = make_site(**ALL)
    analysis = site.analyse(service.analysis.Upload(stream.getvalue(), "image/jpeg"), service.analysis.Wanted())
    assert analysis.image.pixels.shape != (600, 500), "or else the case is not met"
    site.conclude(analysis)
    (file,) = kept_files(site)
    assert PIL.Image.open(io.BytesIO(file.read_bytes())).size == (500, 600)


def test_a_part_of_an_image_is_no_item(make_site: Callable[..., Site], segmenter: Path) -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(stream, "PNG")
    site = make_site(**ALL, models=(segmenter,))
    take(site, stream.getvalue(), "image/png", region=(0, 0, 64, 64))
    assert ask(site, ITEMS) == []
    take(site, stream.getvalue(), "image/png")
    assert [row[3] for row in ask(site, ITEMS)] == ["nuclei"]


def test_the_archives_scans_are_items_of_its_site(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL, sites=("east", "west"), pacs_site="west", pacs_results=())
    analyse_outgoing(site, scan(1), lambda *_: None)
    assert ask(site, ITEMS) == [("doubt", "west", "open", "tiny")]
    assert ask(site, "SELECT site FROM verdicts") == [("west",)]


def test_patients_are_pseudonyms(make_site: Callable[..., Site], draw: Any) -> None:
    site = make_site(**ALL)
    take(site, scan(1, "ANNA-77"))
    take(site, scan(2, " ANNA-77 "))
    take(site, scan(3, "ANNA-77", IssuerOfPatientID="EAST"))
    take(site, scan(4, ""))
    take(site, scan(5, ""))
    take(site, draw(6), "image/png")
    first, second, *others = [row[0] for row in ask(site, "SELECT patient FROM items ORDER BY id")]
    assert first == second
    assert len({first, *others}) == 5
    for file in site.settings.state.rglob("*"):
        assert not file.is_file() or b"ANNA" not in file.read_bytes(), file.name


def test_the_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "pseudonym.key"
    key = read_key(file)
    assert len(key) == 32
    assert read_key(file) == key
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    assert read_key(tmp_path / "other.key") != key
    for damaged in ("", "00", "x" * 64, "0" * 62):
        file.write_text(damaged)
        with pytest.raises(Refusal) as caught:
            read_key(file)
        assert caught.value.code == "config_invalid"
        assert file.read_text() == damaged, "a damaged secret is not written over"


# What keeping can meet; the answer is there in each case


def test_a_full_disk_costs_the_item_only(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(**ALL)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(site.loop.kept, "write", fails)
        assert take(site, scan(1)).judgement.verdict == "review"
    assert ask(site, ITEMS) == []
    assert missed(site) == {"disk": 1}
    take(site, scan(1))
    assert len(ask(site, ITEMS)) == 1, "sent again, it is there"


def test_a_fault_in_keeping_costs_the_item_only(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(**ALL)
    monkeypatch.setattr(service.intake, "render", lambda _: 1 / 0)
    assert take(site, scan(1)).judgement.verdict == "review"
    assert (ask(site, ITEMS), missed(site), kept_files(site)) == ([], {"failed": 1}, [])


def test_an_image_that_is_too_large_as_a_whole(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 500), dtype=np.uint8)).save(stream, "JPEG")
    site = make_site(**ALL)

    def fails(_: bytes) -> None:
        raise Refusal("image_too_large")

    monkeypatch.setattr(service.intake, "read_image", fails)
    assert take(site, stream.getvalue(), "image/jpeg").judgement.verdict == "review"
    assert (ask(site, ITEMS), missed(site)) == ([], {"too_large": 1})


def test_no_more_is_kept_than_there_is_room_for(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    take(site, scan(1))
    size = site.loop.items.kept_bytes()
    assert size == kept_files(site)[0].stat().st_size
    site = make_site(**ALL | {"keep_max_bytes": size + size // 2})
    for seed in (2, 3):  # the first does not fit in, though there is room for something
        assert take(site, scan(seed)).judgement.verdict == "review"
    assert missed(site) == {"full": 2}
    assert len(ask(site, ITEMS)) == len(kept_files(site)) == 1
    site = make_site(**ALL | {"keep_max_bytes": size})
    take(site, scan(4))
    assert (missed(site), len(kept_files(site))) == ({"full": 1}, 1)


def test_a_commit_that_fails_leaves_no_file(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(**ALL)
    with monkeypatch.context() as patch:
        patch.setattr(site.loop.items, "add", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take(site, scan(1))
    assert kept_files(site) == []
    assert ask(site, "SELECT * FROM results") == [], "the item is in the transaction of its result"


def test_a_file_that_went_before_the_commit(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    analysis = site.analyse(service.analysis.Upload(scan(1), "application/dicom"), service.analysis.Wanted())
    kept_files(site)[0].unlink()
    assert site.conclude(analysis).judgement.verdict == "review"
    assert (ask(site, ITEMS), missed(site)) == ([], {"failed": 1})


def test_the_file_is_there_before_the_row(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(**ALL)
    steps: list[str] = []
    write, record = site.loop.kept.write, Store.record
    monkeypatch.setattr(site.loop.kept, "write", lambda *given: (write(*given), steps.append("file")))
    monkeypatch.setattr(Store, "record", lambda *given: (steps.append("row"), record(*given))[1])
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (steps.append("sync"), fsync(number))[1])
    take(site, scan(1))
    assert steps == ["sync", "sync", "file", "row"], "the file's content and its name are on disk"
