"""A `tokenizer.json` that ExecuTorch's phone runner reads like the model's own tokenizer.

A model with a `tokenizer.model` only gets one (`edge.export.targets.tokenizer_json`). An existing file is
changed in one place: the runner loses text that a `Split` does not match, so the one that isolates digits is
written as `Digits`.
"""

from __future__ import annotations

from typing import Any

from edge.errors import TokenizerError
from edge.export.source import Source
from edge.export.targets.tokenizer_json import TOKENIZER, checked_tokenizer, converted_tokenizer
from edge.formats.guarded_json import parse_object

_DIGIT_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": r"\p{N}"},
    "behavior": "Isolated",
    "invert": False,
}


def runner_tokenizer(source: Source) -> bytes | None:
    """The file to write, or None if the source's own will do; ExportError if none is exact."""
    if TOKENIZER not in source.tokenizer_files:
        return converted_tokenizer(source)
    changed = parse_object(
        source.tokenizer_files[TOKENIZER], TOKENIZER, TokenizerError, "get the model's files again"
    )
    return checked_tokenizer(source, changed) if _write_digits(changed.get("pre_tokenizer")) else None


def _write_digits(pre_tokenizer: Any) -> bool:
    """Replace every `Split` that isolates single digits, in place; whether there was one."""
    parts = (pre_tokenizer or {}).get("pretokenizers", [])
    found = [index for index, part in enumerate(parts) if part == _DIGIT_SPLIT]
    for index in found:
        parts[index] = {"type": "Digits", "individual_digits": True}
    return bool(found)
