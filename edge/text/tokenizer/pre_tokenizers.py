"""How byte-level BPE vocabularies cut text into words, by the names that GGUF files use
(`tokenizer.ggml.pre`).

The names are llama.cpp's; the expressions are those of the models' own `tokenizer.json`. A wrong one gives
other ids than the model was trained with, silently, so an unknown name is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge.errors import TokenizerError
from edge.text.isolation.server import one_line

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SYMBOLS}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MINICPM5 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_SYMBOLS}"
# Words by letter case, as GPT-4o and Mistral's Tekken cut them.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_SYMBOLS}"
_GPT4O = rf"{_CASED % (_CONTRACTIONS + '?', _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_CASED_SYMBOLS}"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """Expressions applied one after another, each cutting what the earlier ones left.

    ignore_merges: a word that is a token as a whole is taken without looking at merges. nfc: text is
    normalized to NFC first. add_bos: BOS is put in front where the file does not say.
    """

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False
    add_bos: bool = False

    def to_json(self) -> dict[str, Any]:
        """The `pre_tokenizer` of a tokenizer.json."""
        splits: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
            for expression in self.expressions
        ]
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


_KINDS: tuple[tuple[PreTokenizer, tuple[str, ...]], ...] = (
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")), ("default",)),
    (PreTokenizer((GPT2,)), ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4")),
    (
        PreTokenizer((r"\p{N}", GPT2)),
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"),
    ),
    (
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
    ),
    (PreTokenizer((_LLAMA3,)), ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")),
    (PreTokenizer((_QWEN2,), nfc=True), ("qwen2", "deepseek-r1-qwen")),
    (PreTokenizer((_QWEN2,)), ("stablelm2", "hunyuan")),
    (PreTokenizer((_QWEN35,), nfc=True), ("qwen35",)),
    (PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True), ("tekken",)),
    (PreTokenizer((_GPT4O,)), ("gpt-4o", "llama4")),
    (PreTokenizer((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)), ("deepseek-v3",)),
    (PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True), ("minicpm5",)),
)
PRE_TOKENIZERS = {name: kind for kind, names in _KINDS for name in names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The kind that a GGUF file names; TokenizerError for a name that is not in the table."""
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        raise TokenizerError(
            f"The GGUF file's pre-tokenizer '{one_line(name)}' (tokenizer.ggml.pre) is not supported; known "
            f"are {', '.join(sorted(PRE_TOKENIZERS))}."
        ) from None
