"""Checks a model's small files before anything is downloaded or converted for minutes."""

from __future__ import annotations

from edge.text.chat_template import ChatTemplate
from edge.text.tokenizer.load import ModelTexts, open_tokenizer


def check_texts(model: ModelTexts) -> None:
    """Raise the EdgeError that a chat would raise for config, tokenizer, template or generation settings."""
    tokenizer = open_tokenizer(model)
    if model.chat_template is not None:
        ChatTemplate(model.chat_template, tokenizer.named_tokens)
