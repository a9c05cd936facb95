"""Trains a tokenizer of MiniCPM's kind: SentencePiece BPE with byte fallback, and its special tokens.

The layout is that of MiniCPM4's own files: <unk>, <s> and </s> are the first pieces of `tokenizer.model`; the
tokens of chats, tools and fill-in-the-middle follow behind the pieces, in the JSON files beside it. Unlike
there, no piece is user-defined: transformers would cut those.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from edge.train.data.errors import DataError

ADDED_TOKENS = (
    "<|im_end|>",
    "<|im_start|>",
    "<|tool_call|>",
    "<|execute_start|>",
    "<|execute_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
)
"""In the order of MiniCPM4's ids, the last of the vocabulary."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
"""ChatML, as MiniCPM4 has it."""
LEAST_VOCABULARY = 3 + 256 + len(ADDED_TOKENS) + 1
_PIECES = ("<unk>", "<s>", "</s>")
_LONGEST = 4096  # characters that are learned from at once


def train_tokenizer(texts: Iterable[str], vocabulary: int, *, threads: int = 1) -> dict[str, bytes]:
    """The files of a tokenizer with `vocabulary` tokens, the special ones included.

    Deterministic, whatever the threads. DataError if the texts are too few for so many tokens.
    """
    from sentencepiece import SentencePieceTrainer

    if vocabulary < LEAST_VOCABULARY:
        raise DataError(f"A vocabulary has {LEAST_VOCABULARY} tokens or more, not {vocabulary}.")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary - len(ADDED_TOKENS),
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            character_coverage=0.9999,
            normalization_rule_name="identity",  # decoding gives the very text back
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * _LONGEST + 1,  # in bytes
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"SentencePiece cannot make {vocabulary} tokens of these texts ({_reason(error)}); give more "
            "text or a smaller --vocabulary."
        ) from None
    first = vocabulary - len(ADDED_TOKENS)
    added = {first + number: text for number, text in enumerate(ADDED_TOKENS)}
    return {
        "tokenizer.model": model.getvalue(),
        "tokenizer_config.json": _json(_config(added)),
        "special_tokens_map.json": _json(
            {
                "additional_special_tokens": list(ADDED_TOKENS),
                "bos_token": "<s>",
                "eos_token": "<|im_end|>",
                "unk_token": "<unk>",
            }
        ),
        "added_tokens.json": _json({text: token for token, text in added.items()}),
        "generation_config.json": _json({"bos_token_id": 1, "eos_token_id": [2, first]}),
    }


def sampled(texts: Iterable[str], share: float) -> Iterator[str]:
    """About this share of the texts, chosen by their own contents."""
    for text in texts:
        if share_of(text) < share:
            yield text


def share_of(text: str) -> float:
    """A number in [0, 1) that a text always has: below a share are that share of all different texts."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, long ones in pieces. SentencePiece takes no line feeds: they are byte tokens."""
    for text in texts:
        for line in text.encode("utf-8", "replace").decode().replace("\0", "").splitlines():
            for begin in range(0, len(line), _LONGEST):
                yield line[begin : begin + _LONGEST]


def _config(added: dict[int, str]) -> dict[str, Any]:
    special = {**dict(enumerate(_PIECES)), **added}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token, text in special.items()
        },
        "additional_special_tokens": list(ADDED_TOKENS),
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "legacy": True,
        "model_max_length": 10**30,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def _reason(error: RuntimeError) -> str:
    """SentencePiece's own words, without the place in its source."""
    return re.sub(r"^.*\[.*?\]\s*", "", str(error).strip().splitlines()[-1]).rstrip(". ") or "it failed"


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
