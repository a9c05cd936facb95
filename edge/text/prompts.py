"""From messages to token ids, through the chat template, so that the KV cache of earlier turns is reused.

Two things go wrong when rendered text is simply encoded. Text of a message could stand for control tokens:
`Tokenizer.protect` marks such places. And encoding an old answer again may give other ids than the model
had produced, so that nothing after it is found in the cache: the ids of answers are kept and put in their
place, with only the text between them encoded.

An answer's place is found by rendering a second time with a sentinel instead of its text. If the template
changes the text (trims it, drops its thinking), that rendering does not become the first one by putting the
text back; then this answer is encoded from the rendered text, which is always right and only costs time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.text.chat_template import ChatTemplate
from edge.text.tokenizer.base import Tokenizer

# Noncharacters: no real text contains them.
_OPEN, _CLOSE = "\ufdd1", "\ufdd2"
_SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    tokens: for an answer, the ids that the model produced (without the end token), if they are known and
    stand for exactly `content`.
    """

    role: str
    content: str
    tokens: tuple[int, ...] | None = None


class PromptEncoder:
    """Renders and encodes conversations for one model."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._encoded: dict[tuple[str, bool], list[int]] = {}  # of the last prompt: most of it comes again

    def encode(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Ids of the prompt that lets the model answer `messages`; variables go to the template."""
        spliced = {i for i, message in enumerate(messages) if message.tokens is not None}
        text = self._render(messages, set(), variables)
        parts = self._render(messages, spliced, variables) if spliced else text
        if self._restored(parts, messages) != text:
            spliced = {i for i in spliced if self._is_verbatim(i, messages, text, variables)}
            parts = self._render(messages, spliced, variables)
            if self._restored(parts, messages) != text:
                parts = text
        ids: list[int] = []
        fresh: dict[tuple[str, bool], list[int]] = {}
        for at, part in enumerate(_SENTINEL.split(parts)):
            if at % 2:
                ids += messages[int(part)].tokens or ()
            elif part or at == 0:  # the BOS comes with the first part, even if an answer follows at once
                key = (part, at == 0)
                fresh[key] = self._encoded[key] if key in self._encoded else self._encode(*key)
                ids += fresh[key]
        self._encoded = fresh
        return ids

    def _render(self, messages: Sequence[Message], spliced: set[int], variables: Mapping[str, Any]) -> str:
        plain = [
            {
                "role": message.role,
                "content": f"{_OPEN}{i}{_CLOSE}" if i in spliced else self._protected(message.content),
            }
            for i, message in enumerate(messages)
        ]
        return self._template.render(plain, add_generation_prompt=True, **variables)

    def _protected(self, content: str) -> str:
        return self._tokenizer.protect(content.replace(_OPEN, "\ufffd").replace(_CLOSE, "\ufffd"))

    def _restored(self, parts: str, messages: Sequence[Message]) -> str:
        return _SENTINEL.sub(lambda match: self._protected(messages[int(match[1])].content), parts)

    def _is_verbatim(
        self, i: int, messages: Sequence[Message], text: str, variables: Mapping[str, Any]
    ) -> bool:
        return self._restored(self._render(messages, {i}, variables), messages) == text

    def _encode(self, part: str, first: bool) -> list[int]:
        if first:
            return self._tokenizer.encode(part, parse_special=True)
        # Behind a control token, so that a tokenizer does not treat this as the beginning of a text.
        lead = next(iter(self._tokenizer.special_tokens), "")
        ids = self._tokenizer.encode(lead + part, add_bos=False, parse_special=True)
        return ids[1:] if lead else ids
