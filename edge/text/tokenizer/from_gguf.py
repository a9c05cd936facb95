"""A GGUF file's tokenizer metadata, rewritten as Hugging Face's tokenizer files.

Source: the GGUF specification's `tokenizer.ggml.*` keys, with llama.cpp's defaults where a key is absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge.errors import TokenizerError
from edge.text.end_tokens import END_TOKENS
from edge.text.isolation.server import one_line
from edge.text.tokenizer.pre_tokenizers import PreTokenizer, pre_tokenizer
from edge.text.tokenizer.segments import SPACE_SYMBOL

# Values of tokenizer.ggml.token_type; SentencePiece's model file uses the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_TYPES = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}


def tokenizer_files_from_gguf(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """`tokenizer.json` or `tokenizer.model`, and `tokenizer_config.json`, by file name.

    metadata: GGUF keys to plain Python values. Raises TokenizerError for a missing key or an unsupported kind
    of tokenizer or pre-tokenizer, naming it.
    """
    _check_types(metadata)
    kind = _required(metadata, "tokenizer.ggml.model")
    tokens: Sequence[str] = _required(metadata, "tokenizer.ggml.tokens")
    types: Sequence[int] = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(
            f"The GGUF file has {len(tokens)} tokens but {len(types)} token types; download it again."
        )
    # A converter may have marked an end of turn as ordinary text; llama.cpp overrides that as well.
    types = [CONTROL if token in END_TOKENS else kind for token, kind in zip(tokens, types, strict=True)]
    if kind == "gpt2":
        split = pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default"))
        files = {"tokenizer.json": _bpe(metadata, tokens, types, split)}
        add_bos = split.add_bos
    elif kind == "llama":
        files = {"tokenizer.model": _sentencepiece(metadata, tokens, types)}
        add_bos = True
    else:
        raise TokenizerError(
            f"The GGUF file's tokenizer model '{one_line(kind)}' is not supported; 'llama' (SentencePiece) "
            "and 'gpt2' (byte-level BPE) are."
        )
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos))
    files["tokenizer_config.json"] = _config(metadata, tokens, types, add_bos)
    return files


def _check_types(metadata: Mapping[str, Any]) -> None:
    """Refuse a field whose value could not be used, by its name."""

    def check(name: str, good: Callable[[Any], bool], wanted: str) -> None:
        value = metadata.get(f"tokenizer.ggml.{name}")
        if value is not None and not good(value):
            raise TokenizerError(
                f"The GGUF file's 'tokenizer.ggml.{name}' is not {wanted}; download the file again."
            )

    for name in ("model", "pre"):
        check(name, _is_text, "a text")
    for name in ("tokens", "merges"):
        check(name, lambda value: _is_list(value, _is_text), "a list of texts")
    check("token_type", lambda value: _is_list(value, lambda kind: kind in _TYPES), "a list of token types")
    check("scores", lambda value: _is_list(value, _is_float32), "a list of numbers")
    check(
        "precompiled_charsmap",
        lambda value: _is_list(value, lambda byte: isinstance(byte, int)),
        "a list of bytes",
    )
    for role in _ROLES.values():
        check(f"{role}_token_id", lambda value: type(value) is int, "a token id")


def _is_list(value: Any, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(good, value))


def _is_text(value: Any) -> bool:
    """A str of whole characters: a lone surrogate can't be written to a file."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def _is_float32(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 3.4e38


def _required(metadata: Mapping[str, Any], key: str) -> Any:
    value = metadata.get(key)
    if value is None:
        raise TokenizerError(f"The GGUF file has no '{key}'; use a file that carries its tokenizer.")
    return value


def _role(metadata: Mapping[str, Any], role: str, size: int) -> int | None:
    """The id that plays a role; None when the file has none (or writes an impossible one for none)."""
    token_id = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return token_id if token_id is not None and 0 <= token_id < size else None


def _config(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], add_bos: bool) -> bytes:
    """tokenizer_config.json: roles, BOS rule and control tokens (not the user-defined ones)."""
    roles = {ours: _role(metadata, theirs, len(tokens)) for ours, theirs in _ROLES.items()}
    config: dict[str, Any] = {
        f"{role}_token": tokens[token_id] for role, token_id in roles.items() if token_id is not None
    }
    config["add_bos_token"] = add_bos
    config["legacy"] = True
    config["added_tokens_decoder"] = {
        str(token_id): {"content": tokens[token_id], "special": True}
        for token_id, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL)
    }
    return json.dumps(config, ensure_ascii=False, indent=1).encode()


def _bpe(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], split: PreTokenizer
) -> bytes:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    _check_unique(tokens, vocabulary)
    # An array can't be empty in GGUF, so a vocabulary without merges has one empty text.
    merges = [merge.split(" ") for merge in _required(metadata, "tokenizer.ggml.merges") if merge]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise TokenizerError(
                f"The GGUF file's merge '{one_line(' '.join(merge))}' does not join two of its tokens; "
                "download it again."
            )
    added = [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[token_id] != USER_DEFINED,
        }
        for token_id, token in enumerate(tokens)
        if types[token_id] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if split.nfc else None,
        "pre_tokenizer": split.to_json(),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split.ignore_merges,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> bytes:
    from edge.text.tokenizer.sentencepiece_model import model_proto, sentencepiece_process

    scores = _required(metadata, "tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise TokenizerError(
            f"The GGUF file has {len(tokens)} tokens but {len(scores)} scores; download it again."
        )
    proto = model_proto()()
    roles = {name: _role(metadata, key, len(tokens)) for name, key in _ROLES.items()}
    unknown = roles["unk"] if roles["unk"] is not None else 0
    for token_id, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        if not token or "\0" in token:
            raise TokenizerError(
                f"The GGUF file's token {token_id} is empty or holds a NUL, which SentencePiece does not "
                "know; use another file of this model."
            )
        # SentencePiece wants exactly one unknown token.
        if token_id == unknown or kind == UNKNOWN:
            kind = UNKNOWN if token_id == unknown else CONTROL
        # User-defined tokens are stored as they are written, but SentencePiece looks for them in escaped
        # text.
        piece = token.replace(" ", SPACE_SYMBOL) if kind == USER_DEFINED else token
        proto.pieces.add(piece=piece, score=score, type=kind)
    _check_unique(tokens, {token: None for token in tokens})
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = BYTE in types
    for role in ("unk", "bos", "eos", "pad"):
        role_id = unknown if role == "unk" else roles[role]
        setattr(trainer, f"{role}_id", -1 if role_id is None else role_id)
        if role_id is not None:
            setattr(trainer, f"{role}_piece", tokens[role_id])
    normalizer = proto.normalizer_spec
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None:
        normalizer.precompiled_charsmap = bytes(value & 0xFF for value in charsmap)
    else:
        normalizer.name = "identity"
    # MiniCPM was trained without prefix space, and the files that llama.cpp's converter writes for it do not
    # say.
    default_prefix = metadata.get("general.architecture") != "minicpm"
    normalizer.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", default_prefix))
    normalizer.remove_extra_whitespaces = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    data: bytes = proto.SerializeToString()
    sentencepiece_process(data, None, legacy=True).close()  # refuses now what could not be opened later
    return data


def _check_unique(tokens: Sequence[str], distinct: Mapping[str, Any]) -> None:
    if len(distinct) == len(tokens):
        return
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise TokenizerError(
                f"The GGUF file lists the token '{one_line(token)}' twice; use a file whose tokens are "
                "distinct."
            )
        seen.add(token)
