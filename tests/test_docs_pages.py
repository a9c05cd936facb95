"""What all pages have in common: no dead link, a place below the index, a first line that says what for."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "docs" / "index.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
PARSER = MarkdownIt().enable("table")


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, as they are written."""
    inline = [
        child for token in PARSER.parse(page.read_text(encoding="utf-8")) for child in token.children or ()
    ]
    return [
        str(token.attrGet("href") or token.attrGet("src") or "")
        for token in inline
        if token.type in ("link_open", "image")
    ]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    tokens, found, seen = PARSER.parse(page.read_text(encoding="utf-8")), set(), Counter[str]()
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            text = "".join(child.content for child in content.children or ())
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


def target(page: Path, link: str) -> tuple[Path, str]:
    """The file or folder that a link on a page leads to, and the anchor in it."""
    path, _, anchor = unquote(link).partition("#")
    return ((page.parent / path).resolve() if path else page), anchor


def is_inside(link: str) -> bool:
    return not re.match(r"[a-z]+:", link)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path):
    dead = []
    for link in filter(is_inside, links(page)):
        path, anchor = target(page, link)
        if not path.exists() or not path.is_relative_to(ROOT) or (anchor and anchor not in anchors(path)):
            dead.append(link)
    assert not dead


def test_a_dead_link_is_found(tmp_path: Path):
    """Files, anchors, and headings with punctuation, code and twins."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b-c`, d!\n\n## Twin\n\n## Twin\n\n```\n# no heading\n```\n[x](y.md#z) ![p](q.svg)\n"
    )
    assert anchors(page) == {"a-b-c-d", "twin", "twin-1"}
    assert links(page) == ["y.md#z", "q.svg"]
    assert target(page, "y.md#z") == (tmp_path / "y.md", "z")


def test_every_page_is_reached_from_the_index():
    reached, waiting = {INDEX}, [INDEX]
    while waiting:
        page = waiting.pop()
        found = {target(page, link)[0] for link in links(page) if is_inside(link)}
        new = {path for path in found if path.suffix == ".md" and path.exists()} - reached
        reached |= new
        waiting += [path for path in new if path.is_relative_to(ROOT / "docs")]
    assert {path.relative_to(ROOT) for path in PAGES if path.is_relative_to(ROOT / "docs")} <= {
        path.relative_to(ROOT) for path in reached
    }
    assert INDEX in {target(ROOT / "README.md", link)[0] for link in links(ROOT / "README.md")}


def test_a_page_begins_with_what_it_is_for():
    """A title, then a sentence; a status, a command or a list comes later."""
    wrong = []
    for page in PAGES:
        title, _, _, first, content, *_ = PARSER.parse(page.read_text(encoding="utf-8"))
        if title.tag != "h1" or first.type != "paragraph_open" or content.content.startswith("Status:"):
            wrong.append(page.name)
    assert not wrong


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
