"""The small JSON files beside a tokenizer: special tokens and their roles, and Llama's prefix-space flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.formats.guarded_json import parse_object
from edge.system.notices import notice
from edge.text.end_tokens import END_TOKENS
from edge.text.tokenizer.segments import AddedToken

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
    "eot_token",
    "eom_token",
)
_ENDS = ("eos_token", "eot_token", "eom_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class TokenizerSettings:
    """What `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say.

    added: every token they list with an id. special_texts: tokens that play a special role, with or without
    id. named: texts by role (`bos_token`, ...). ends: texts of the tokens that end an answer or a turn, of
    all files. needed: special_texts but for padding. chat_template: its source, or an empty text. add_bos,
    add_prefix_space: None where the files are silent. legacy: each piece of text between special tokens gets
    the prefix space that the first one gets (Hugging Face's `legacy`, true when absent, as it was when such
    files were written).
    """

    added: tuple[AddedToken, ...]
    special_texts: frozenset[str]
    named: Mapping[str, str]
    ends: tuple[str, ...]
    needed: frozenset[str]
    chat_template: str
    add_bos: bool | None
    add_prefix_space: bool | None
    legacy: bool

    def bos(self, find: Callable[[str], int | None], config: ModelConfig) -> int | None:
        """The BOS id: these files' or the config's. find: a token's id by its text."""
        found = find(self.named["bos_token"]) if "bos_token" in self.named else None
        return config.bos_token_id if found is None else found

    def merged(self, known: Iterable[AddedToken], size: int) -> tuple[AddedToken, ...]:
        """All added tokens by ascending id: these files' own and the ones that the tokenizer already `known`.

        Where both have a token, the tokenizer's own matching rules win; a special role always makes it
        special, and so does a text that ends turns everywhere, as in llama.cpp. size: of the model's
        vocabulary; tokens beyond it that neither have a role but padding nor stand in the chat template
        (fine-tunes add them and leave the embedding as it was) are left out, with a note.
        """
        tokens = {token.id: token for token in (*self.added, *known)}
        beyond = {token_id: token.text for token_id, token in tokens.items() if token_id >= size}
        needed = any(text in self.needed or text in self.chat_template for text in beyond.values())
        if beyond and not needed:
            notice(
                f"The tokenizer has {', '.join(map(repr, beyond.values()))} beyond the {size} tokens of the "
                "network: never written and never read as a token."
            )
            tokens = {token_id: token for token_id, token in tokens.items() if token_id < size}
        return tuple(
            AddedToken(
                token.id,
                token.text,
                token.special or token.text in self.special_texts or token.text in END_TOKENS,
                token.lstrip,
                token.rstrip,
            )
            for _, token in sorted(tokens.items())
        )


def read_settings(files: Mapping[str, bytes], chat_template: str | None = None) -> TokenizerSettings:
    """Read the files that are there; TokenizerError names a file that is not what it should be."""
    config, mapped = _object(files, "tokenizer_config.json"), _object(files, "special_tokens_map.json")
    roles = {**mapped, **config}
    texts = {role: _text(roles.get(role)) for role in _ROLES}
    listed = [_text(entry) for name in _LISTS for entry in _entries(roles.get(name))]
    special_texts = frozenset(text for text in (*texts.values(), *listed) if text)
    padding = texts["pad_token"]
    needed = {text for role, text in texts.items() if text and role != "pad_token"}
    needed |= {text for text in listed if text and text != padding}
    ends = [_text(file.get(role)) for role in _ENDS for file in (config, mapped)]
    try:
        added = {
            int(token_id): AddedToken(
                int(token_id),
                entry["content"],
                bool(entry.get("special", False)),
                bool(entry.get("lstrip", False)),
                bool(entry.get("rstrip", False)),
            )
            for token_id, entry in config.get("added_tokens_decoder", {}).items()
        }
        for text, token_id in _object(files, "added_tokens.json").items():
            added.setdefault(int(token_id), AddedToken(int(token_id), text, text in special_texts))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TokenizerError(
            f"The list of added tokens beside the tokenizer is not understood ({error!r}); get the model's "
            "files again."
        ) from None
    return TokenizerSettings(
        added=tuple(added.values()),
        special_texts=special_texts,
        named={role: text for role, text in texts.items() if text},
        ends=tuple(dict.fromkeys(text for text in ends if text)),
        needed=frozenset(needed),
        chat_template=chat_template or "",
        add_bos=_flag(config, "add_bos_token"),
        add_prefix_space=_flag(config, "add_prefix_space"),
        legacy=_flag(config, "legacy") is not False,
    )


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_object(files.get(name, b"{}"), name, TokenizerError, "get the model's files again")


def _text(entry: Any) -> str | None:
    """A token is written as its text or as an object with its `content`."""
    found = entry.get("content") if isinstance(entry, dict) else entry
    return found if isinstance(found, str) else None


def _entries(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _flag(config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None
