"""The picture of README: its script runs, and what the picture shows is what the program shows today."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pexpect")
pytest.importorskip("pyte")

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "chat.svg"
NAMES = re.compile(r"^(?:\$ .*|› .*|[a-z]+(?:,? [a-z]+)*(?= {2,}))", re.M)
"""What does not depend on the machine: the command, what was typed, and the names of /stats."""


def text_of(svg: str) -> str:
    """The lines of a picture; its texts are in order, and those of a line have the same y."""
    lines: dict[float, str] = {}
    for y, text in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]*)</text>', svg):
        lines[float(y)] = lines.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
    return "\n".join(lines.values())


def test_the_picture_is_what_the_program_shows(smollm2: str, environment: dict[str, str], tmp_path: Path):
    command = [sys.executable, str(ROOT / "scripts" / "record_chat.py"), "--out", str(tmp_path / "new.svg")]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    old, new = (text_of(path.read_text(encoding="utf-8")) for path in (PICTURE, tmp_path / "new.svg"))
    names = NAMES.findall(old)
    assert names[0].startswith("$ edge chat ") and "› /stats" in names and "decode" in names
    assert names == NAMES.findall(new), "run scripts/record_chat.py"


def test_the_picture_needs_nothing_else():
    """GitHub shows a picture without what it would have to load."""
    svg = PICTURE.read_text(encoding="utf-8")
    assert re.findall(r"https?:[^\"']*", svg) == ["http://www.w3.org/2000/svg"]
    assert "@import" not in svg and "<script" not in svg and "href" not in svg
    assert "docs/images/chat.svg" in (ROOT / "README.md").read_text(encoding="utf-8")
