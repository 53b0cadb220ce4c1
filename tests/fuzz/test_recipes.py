"""What the fuzzer has found, and what it must be able to find: each recipe is made again and given to its target."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from models.errors import Refusal
from service import related, wall
from tests.fuzz import targets
from tests.fuzz.recipes import LONGEST, MOST_BYTES, MOST_EDITS, Recipe, recipe_of
from tests.fuzz.sources import MAKERS, places, sources
from tests.fuzz.targets import check

RECIPES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("recipes.json").read_text())


def damaged(kept: dict[str, Any], folder: Path | None = None) -> bytes:
    recipe = Recipe(kept["source"], tuple(tuple(edit) for edit in kept["edits"]))
    return recipe.apply(sources(kept["target"], folder)[recipe.source])


def first(target: str, source: str) -> bytes:
    return next(damaged(kept) for kept in RECIPES if (kept["target"], kept["source"]) == (target, source))


@pytest.mark.parametrize("kept", RECIPES, ids=lambda kept: f"{kept['target']}-{kept['source']}-{kept['came']}")
def test_what_was_found_is_mended(kept: dict[str, Any], request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("data_root") / "dicom" if kept["source"].startswith("real/") else None
    assert check(kept["target"], damaged(kept, folder)) == kept["came"]


@pytest.mark.parametrize("target", ["form", "related"])
def test_a_broken_body_is_not_logged(target: str, caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("python_multipart")
    broken = sources(target)["form" if target == "form" else "one"].replace(b"Content-", b"Con\x00tent-")
    assert check(target, broken) == "bad_request"
    assert caplog.records == []
    library.setLevel(logging.WARNING)  # the control: the library would say which byte was wrong
    with contextlib.suppress(FormParserError):
        MultipartParser(b"edge").write(broken.partition(b"\n")[2])
    assert caplog.records != []


def test_recipes_hold_no_part_of_an_image() -> None:
    for kept in RECIPES:
        assert len(kept["edits"]) <= MOST_EDITS
        for kind, _, value in kept["edits"]:
            assert isinstance(value, int) or (kind in {"overwrite", "insert"} and len(bytes.fromhex(value)) <= MOST_BYTES)


@pytest.mark.parametrize("target", MAKERS)
def test_undamaged_sources_are_taken(target: str) -> None:
    """Control of the targets: they see more than refusals."""
    came = {name: check(target, data) for name, data in sources(target).items()}
    assert set(came.values()) <= {"image", "upload", "stored", "multi_frame", "empty_body"}, came
    assert list(came.values()).count("multi_frame") <= 1


@pytest.mark.parametrize("target", MAKERS)
def test_any_bytes_of_the_fuzzer_are_a_recipe(target: str) -> None:
    found = sources(target)
    where = {name: places(data, target) for name, data in found.items()}
    random = np.random.default_rng(3)
    used = set()
    for _ in range(300):
        program = random.bytes(int(random.integers(0, LONGEST + 1)))
        recipe = recipe_of(program, found, where)
        data = recipe.apply(found[recipe.source])
        assert len(recipe.edits) <= MOST_EDITS
        assert recipe_of(program, found, where).apply(found[recipe.source]) == data
        kept = json.loads(json.dumps({"target": target, "source": recipe.source, "edits": recipe.edits}))
        assert damaged(kept) == data
        used |= {recipe.source, *(kind for kind, *_ in recipe.edits)}
    assert used >= {*found, "overwrite", "insert", "delete", "repeat", "truncate"}


@pytest.mark.parametrize("source", ["big_endian", "run_lengths", "looked_up", "picture"])
def test_a_planted_escape_is_found(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: what the readers raise on these bytes would be seen if nothing turned it into a refusal."""
    monkeypatch.setattr("models.imaging.refusing", contextlib.nullcontext)
    with pytest.raises(Exception) as raised:  # each reader raises its own
        check("image", first("image", source))
    assert not isinstance(raised.value, Refusal)


def test_planted_slowness_and_waste_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes) -> str:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        return "image"

    def wasteful(data: bytes) -> str:
        np.ones(80_000_000)
        return "image"

    monkeypatch.setitem(targets.TARGETS, "image", slow)
    with pytest.raises(AssertionError, match="took"):
        check("image", b"", seconds=0.2)
    monkeypatch.setitem(targets.TARGETS, "image", wasteful)
    with pytest.raises(AssertionError, match="MB"):
        check("image", b"")


def test_a_planted_hole_in_the_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wall, "IMAGE_TYPES", (*wall.IMAGE_TYPES, "text/html"))
    with pytest.raises(AssertionError):
        check("form", first("form", "form"))


def test_a_planted_loss_between_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(self: Any, data: bytes, start: int, end: int) -> None:
        self._value = data[start:end]

    monkeypatch.setattr(related.RelatedParts, "_header_value", forgets)
    with pytest.raises(AssertionError, match="in pieces"):
        check("related", first("related", "three"))
