"""Chooses and opens the tokenizer among a model's files."""

from __future__ import annotations

from collections.abc import Mapping

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.text.tokenizer.base import Tokenizer
from edge.text.tokenizer.settings import read_settings


def load_tokenizer(files: Mapping[str, bytes], config: ModelConfig) -> Tokenizer:
    """Open `tokenizer.json`, or `tokenizer.model` where there is none.

    files: contents by file name; `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
    `generation_config.json` are used where present. `eos_ids` of the result joins the end tokens of the
    config, of generation_config.json and of the tokenizer's own files. Raises TokenizerError when no
    tokenizer is among the files, when it is of an unsupported kind, or when its ids do not fit the config's
    vocab_size.
    """
    settings = read_settings(files)
    if "tokenizer.json" in files:
        from edge.text.tokenizer.tokenizers_json import TokenizersTokenizer

        return TokenizersTokenizer(files["tokenizer.json"], settings, config)
    if "tokenizer.model" in files:
        from edge.text.tokenizer.sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer(files["tokenizer.model"], settings, config)
    raise TokenizerError(
        "The model has no tokenizer; put its tokenizer.json or tokenizer.model beside its config.json."
    )
