"""What guesses are worth, measured on the built-in model; figures themselves are nobody's promise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.errors import EdgeError
from edge.measure.profile.report import to_markdown
from edge.measure.speculation import PROMPTS, profile_speculation, read_prompts
from edge.measure.speculation_report import speculation_report
from tests.planted import FreeRows


@pytest.fixture(scope="module")
def found(smollm2) -> Any:
    """Two prompts, of which the first is to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge.runtime.PassCosts", FreeRows)  # whatever a busy machine finds
        return profile_speculation("smollm2-135m", "lookup", PROMPTS[:2], max_new_tokens=24, repeat=1)


def test_the_rows(found):
    assert [row.prompt[:4] for row in found.rows] == ["Copy", "Writ"]
    copied = found.rows[0]
    assert all(row.same and 0 < row.tokens <= 24 for row in found.rows)
    assert copied.speculation.accepted > 5 and copied.speculation.drafter == "lookup"
    assert copied.speedup == copied.tokens_per_second / copied.plain_tokens_per_second
    document = json.loads(json.dumps(found.to_json()))
    assert document["schema"] == 1 and len(document["rows"]) == 2
    assert document["rows"][0]["speculation"]["mean_accepted_length"] > 1.5


def test_the_report(found):
    text = to_markdown(speculation_report(found))
    assert "guesses by lookup" in text and "the same, token by token" in text
    assert "Copy this text" in text and "Speed-up:" in text


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n")
    assert read_prompts(file) == ["one", "two"]
    file.write_text("one\nline two\n---\nanother\n")
    assert read_prompts(file) == ["one\nline two", "another"]
    file.write_text("\n \n")
    with pytest.raises(EdgeError, match="has no prompts"):
        read_prompts(file)
    with pytest.raises(EdgeError, match="can't be read"):
        read_prompts(tmp_path / "none")
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(EdgeError, match="can't be read as text"):
        read_prompts(file)


def test_what_can_not_be_compared():
    with pytest.raises(EdgeError, match="not 'off'"):
        profile_speculation("smollm2-135m", "off")
