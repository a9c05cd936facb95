"""`/tokenize`, `/detokenize` and `/apply-template`: what the model reads, as llama.cpp and vLLM say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.apps.serve.asking import read_settings
from edge.apps.serve.chat_request import read_chat_request
from edge.apps.serve.errors import refusal
from edge.apps.serve.responding import json_response
from edge.apps.serve.state import Asked, Served

if TYPE_CHECKING:
    from edge.apps.serve.keys import App

_MOST_IDS = 1 << 18


async def tokenize(served: Served, asked: Asked) -> App:
    """Token ids of a text (`content` or `prompt`), or of a conversation (`messages`)."""
    fields = asked.fields
    served.check_model(fields)
    if fields.has("messages"):
        ids = await _prompt(served, asked)
    else:
        name = "prompt" if fields.has("prompt") else "content"
        text = fields.required_text(name)
        # Each program's own default: with BOS for vLLM's field, without for llama.cpp's.
        add_bos = fields.flag("add_special_tokens", fields.flag("add_special", name == "prompt"))
        special = fields.flag("parse_special", True)
        ids = await served.call(
            asked.started,
            lambda: served.model.tokenizer.encode(
                text, add_bos=None if add_bos else False, parse_special=special
            ),
        )
    found = {"tokens": ids, "count": len(ids), "max_model_len": served.model.context}
    if fields.flag("with_pieces"):
        found["tokens"] = await served.call(asked.started, _with_pieces, served, ids)
    return json_response(found)


def _with_pieces(served: Served, ids: Sequence[int]) -> list[dict[str, Any]]:
    token_bytes = served.model.tokenizer.token_bytes
    return [{"id": token, "piece": token_bytes(token).decode("utf-8", "replace")} for token in ids]


async def detokenize(served: Served, asked: Asked) -> App:
    """The text of token ids."""
    fields = asked.fields
    served.check_model(fields)
    ids = fields.list("tokens")
    if ids is None:
        raise fields.missing("tokens")
    if len(ids) > _MOST_IDS:
        raise refusal("tokens", f"tokens may have {_MOST_IDS} ids at most.")
    text = await served.call(asked.started, _decoded, served, ids)
    return json_response({"content": text, "prompt": text})


def _decoded(served: Served, ids: Sequence[Any]) -> str:
    size = served.model.tokenizer.vocab_size
    for index, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            where = f"tokens[{index}]"
            raise refusal(where, f"{where} must be a token id from 0 to {size - 1}.")
    return served.model.tokenizer.decode(ids, skip_special=False)


async def apply_template(served: Served, asked: Asked) -> App:
    """The text that the model gets to read for a conversation."""
    served.check_model(asked.fields)
    ids = await _prompt(served, asked)
    return json_response({"prompt": await served.call(asked.started, _decoded, served, ids)})


async def _prompt(served: Served, asked: Asked) -> list[int]:
    read_settings(asked.fields)
    request = read_chat_request(asked.fields, supports_thinking=served.model.chat_template.supports_thinking)
    return list((await served.prepare(asked, request)).prompt)
