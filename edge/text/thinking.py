"""Thinking before an answer: its marks, and whether a prompt has begun it already."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

_MARKS = (("<think>", "</think>"), ("<|thought_start|>", "<|thought_end|>"), ("<thinking>", "</thinking>"))


@dataclass(frozen=True)
class Thinking:
    """The marks around what a model thinks. is_open: the prompt ends with the first one."""

    opening: str
    closing: str
    is_open: bool = False


def thinking_marks(template: str, special_tokens: Collection[str]) -> tuple[str, str] | None:
    """The marks that a chat template or the control tokens know; None for a model that does not think."""
    for opening, closing in _MARKS:
        if closing in template or (opening in special_tokens and closing in special_tokens):
            return opening, closing
    return None


def opened(prompt: str, marks: tuple[str, str] | None) -> Thinking | None:
    """How an answer to this prompt, of which the end is enough, may think."""
    return None if marks is None else Thinking(*marks, prompt.rstrip().endswith(marks[0]))
