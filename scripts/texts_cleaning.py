"""Plain texts out of the forms that Debian's packages have them in; `fetch_texts.py` says which has which."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser

_BLOCKS = frozenset(
    (
        "address",
        "article",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "div",
        "dl",
        "dt",
        "figure",
        "figcaption",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "tbody",
        "tr",
        "ul",
    )
)
_UNSEEN = frozenset(("script", "style", "head", "nav", "footer", "button", "svg"))
_NOISE = frozenset(
    (
        "navheader",
        "navfooter",
        "related",
        "sphinxsidebar",
        "footer",
        "docnav",
        "headerlink",
        "toc",
        "indexterm",
        "navigation",
        "toctree-wrapper",
        "contents",
        "linenos",
        "list-of-figures",
    )
)
_OWN_LINE = re.compile(r"\s|[-*+] |[-=~^]{3,}$|\+$|\[")
_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
)


class _Page(HTMLParser):
    """Paragraphs of a page, without navigation; `pre` keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._line: list[str] = []
        self._unseen, self._depth, self._pre = "", 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._depth:
            self._depth += tag == self._unseen
            return
        facts = dict(attrs)
        classes = (facts.get("class") or "").split()
        if tag not in _VOID and (
            tag in _UNSEEN
            or facts.get("role") == "navigation"
            or facts.get("id") == "banner"
            or not _NOISE.isdisjoint(classes)
        ):
            self._unseen, self._depth = tag, 1
            return
        if tag in _BLOCKS:
            self.flush()
        self._pre += tag == "pre"
        if tag == "li":
            self._line.append("- ")
        elif tag == "br":
            self._line.append("\n" if self._pre else " ")
        elif tag in ("td", "th"):
            self._line.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._depth:
            self._depth -= tag == self._unseen
            return
        if tag in _BLOCKS:
            self.flush()
        if tag == "pre" and self._pre:
            self._pre -= 1

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self._line.append(data)

    def flush(self) -> None:
        text = "".join(self._line)
        self._line = []
        if self._pre:
            text = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
        else:
            text = " ".join(text.split())
        if text.strip(" -\n"):
            self.found.append(text)


def html_text(source: str) -> str:
    """The paragraphs of a page, with empty lines between them."""
    page = _Page()
    page.feed(source)
    page.close()
    page.flush()
    return "\n\n".join(page.found)


def paragraphs(text: str) -> str:
    """Text whose paragraphs were broken into lines, joined again; lists, underlined headings and indented
    lines stay as they are.
    """
    blocks = re.split(r"\n\s*\n", text.replace("\r", "").strip("\n"))
    return "\n\n".join(_joined(block) for block in blocks if block.strip())


def _joined(block: str) -> str:
    lines = [line.rstrip() for line in block.splitlines()]
    if any(_OWN_LINE.match(line) for line in lines):
        return "\n".join(lines)
    return " ".join(lines)


def _unwrapped(lines: Iterable[str]) -> str:
    """Paragraphs of indented lines, joined; numbered senses begin a line of their own."""
    blocks = re.split(r"\n\s*\n", "\n".join(line.strip() for line in lines))
    joined = [re.sub(r"\n(?!\d+\. |\([a-z]\) )", " ", block.strip()) for block in blocks]
    return "\n\n".join(re.sub(r" {2,}", " ", block) for block in joined if block)


def austen_chapters(database: bytes) -> Iterator[str]:
    """Chapters of the novels in R's lazy-load database: zlib streams that hold character vectors.

    Of R's serialization only the strings are read: flags 0x40009, a length, UTF-8 bytes.
    """
    at = 0
    while at < len(database):
        (size,) = struct.unpack_from(">I", database, at)
        stream = zlib.decompressobj()
        data = stream.decompress(database[at + 4 :])
        at = len(database) - len(stream.unused_data)
        if len(data) != size:
            raise ValueError("the lazy-load database is of an unknown form")
        lines, place = [], 0
        while (place := data.find(b"\x00\x04\x00\x09", place)) >= 0:
            (length,) = struct.unpack_from(">I", data, place + 4)
            lines.append(data[place + 8 : place + 8 + length].decode("utf-8", "replace"))
            place += 8 + length
        if len(lines) > 1000:  # the others are R's own
            for chapter in re.split(r"\n(?=CHAPTER |Chapter )", "\n".join(lines)):
                yield paragraphs(chapter)


def bible_chapters(text: str) -> Iterator[str]:
    """Chapters with their heading and a paragraph of verses, without the verses' numbers."""
    for chapter in re.split(r"\n(?=[1-3A-Z][A-Za-z1-3 ]+ \d+\n)", text.strip()):
        heading, _, verses = chapter.strip().partition("\n")
        plain = re.sub(r"(?m)^\s*\d+ ", "", verses.strip())
        yield f"{heading}\n\n{' '.join(plain.split())}"


_DIGITS = {
    digit: number
    for number, digit in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}


def dictionary_entries(index: str, text: bytes) -> Iterator[str]:
    """Entries of a dictd dictionary, in the order of its text."""
    places = set()
    for line in index.splitlines():
        word, begin, size = line.split("\t")[:3]
        if not word.startswith("00-database"):
            places.add((_number(begin), _number(size)))
    for first, length in sorted(places):
        entry = text[first : first + length].decode("utf-8", "replace")
        heading, _, body = entry.strip("\n").partition("\n")
        heading = re.sub(r"\\[^\\]*\\,?", "", heading)  # how it is spoken
        body = re.sub(r"\[(?:1913 Webster|PJC|WordNet [\d.]+|Webster[^\]]*)[^\]]*\]", "", body)
        cleaned = f"{heading.strip()}\n\n{_unwrapped(body.splitlines())}"
        yield re.sub(r"\[deg\]", "°", re.sub(r"[{}]", "", cleaned)).strip()


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS[digit]
    return value


def wordnet_pages(data: str) -> Iterator[str]:
    """Glossaries of 25 neighbouring synsets, a line each: words, meaning, examples."""
    lines = []
    for line in data.splitlines():
        if line.startswith("  "):  # the licence
            continue
        facts, _, meaning = line.partition(" | ")
        fields = facts.split()
        words = [
            re.sub(r"\(\w+\)$", "", word).replace("_", " ")
            for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        ]
        lines.append(f"{', '.join(words)}: {meaning.strip()}")
    for begin in range(0, len(lines), 25):
        yield "\n".join(lines[begin : begin + 25])


def jargon_entries(text: str) -> Iterator[str]:
    """Entries of the Jargon File's lexicon, which begin with `:word:`."""
    for entry in re.split(r"\n(?=   :[^\n:]+: )", text)[1:]:
        word, _, meaning = entry.strip()[1:].partition(":")
        yield f"{word}: {_unwrapped(meaning.splitlines())}".replace("{", "").replace("}", "")


def described_packages(translation: str) -> Iterator[str]:
    """Debian packages' short and long descriptions from a Translation file.

    Packages of one source repeat paragraphs of each other: each is taken once, and a package only if it says
    something new.
    """
    seen: set[str] = set()
    for record in translation.split("\n\n"):
        name = re.search(r"^Package: (\S+)", record, re.MULTILINE)
        _, found, description = record.partition("Description-en: ")
        if not name or not found:
            continue
        short, _, long = description.partition("\n")
        lines = [line[1:] if line != " ." else "" for line in long.splitlines()]
        fresh = [part for part in paragraphs("\n".join(lines)).split("\n\n") if part not in seen]
        seen.update(fresh)
        if fresh:
            yield "\n\n".join([f"{name[1]}: {short}", *fresh])
