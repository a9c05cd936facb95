"""What scripts/fetch_texts.py makes of pages, dictionaries and other forms, on small ones written by hand."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from scripts.texts_cleaning import (
    austen_chapters,
    bible_chapters,
    described_packages,
    dictionary_entries,
    html_text,
    jargon_entries,
    paragraphs,
    wordnet_pages,
)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_a_page_becomes_its_paragraphs():
    page = """<html><head><title>T</title><style>p {}</style></head><body>
    <div class="related" role="navigation"><div><a>next</a></div> x</div>
    <h1>Title<a class="headerlink" href="#t">¶</a></h1>
    <p>Some <em>text</em> over
       two lines &amp; an entity.<p>Unclosed
    <ul><li>one<li>two <code>a  b</code></ul>
    <pre>def f():
        return 1
    </pre><table><tr><td>a</td><td>b</td></tr></table><br>
    <script>no()</script><div class="navfooter"><p>Prev</p></div></body></html>"""
    assert html_text(page) == (
        "Title\n\nSome text over two lines & an entity.\n\nUnclosed\n\n- one\n\n- two a b\n\n"
        "def f():\n        return 1\n\na b"
    )


def test_paragraphs_are_joined_and_lists_are_not():
    text = "One\ntwo.\n\n- a\n- b\n\nHEAD\n----\n\n  code\n  more\n\n\n\nlast\n"
    assert paragraphs(text) == "One two.\n\n- a\n- b\n\nHEAD\n----\n\n  code\n  more\n\nlast"


def test_strings_are_found_in_rs_database():
    def stream(lines: list[str]) -> bytes:
        data = b"X\n\x00\x00\x00\x03"
        for line in lines:
            data += b"\x00\x04\x00\x09" + struct.pack(">I", len(line.encode())) + line.encode()
        return struct.pack(">I", len(data)) + zlib.compress(data)

    novel = (
        ["EMMA", "", "CHAPTER I", "", "Emma Woodhouse,", "handsome"] + ["x"] * 1000 + ["CHAPTER II", "End"]
    )
    found = list(austen_chapters(stream(novel) + stream(["R's own"])))
    assert [chapter[:9] for chapter in found] == ["EMMA", "CHAPTER I", "CHAPTER I"]
    assert found[1].startswith("CHAPTER I\n\nEmma Woodhouse, handsome x x")
    assert found[2] == "CHAPTER II End"


def test_chapters_lose_the_numbers_of_verses():
    text = "\nGenesis 50\n\n  25 And he said\nto them.\n  26 So he died.\n\n1 Samuel 1\n\n  1 Now there was\n"
    assert list(bible_chapters(text)) == [
        "Genesis 50\n\nAnd he said to them. So he died.",
        "1 Samuel 1\n\nNow there was",
    ]


def dictionary(entries: dict[str, str]) -> tuple[str, bytes]:
    """The index and the text of a dictd dictionary."""

    def number(value: int) -> str:
        found = base64.b64encode(value.to_bytes(3, "big")).decode()  # the same digits
        return found.lstrip("A") or "A"

    index, data = "", b""
    for word, entry in entries.items():
        index += f"{word}\t{number(len(data))}\t{number(len(entry.encode()))}\n"
        data += entry.encode()
    return index, data


def test_a_dictionary_is_read_by_its_index():
    flame = "Flame \\Flame\\, n.\n   1. A stream of\n      fire. [1913 Webster]\n\n   2. See {Fire}.\n"
    index, data = dictionary({"flame": flame, "ice": "Ice\n\n   Frozen water at 0[deg].\n"})
    again = index.splitlines()[0].replace("flame", "flames")
    assert list(dictionary_entries(f"00-database-info\tA\tB\n{index}{again}\n", data)) == [
        "Flame  n.\n\n1. A stream of fire.\n\n2. See Fire.",
        "Ice\n\nFrozen water at 0°.",
    ]


def test_synsets_become_pages():
    licence = "  1 This software is free\n"
    line = "00977214 04 n 02 foray 0 air_raid 0 001 @ 00975452 n 0000 | a sudden short attack  \n"
    adjective = '00001740 00 a 01 able(p) 0 000 | having the means; "able to swim"  \n'
    pages = list(wordnet_pages(licence + line * 26 + adjective))
    assert len(pages) == 2
    assert pages[0] == "\n".join(["foray, air raid: a sudden short attack"] * 25)
    assert pages[1].splitlines()[1] == 'able: having the means; "able to swim"'


def test_jargon_is_split_at_its_words():
    text = "Contents\n\n   demigod\n\n   :demigod: n.\n\n   A hacker with\n   years of {Unix}.\n"
    text += "\n   :demo: /de'moh/\n\n   See it.\n"
    assert list(jargon_entries(text)) == [
        "demigod: n.\n\nA hacker with years of Unix.",
        "demo: /de'moh/\n\nSee it.",
    ]


def test_descriptions_that_repeat_others_are_left_out():
    def record(name: str, *parts: str) -> str:
        return f"Package: {name}\nDescription-md5: x\nDescription-en: short\n " + "\n .\n ".join(parts)

    records = record("a", "Same\n text.", "Of a."), record("b", "Same\n text.", "Of b."), record("c", "Of b.")
    found = described_packages("\n\n".join(records))
    assert list(found) == ["a: short\n\nSame text.\n\nOf a.", "b: short\n\nOf b."]


def test_finished_packages_and_sources_are_kept(tmp_path: Path):
    """What is unpacked is not downloaded, what is written is not made again, and nothing comes twice."""
    folder = tmp_path / ".packages/dict-foldoc/usr/share/dictd"
    folder.mkdir(parents=True)
    new, old = ("a b " * 30).strip(), ("c d " * 30).strip()
    index, data = dictionary(
        {"word": f"word\n\n   {new}\n", "short": "short\n\n x\n", "old": f"old\n\n {old}\n"}
    )
    (folder / "foldoc.index").write_text(index)
    (folder / "foldoc.dict.dz").write_bytes(gzip.compress(data))
    kept = json.dumps({"text": f"old\n\n{old}", "source": "jargon"}) + "\n"
    (tmp_path / "jargon.jsonl").write_text(kept)
    command = [sys.executable, SCRIPTS / "fetch_texts.py", "--out", tmp_path, "jargon", "foldoc"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "jargon.jsonl").read_text() == kept
    (line,) = (tmp_path / "foldoc.jsonl").read_text().splitlines()
    assert json.loads(line) == {"text": f"word\n\n{new}", "source": "foldoc"}
    assert json.loads(done.stdout.splitlines()[-1])["sources"]["foldoc"] == {"documents": 1, "bytes": 125}
