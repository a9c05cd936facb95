"""Checks a model's small files before anything is downloaded or converted for minutes."""

from __future__ import annotations

from edge.config.tensors import check_dense
from edge.formats.model_files import ModelTexts
from edge.text.chat_template import ChatTemplate
from edge.text.tokenizer.load import open_tokenizer


def check_small_files(model: ModelTexts) -> None:
    """Raise the EdgeError that conversion or chat would raise for the network, the tokenizer, the template or
    the generation settings.
    """
    check_dense(model.config)
    tokenizer = open_tokenizer(model)
    if model.chat_template is not None:
        ChatTemplate(model.chat_template, tokenizer.named_tokens)
