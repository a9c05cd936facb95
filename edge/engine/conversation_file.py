"""The file of a conversation: messages, system prompt and settings as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.engine.settings import merge_settings
from edge.errors import EdgeError
from edge.formats.atomic import remove_leftovers, write_failure, write_file
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import read_regular
from edge.formats.names import user_path
from edge.text.messages import parse_messages

_TOKEN_ID = re.compile("[0-9]{1,10}")
FORMAT = "minicpm-edge-conversation"
VERSION = 1


def write_conversation(path: str | Path, conversation: Mapping[str, Any]) -> None:
    """Write what `read_conversation` gives back, atomically, in a file that only its owner can read.

    Raises EdgeError if the file can't be written.
    """
    path = user_path(path)
    data = {"format": FORMAT, "version": VERSION, **conversation}
    try:
        text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
        write_file(path, text.encode("utf-8", "replace"), private=True)
    except OSError as error:
        raise EdgeError(write_failure(path, error)) from None


def read_conversation(path: str | Path) -> dict[str, Any]:
    """The checked contents of a conversation file; `messages` are Messages."""
    path = user_path(path)
    remove_leftovers(path.parent)
    try:
        text = read_regular(path)
    except OSError as error:
        raise EdgeError(f"Cannot read '{path}': {error.strerror or error}.") from None
    data = parse_object(text, path, EdgeError, "name a saved conversation of this program")
    if data.get("format") != FORMAT:
        raise EdgeError(f"'{path}' is not a saved conversation of this program.")
    if data.get("version") != VERSION:
        raise EdgeError(
            f"'{path}' has format version {data.get('version')!r} and this program reads version {VERSION}: "
            "update minicpm-edge."
        )
    kinds = {"system": (str, type(None)), "thinking": (bool, type(None)), "settings": dict, "messages": list}
    for name, kind in kinds.items():
        if name not in data or not isinstance(data[name], kind):  # type: ignore[arg-type]
            raise EdgeError(
                f"The saved conversation '{path}' is damaged: its field '{name}' is missing or wrong."
            )
    try:
        messages = parse_messages(data["messages"])
    except EdgeError as error:
        raise EdgeError(
            f"The saved conversation '{path}' is damaged: it has a message without role or text: {error}"
        ) from None
    try:
        merge_settings(request=_with_integer_keys(data["settings"]))
    except EdgeError as error:
        raise EdgeError(f"The conversation in '{path}' has settings that can't be used: {error}") from None
    return {**data, "settings": _with_integer_keys(data["settings"]), "messages": messages}


def _with_integer_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has turned the token ids of `logit_bias` into strings."""
    bias = settings.get("logit_bias")
    if not isinstance(bias, dict):
        return settings
    return {**settings, "logit_bias": {int(k) if _TOKEN_ID.fullmatch(k) else k: v for k, v in bias.items()}}
