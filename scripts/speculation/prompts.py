"""The prompts of speculation's benchmark, and what their answers are worth.

`prompts.jsonl` has 60 with one right answer each, for a small model: copy a text, edit a text or code, write
JSON. All texts were written for this purpose.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.text.prompts import Message
from edge.train.drafts.loops import loop_start

KINDS = ("copy", "edit", "json")
_FILE = Path(__file__).with_name("prompts.jsonl")
_FENCED = re.compile(r"```\w*\n?(.*?)(```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """name: unique. kind: of the table's row. check: how an answer is compared with `expected`: as `text` or
    `code`, whatever the white space, or as the values of `json`; None: it can't be.
    """

    name: str
    kind: str
    messages: tuple[Message, ...]
    check: str | None = None
    expected: str = ""

    def is_right(self, answer: str) -> bool:
        """Whether it is the expected one."""
        return self.check is not None and _meaning(answer, self.check) == _meaning(self.expected, self.check)


def jobs(file: Path = _FILE) -> list[Prompt]:
    """The 60 of the file."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        Prompt(
            row["name"],
            row["kind"],
            tuple(Message(**message) for message in row["messages"]),
            row["check"],
            row["expected"],
        )
        for row in rows
    ]


def chat(file: Path, per_category: int) -> list[Prompt]:
    """The first turns of the first questions of every category of Spec-Bench."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found, counts = [], Counter[str]()
    for row in rows:
        counts[row["category"]] += 1
        if counts[row["category"]] <= per_category:
            said = (Message("user", row["turns"][0]),)
            found.append(Prompt(f"question-{row['question_id']}", row["category"], said))
    return found


def loops(prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether 8 tokens come three times in the answer that do not stand in the prompt: guessing those is no
    merit.
    """
    return loop_start(answer, prompt) < len(answer)


def _meaning(text: str, check: str) -> Any:
    """What is compared of a text."""
    fenced = _FENCED.search(text)
    inner = fenced[1] if fenced and check != "text" else text
    if check != "json":
        return inner.split()
    try:
        return _plain(json.loads(inner))
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    """JSON whose numbers and words are texts: either is right for a record's field."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value).lower()
