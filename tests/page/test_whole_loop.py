"""The whole loop, on real images and in a real browser, with everything in it killed once.

A model that knows one hospital meets another one: its scans go in by HTTP, the doubtful ones come into the worklist, a script
reads them in the page, the labels leave as a package, a short training takes them in, and what comes of it is compared, promoted,
and scores what still waits. It shows that the parts fit and that none loses anything, not how good the model becomes: it learns
for seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from models.card import ModelCard, read_package
from models.comparison import read_comparison
from models.label_package import read_label_package
from service.tokens import add_token
from tests.page.conftest import Place
from tests.page.loop_steps import (
    ABOUT,
    CLASSES,
    HOME,
    NAME,
    NEW,
    Commands,
    Row,
    Service,
    read_rows,
    seed_for,
    take,
    until,
    write_folder,
    write_spec,
)
from tests.ports import free_port

LEASE = "**/v1/worklist/lease"
GONE = ("Failed to load resource: net::ERR_CONNECTION_", "Failed to load resource: net::ERR_EMPTY_RESPONSE")
REASON = "a drill of the whole loop"
SCANS, HELD_OUT = 30, 40
"""Of each class, from the new hospital: sent, and of other patients of it, compared on."""


@dataclass
class Walk:
    """What the steps hand on."""

    folder: Path
    data: Path
    rows: list[Row]
    commands: Commands
    service: Service
    tokens: dict[str, str]
    ask: Callable[[Path, str], list[tuple[Any, ...]]]
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    truth: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        assert self.service.server is not None
        return Place(self.service.server, self.tokens)

    @property
    def recipe(self) -> tuple[object, ...]:
        """What both trainings are given."""
        kind = ("--classes", *CLASSES, "--finding", CLASSES[1], "--input", self.folder / "spec.json")
        return ("--data", self.folder / "home", "--domains", HOME, *kind, "--epochs", 2)

    def stored(self, sql: str) -> list[tuple[Any, ...]]:
        return self.ask(self.service.state, sql)

    def worklist(self) -> dict[str, Any]:
        return dict(self.service.ask("/v1/worklist?budget=200", self.tokens["operator"]))


@pytest.fixture
def walk(tmp_path: Path, data_root: Path, ask: Any) -> Iterator[Walk]:
    """A base model of one hospital, made as docs/training.md says, and the service of another one that is about to start."""
    rows = read_rows(data_root)
    roles = {"ct": "device", "ada": "annotator", "operator": "operator"}
    tokens = {name: add_token(tmp_path / "state" / "tokens.json", name, role) for name, role in roles.items()}
    settings = {"OVERREAD_SITES": NEW, "OVERREAD_THREADS": "1"}
    package = tmp_path / "packages" / NAME
    service = Service(package, tmp_path / "state", free_port(), settings, tmp_path / "service.log")
    commands = Commands(service.environment, tmp_path / "commands.log")
    walk = Walk(tmp_path, data_root, rows, commands, service, tokens, ask)
    home = write_folder(tmp_path / "home", data_root, take(rows, HOME, 150))
    write_spec(tmp_path / "spec.json")
    commands.train(tmp_path / "base", *walk.recipe)
    commands.measured(tmp_path / "base", "--data", home, kill=False)
    words = ("release", tmp_path / "base", "--name", NAME, "--version", "1.0.0", "--about", ABOUT, "--out", tmp_path / "packages")
    commands.killed_and_again(*words, at=NAME)
    yield walk
    service.stop()


@pytest.mark.timeout(1800)
def test_the_whole_loop(walk: Walk, sign_in: Callable[..., Page]) -> None:
    walk.service.start()
    send_scans(walk)
    check_what_is_flagged(walk)
    page = sign_in(walk.place, "ada", allowed=GONE)
    labelled = read_and_label(page, walk)
    package = export_labels(walk, labelled)
    candidate = train_again(walk, package, labelled)
    promote(walk, candidate)
    score_again(walk, candidate, page, labelled)


def send_scans(walk: Walk) -> None:
    """Send every scan; the service is killed half way, and every scan is sent again, as by a device that does not know better."""
    rows, place = take(walk.rows, NEW, SCANS), walk.place
    bodies = [(walk.data / "cxr" / row["image"]).read_bytes() for row in rows]
    before = [place_send(walk, body) for body in bodies[: len(bodies) // 2]]
    walk.service.kill()
    walk.service.start()
    assert place.url == walk.place.url
    after = [place_send(walk, body) for body in bodies]
    assert after[: len(before)] == before
    walk.answers = {answer["image_sha256"]: answer for answer in after}
    walk.truth = {answer["image_sha256"]: row["label"] for answer, row in zip(after, rows, strict=True)}
    assert len(walk.answers) == 2 * SCANS
    assert walk.stored(f"SELECT count(*) FROM verdicts WHERE site = '{NEW}'") == [(2 * SCANS,)]


def place_send(walk: Walk, body: bytes) -> dict[str, Any]:
    """Send a scan as the new hospital's device does."""
    return Place(walk.place.server, walk.tokens | {"device": walk.tokens["ct"]}).send(body, "image/jpeg", site=NEW)


def check_what_is_flagged(walk: Walk) -> None:
    """The worst are in the worklist, and only they: those beyond a limit of the card, and the random share of the others."""
    card = read_package(walk.service.package)[0]
    assert isinstance(card, ModelCard)
    limits, answers = card.triage, list(walk.answers.values())

    def beyond(answer: dict[str, Any]) -> bool:
        worst = answer["loss_percentile"] >= limits.review_loss_percentile
        return bool(worst or answer["domain_percentile"] >= limits.review_domain_percentile)

    flagged = {answer["image_sha256"] for answer in answers if answer["verdict"] != "accept"}
    assert flagged == {answer["image_sha256"] for answer in answers if beyond(answer)}
    assert {row[0] for row in walk.stored("SELECT image_sha256 FROM items WHERE origin = 'doubt'")} == flagged
    usual = {each.metric: each.value or 0.0 for each in card.evaluation if each.domain == HOME and each.subgroup == "all"}
    at_home = usual["share_review"] + usual["share_refuse"]
    assert len(flagged) / len(answers) > at_home, "at the new hospital more is flagged than among held-out patients at home"
    items = [item for item in walk.worklist()["items"] if item["origin"] == "doubt"]
    assert items[0]["loss_percentile"] == max(walk.answers[sha256]["loss_percentile"] for sha256 in flagged)


def read_and_label(page: Page, walk: Walk) -> dict[str, str]:
    """Read what the list offers, by keys and by mouse in turns; the service is killed while a label is being saved."""
    given: dict[str, str] = {}
    sha256 = read_first(page)["image_sha256"]
    while not enough(given):
        page.locator(".reading:not([aria-busy])").wait_for()
        label = walk.truth[sha256]
        if len(given) % 2:
            page.keyboard.press(str(CLASSES.index(label) + 1))
        else:
            page.get_by_role("radio", name=label).click()
        expect(page.get_by_role("radio", name=label)).to_be_checked()
        if len(given) == 4:
            walk.service.kill()
            page.keyboard.press("Enter")
            expect(page.get_by_text("The service does not answer.")).to_be_visible()
            walk.service.start()
        with page.expect_response(LEASE) as leased, page.expect_response("**/v1/labels") as saved:
            page.keyboard.press("Enter")
        given[sha256], sha256 = label, leased.value.json()["item"]["image_sha256"]
        assert saved.value.status == 201
    page.locator(".reading:not([aria-busy])").wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    assert all(list(given.values()).count(name) >= 3 for name in CLASSES), "each split needs one of each class"
    assert walk.stored("SELECT count(*) FROM labels WHERE source = 'page' AND reader = 'ada'") == [(len(given),)]
    assert walk.stored("SELECT count(*) FROM leases") == [(0,)]
    return given


def read_first(page: Page) -> dict[str, Any]:
    """Take the first of the list; return the item."""
    with page.expect_response(LEASE) as leased:
        page.get_by_role("button", name="Read the first one").click()
    item = dict(leased.value.json()["item"])
    page.locator(".reading:not([aria-busy])").wait_for()
    return item


def enough(given: dict[str, str]) -> bool:
    """Tell whether there are labels enough to train on."""
    fewest = min(list(given.values()).count(name) for name in CLASSES)
    return len(given) >= 20 or (len(given) >= 12 and fewest >= 4)


def export_labels(walk: Walk, labelled: dict[str, str]) -> Path:
    """Write the label package, killed before it is there; a second one of the same labels is the same."""
    out = walk.folder / "labels"
    assert walk.commands.code("labels", "export", "--out", out, fatal=out.name) == -signal.SIGKILL
    assert not out.exists(), "there is none, rather than half of one"
    walk.commands.run("labels", "export", "--out", out)
    walk.commands.run("labels", "export", "--out", walk.folder / "again")
    package, again = read_label_package(out), read_label_package(walk.folder / "again")
    assert package.sha256 == again.sha256
    assert {each.image_sha256: each.label for each in package.labels.images} == labelled
    assert {each.domain for each in package.labels.images} == {NEW}
    return out


def train_again(walk: Walk, labels: Path, labelled: dict[str, str]) -> Path:
    """Train on what was learnt before and the labels, compare with the package in use, and release; all of it killed once."""
    commands, run, out = walk.commands, walk.folder / "candidate", walk.folder / "newer"
    weights, seed = ("--weights", walk.folder / "base" / "model.pt"), ("--seed", seed_for(labels / "manifest.csv"))
    commands.train(run, *walk.recipe, "--labels", labels, *weights, *seed)
    commands.measured(run, "--data", walk.folder / "home", "--labels", labels, kill=True)
    sent = {row["patient"] for row in take(walk.rows, NEW, SCANS)}
    rows = take(walk.rows, NEW, HELD_OUT, skip=SCANS)
    assert sent.isdisjoint(row["patient"] for row in rows)
    held_out = write_folder(walk.folder / "held-out", walk.data, rows)
    words = ("release", run, "--name", NAME, "--version", "1.1.0", "--about", ABOUT, "--current", walk.service.package)
    # What it has learnt from is no evidence: one labelled image of those among the others does not count, or ends the comparison
    learnt = json.loads((run / "evaluation.json").read_text())["seen"]["images"]
    known = next(row for row in take(walk.rows, NEW, SCANS) if image_of(walk, row)[: len(learnt[0])] in learnt)
    assert image_of(walk, known) in labelled
    leaky = write_folder(walk.folder / "leaky", walk.data, [*rows, known])
    commands.code(*words, "--compare", leaky, "--out", out, fatal=NAME)
    assert "was made from" in commands.said() or json.loads((run / "comparison.json").read_text())["left_out"] > 0
    words = (*words, "--compare", held_out, "--out", out)
    code = commands.code(*words, fatal=NAME)
    assert not (out / NAME).exists()
    if code == 2:  # refused: there is no package unless somebody says why
        assert "candidate_worse" in commands.said() or "--accept-worse releases it" in commands.said()
        words = (*words, "--accept-worse", REASON)
        code = commands.code(*words, fatal=NAME)
    assert code == -signal.SIGKILL, commands.said()
    commands.run(*words)
    comparison = read_comparison(out / NAME)
    assert comparison is not None
    assert {each.patients for each in comparison.differences} == {2 * HELD_OUT}
    assert comparison.left_out == 0
    assert comparison.accepted == (REASON if comparison.worse else None)
    card = read_package(out / NAME)[0]
    assert card.training.config["labels_sha256"] == read_label_package(labels).sha256
    return out / NAME


def image_of(walk: Walk, row: Row) -> str:
    """Return what the service calls the image of a row."""
    return hashlib.sha256((walk.data / "cxr" / row["image"]).read_bytes()).hexdigest()


def promote(walk: Walk, candidate: Path) -> None:
    """Promote while the service answers; killed before the copy is there, everything is as it was."""
    commands, comparison = walk.commands, read_comparison(candidate)
    assert comparison is not None
    stranger = walk.folder / "uncompared"
    shutil.copytree(candidate, stranger)
    (stranger / "comparison.json").unlink()
    assert commands.code("promote", stranger) == 2, "without a comparison it is refused"
    words: tuple[object, ...] = ("promote", candidate)
    if comparison.worse:  # somebody said why it is released; why it is promoted has to be said too
        assert commands.code(*words) == 2
        words = (*words, "--reason", REASON)
    sha256 = read_package(candidate)[2]
    assert commands.code(*words, fatal=sha256) == -signal.SIGKILL
    assert walk.stored(f"SELECT count(*) FROM promotions WHERE model_sha256 = '{sha256}'") == [(0,)]
    assert serving(walk) == "1.0.0"
    commands.run(*words)


def serving(walk: Walk) -> str:
    """Return the version that answers."""
    return str(walk.service.ask("/v1/models", walk.tokens["operator"])["models"][0]["version"])


def score_again(walk: Walk, candidate: Path, page: Page, labelled: dict[str, str]) -> None:
    """What waits is scored by the new package; the service is killed in the middle of it, and no list mixes the two."""
    sha256 = read_package(candidate)[2]
    scored = f"SELECT count(*) FROM items WHERE state = 'open' AND model_sha256 = '{sha256}'"
    waiting = walk.stored("SELECT count(*) FROM items WHERE state = 'open'")[0][0]
    assert waiting > 5
    lists: list[dict[str, Any]] = []

    def begun() -> bool:
        lists.append(walk.worklist())
        return walk.stored(scored) != [(0,)]

    until("the new package answers, and scores an item", begun)
    walk.service.kill()
    assert 0 < walk.stored(scored)[0][0] < waiting, "it is killed in the middle"
    walk.service.start()
    assert serving(walk) == "1.1.0"

    def all_scored() -> bool:
        lists.append(walk.worklist())
        return not lists[-1]["waiting_for_scores"]

    until("every item is scored again", all_scored)
    assert not any(mixed(each) for each in lists)
    assert mixed(lists[-1] | {"items": [*lists[-1]["items"], {"model": {"sha256": "0" * 64}}]}), "it would be seen"
    assert lists[-1]["model_sha256"] == sha256
    assert walk.stored(scored) == [(waiting,)]
    done = walk.stored(f"SELECT image_sha256 FROM items WHERE state = 'done' AND model_sha256 != '{sha256}'")
    assert {row[0] for row in done} == set(labelled), "what was labelled stays with the package that its reader was shown"
    page.reload()
    assert read_first(page)["model"]["version"] == "1.1.0"


def mixed(found: dict[str, Any]) -> bool:
    """Tell whether a list holds scores of another package than its own."""
    return any(item["model"]["sha256"] != found["model_sha256"] for item in found["items"])
