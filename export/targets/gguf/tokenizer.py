"""A tokenizer's files as GGUF metadata: the inverse of `edge.text.tokenizer.from_gguf`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.config import ModelConfig
from edge.config.gguf import Metadata
from edge.errors import ExportError, TokenizerError
from edge.formats.guarded_json import parse_object
from edge.text.end_tokens import END_TOKENS
from edge.text.tokenizer.base import Tokenizer
from edge.text.tokenizer.from_gguf import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from edge.text.tokenizer.load import load_tokenizer
from edge.text.tokenizer.pre_tokenizers import GPT2, PRE_TOKENIZERS
from edge.text.tokenizer.segments import SPACE_SYMBOL
from edge.text.tokenizer.sentencepiece_model import model_proto
from edge.text.tokenizer.settings import TokenizerSettings, read_settings

_ENDS = ("eos", "eot", "eom")
_NO_SCORE = -1000.0  # of tokens that no merge makes, as llama.cpp's converter writes it


def tokenizer_metadata(files: Mapping[str, bytes], config: ModelConfig) -> Metadata:
    """`tokenizer.ggml.*` for the tokenizer among `files`, with as many tokens as the network has.

    Raises ExportError for a kind that llama.cpp can't have: a byte-level BPE whose pre-tokenizer has no GGUF
    name, a SentencePiece model that is not BPE, or one of which only a tokenizer.json is left.
    """
    settings = read_settings(files)
    tokenizer = load_tokenizer(files, config)
    if "tokenizer.model" in files:
        values = _sentencepiece(files["tokenizer.model"], settings, config.vocab_size)
    else:
        values = _bpe(
            parse_object(
                files["tokenizer.json"], "tokenizer.json", TokenizerError, "get the model's files again"
            ),
            settings,
            config.vocab_size,
        )
    values["add_bos_token"] = tokenizer.bos_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    values["add_eos_token"] = False
    values |= _roles(tokenizer, settings, config)
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def _roles(tokenizer: Tokenizer, settings: TokenizerSettings, config: ModelConfig) -> Metadata:
    roles: dict[str, int | None] = {"bos": tokenizer.bos_id, "padding": config.pad_token_id}
    for role in ("unk", "pad"):
        text = settings.named.get(f"{role}_token", "")
        token_id = tokenizer.special_tokens.get(text)
        name = {"unk": "unknown", "pad": "padding"}[role]
        roles[name] = token_id if token_id is not None else roles.get(name)
    roles |= dict(zip(_ENDS, _ends(tokenizer, config), strict=False))
    return {f"{name}_token_id": token_id for name, token_id in roles.items() if token_id is not None}


def unnamed_end_tokens(tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """End tokens for which GGUF has no key and which llama.cpp does not know by their text either."""
    return [token for token in _ends(tokenizer, config)[len(_ENDS) :] if not _is_known(tokenizer, token)]


def _ends(tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """End tokens: the one that llama.cpp calls EOS, then first those that it does not know by their text."""
    first, others = config.eos_token_ids[:1], config.eos_token_ids[1:]
    return [*first, *sorted(others, key=lambda token: _is_known(tokenizer, token))]


def _is_known(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.token_bytes(token).decode("utf-8", "replace") in END_TOKENS


def _bpe(document: Mapping[str, Any], settings: TokenizerSettings, size: int) -> Metadata:
    model = document.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ExportError(
            "A GGUF file needs a byte-level BPE tokenizer.json or a SentencePiece tokenizer.model, but this "
            f"tokenizer.json holds a model of type {model.get('type')} of another kind; put the model's "
            "tokenizer.model beside it."
        )
    pre = _pre_tokenizer_name(document)
    tokens = {token_id: (text, NORMAL) for text, token_id in model["vocab"].items()}
    for entry in document.get("added_tokens") or ():
        tokens[entry["id"]] = (entry["content"], CONTROL if entry["special"] else USER_DEFINED)
    for added in settings.merged((), size):
        known = tokens.get(added.id, ("", NORMAL))[1]
        tokens[added.id] = (added.text, CONTROL if added.special or known == CONTROL else USER_DEFINED)
    texts, types = _table(tokens, size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    values: Metadata = {"model": "gpt2", "pre": pre, "tokens": texts, "token_type": types}
    # An empty array can't be written; llama.cpp takes an empty text for a merge that never happens.
    return {**values, "merges": merges or [""]}


def _pre_tokenizer_name(document: Mapping[str, Any]) -> str:
    """GGUF's name of a tokenizer.json's normalizer, pre-tokenizer and merge rule, found by what they do."""
    normalizer = document.get("normalizer")
    kinds = {"": False, "NFC": True}
    nfc = kinds.get(normalizer.get("type", "?") if normalizer else "")
    expressions = _expressions(document.get("pre_tokenizer"))
    ignore_merges = bool(document["model"].get("ignore_merges"))
    if expressions is not None and not nfc and not document["model"]["merges"]:
        return "gpt-2"  # without merges every byte is a token, wherever the text is cut
    for name, kind in PRE_TOKENIZERS.items():
        if (kind.expressions, kind.nfc, kind.ignore_merges) == (expressions, nfc, ignore_merges):
            return name
    raise ExportError(
        "The normalizer and pre-tokenizer of this tokenizer.json have no name in GGUF (tokenizer.ggml.pre), "
        "and a wrong one would silently give other tokens; export the model to bundle, onnx or executorch."
    )


def _expressions(entry: Any) -> tuple[str, ...] | None:
    """The splits of a pre-tokenizer that ends in byte level without a space in front; None for others."""
    steps = entry.get("pretokenizers", [entry]) if isinstance(entry, Mapping) else []
    found: list[str] = []
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        kind = step.get("type")
        if kind == "Digits" and step.get("individual_digits"):
            found.append(r"\p{N}")
        elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            found.append(step.get("pattern", {}).get("Regex", ""))
        elif kind == "ByteLevel" and last and not step.get("add_prefix_space"):
            found += [GPT2] if step.get("use_regex", True) else []
        else:
            return None
    return tuple(found)


def _sentencepiece(data: bytes, settings: TokenizerSettings, size: int) -> Metadata:
    try:
        proto = model_proto().FromString(data)
    except ValueError:
        raise TokenizerError("tokenizer.model is not a readable SentencePiece model.") from None
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise ExportError(
            "The tokenizer.model is not a BPE model, and llama.cpp's SentencePiece tokenizer knows no other; "
            "export the model to bundle, onnx or executorch."
        )
    tokens, scores = {}, {}
    for token_id, piece in enumerate(proto.pieces):
        # llama.cpp looks for user-defined tokens in the text as it was typed.
        text = piece.piece.replace(SPACE_SYMBOL, " ") if piece.type == USER_DEFINED else piece.piece
        tokens[token_id] = (text, int(piece.type))
        scores[token_id] = float(piece.score)
    for added in settings.merged((), size):
        known = tokens.get(added.id, ("", NORMAL))[1]
        if known != UNKNOWN:
            special = added.special or known == CONTROL
            tokens[added.id] = (added.text, CONTROL if special else USER_DEFINED)
    texts, types = _table(tokens, size)
    normalizer = proto.normalizer_spec
    prefix = settings.add_prefix_space
    values: Metadata = {
        "model": "llama",
        "tokens": texts,
        "scores": [scores.get(token_id, _NO_SCORE) for token_id in range(size)],
        "token_type": types,
        "add_space_prefix": bool(normalizer.add_dummy_prefix if prefix is None else prefix),
        "remove_extra_whitespaces": bool(normalizer.remove_extra_whitespaces),
    }
    if normalizer.precompiled_charsmap:
        values["precompiled_charsmap"] = bytes(normalizer.precompiled_charsmap)
    return values


def _table(tokens: Mapping[int, tuple[str, int]], size: int) -> tuple[list[str], list[int]]:
    """Texts and types by id, with a name of its own for every id that stands for nothing."""
    filled = [tokens.get(token_id, (f"[PAD{token_id}]", UNUSED)) for token_id in range(size)]
    return [text for text, _ in filled], [kind for _, kind in filled]
