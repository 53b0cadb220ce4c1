"""``docs/README.md`` leads to every page once, under its kind, and no link of any page is dead."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("Learn it", "Get something done", "Look something up", "Know why")
"""Tutorial, how-tos, reference, explanation."""
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[tuple[Path, str]]:
    """Return where a page's relative links lead: file, and the heading's anchor or ""."""
    found = []
    for target in LINK.findall(without_code(page)):
        path, _, anchor = target.partition("#")
        found.append(((page.parent / path).resolve() if path else page.resolve(), anchor))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def pages(root: Path) -> list[Path]:
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def dead(root: Path) -> list[str]:
    """Return the links that lead nowhere, with the page that holds each."""
    return [
        f"{page.relative_to(root)}: {target.name}{'#' + anchor if anchor else ''}"
        for page in pages(root)
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]


def indexed(root: Path) -> dict[str, Counter[Path]]:
    """Return, for each kind of page, how often the index links each file."""
    text = (root / "docs" / "README.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    folder = root / "docs"
    return {
        kind: Counter((folder / target.partition("#")[0]).resolve() for target in LINK.findall(part))
        for kind, part in zip(parts[1::2], parts[2::2], strict=True)
    }


def misplaced(root: Path) -> set[str]:
    """Return the pages that the index links not at all, or more than once."""
    counts = sum(indexed(root).values(), Counter())
    docs = root / "docs"
    expected = {page.resolve() for page in [*docs.glob("*.md"), *docs.glob("*/README.md")]} - {(docs / "README.md").resolve()}
    return {page.name for page in expected if counts[page] != 1}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the pages and of the files that they link, for faults to be planted in."""
    for page in pages(ROOT):
        for file in [page, *(target for target, _ in links(page) if target.is_file())]:
            place = tmp_path / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        for folder in [target for target, _ in links(page) if target.is_dir()]:
            (tmp_path / folder.relative_to(ROOT)).mkdir(parents=True, exist_ok=True)
    return tmp_path


def test_every_link_leads_somewhere() -> None:
    assert dead(ROOT) == []


def test_every_page_is_linked_once_under_its_kind() -> None:
    assert tuple(indexed(ROOT)) == KINDS
    assert misplaced(ROOT) == set()
    assert [page.name for page in indexed(ROOT)[KINDS[0]]] == ["tutorial.md"]


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            waiting += [target for target, _ in links(page) if target.suffix == ".md" and target.exists()]
    assert set(pages(ROOT)) - seen == set()


def test_faults_are_seen(copy: Path) -> None:
    assert (dead(copy), misplaced(copy)) == ([], set())
    index = copy / "docs" / "README.md"
    index.write_text(index.read_text() + "\nAgain: [errors](errors.md), [gone](gone.md), [part](http.md#no-such-part)\n")
    (copy / "docs" / "unlisted.md").write_text("# Unlisted\n")
    assert dead(copy) == ["docs/README.md: gone.md", "docs/README.md: http.md#no-such-part"]
    assert misplaced(copy) == {"errors.md", "http.md", "unlisted.md"}
