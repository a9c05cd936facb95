"""Which of a folder's chat templates counts: old and new places for it stand side by side in many folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.config.fields import listed
from edge.system.notices import notice


def chosen_template(found: Mapping[str, Any], where: str) -> str | None:
    """The first usable template of `found`, with notices about others that differ.

    found: by the file's name, best first, what it has: a template, several with names (of which `default`
    counts, as in transformers), or None. where: the folder, for messages.
    """
    templates = {name: _default(entry, f"{where}: {name}") for name, entry in found.items()}
    usable = {name: template for name, template in templates.items() if template is not None}
    if len(set(usable.values())) > 1:
        used, *others = usable
        notice(
            f"{where} has different chat templates: that of {used} is used, as transformers does, and that "
            f"of {listed(others)} not."
        )
    return next(iter(usable.values()), None)


def _default(entry: Any, where: str) -> str | None:
    """The template of one file; a notice where it has none that counts."""
    names: list[Any] = []
    if isinstance(entry, list):
        named = [each for each in entry if isinstance(each, dict)]
        entry = next((each.get("template") for each in named if each.get("name") == "default"), None)
        names = [each.get("name") for each in named]
    if entry is None and not names:
        return None
    if isinstance(entry, str):
        return entry
    what = f"those named {listed(map(repr, names))}" if names else "a chat_template that is no text"
    notice(f"{where} has no default chat template, only {what}: without effect.")
    return None
