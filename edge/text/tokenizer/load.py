"""Chooses and opens the tokenizer among a model's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.formats.model_files import ModelTexts
from edge.text.end_tokens import end_tokens
from edge.text.tokenizer.base import Tokenizer
from edge.text.tokenizer.segments import SegmentTokenizer
from edge.text.tokenizer.settings import TokenizerSettings, read_settings


def open_tokenizer(model: ModelTexts) -> Tokenizer:
    """The tokenizer of a model with all of its end tokens; raises what `load_tokenizer` raises."""
    return load_tokenizer(
        model.tokenizer_files,
        model.config,
        chat_template=model.chat_template,
        generation_config=model.generation_config,
    )


def load_tokenizer(
    files: Mapping[str, bytes],
    config: ModelConfig,
    *,
    chat_template: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """Open `tokenizer.json`, or `tokenizer.model` where there is none.

    files: contents by file name; `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`
    are used where present. chat_template, generation_config: needed for `end_tokens` only; without them
    (`open_tokenizer` has them) a text is encoded just so. Raises TokenizerError when no tokenizer is among
    the files, when it is of an unsupported kind, or when its ids do not fit the config's vocab_size;
    ConfigError for an unusable generation_config.
    """
    settings = read_settings(files, chat_template)
    tokenizer = _open(files, settings, config)
    tokenizer.end_tokens = end_tokens(
        tokenizer, config, settings.ends, chat_template, generation_config or {}
    )
    return tokenizer


def _open(files: Mapping[str, bytes], settings: TokenizerSettings, config: ModelConfig) -> SegmentTokenizer:
    if "tokenizer.json" in files:
        from edge.text.tokenizer.tokenizers_json import TokenizersTokenizer

        return TokenizersTokenizer(files["tokenizer.json"], settings, config)
    if "tokenizer.model" in files:
        from edge.text.tokenizer.sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer(files["tokenizer.model"], settings, config)
    raise TokenizerError(
        "The model has no tokenizer; put its tokenizer.json or tokenizer.model beside its config.json."
    )
