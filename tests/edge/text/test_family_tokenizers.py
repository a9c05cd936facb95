"""How each family's tokenizer.json cuts texts, and its added tokens: all as `tokenizers` has it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from edge.config.presets import preset
from edge.text.tokenizer.load import load_tokenizer
from edge.text.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from tests.configs import TOKENIZER

FAMILIES = {
    "minicpm5": "minicpm5",
    "qwen2.5, qwen3": "qwen2",
    "smollm3": "smaug-bpe",
    "phi-4-mini": "gpt-4o",
    "llama-3.2": "llama-bpe",
    "mistral (tekken)": "tekken",
}
TEXTS = (
    "<|user|>\n Hi <|end|>\n\nabAB12345 <think>\nx",  # Phi's control tokens swallow what follows them
    "e\u0301 ab\u00e9<|end|>   x",  # Qwen's texts are composed first
    "Hello  World's I'LL 1212\r\n\t\u00c4\u00d6<think>ab /no_think",
)


def document(pre: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "normalized": False}
    pieces = [*sorted(ByteLevel.alphabet()), "<|end|>", "<|user|>", "<think>", "ab", "12", "He", "AB12"]
    kind = PRE_TOKENIZERS[pre]
    return {
        **TOKENIZER,
        "added_tokens": [
            {"id": 256, "content": "<|end|>", "special": True, "rstrip": True, **flags},
            {"id": 257, "content": "<|user|>", "special": True, "rstrip": True, **flags},
            {"id": 258, "content": "<think>", "special": False, "rstrip": False, **flags},
        ],
        "normalizer": {"type": "NFC"} if kind.nfc else None,
        "pre_tokenizer": kind.to_json(),
        "model": {
            "type": "BPE",
            "ignore_merges": kind.ignore_merges,
            "vocab": {piece: at for at, piece in enumerate(pieces)},
            "merges": [["a", "b"], ["1", "2"], ["H", "e"]],
        },
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_texts(family: str) -> None:
    data = json.dumps(document(FAMILIES[family]))
    theirs = Tokenizer.from_str(data)
    config = replace(preset("smollm2-135m"), vocab_size=270, bos_token_id=None, eos_token_ids=())
    ours = load_tokenizer({"tokenizer.json": data.encode()}, config)
    for text in TEXTS:
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, parse_special=True, add_bos=False) == wanted
        for skip in (False, True):
            whole = ours.decode(wanted, skip_special=skip)
            assert whole == theirs.decode(wanted, skip_special_tokens=skip)
            stream = ours.stream(skip_special=skip)
            assert "".join(map(stream.push, wanted)) + stream.flush() == whole
    shown = ours.stream(visible=(256,))
    assert "".join(map(shown.push, (257, 258, 256))) == "<think><|end|>"
