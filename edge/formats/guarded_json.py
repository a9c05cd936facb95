"""Reads JSON that came from a file: whatever the bytes are, the result is plain data or one sentence.

Nothing else in the product calls `json.loads` on what a file or another process says. Python's own reader
takes UTF-16, lone surrogates, the last of two equal keys, and numbers and nestings on which the code behind
it fails (OverflowError, RecursionError).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.formats.names import in_words

MOST_BYTES = 64 << 20
"""The largest document: twice the largest tokenizer.json that we know."""
_MOST_VALUES = 1 << 22  # of 60 to 250 bytes each, so a document takes less than 1 GB
_DEEPEST = 64
_LONGEST_NUMBER = 300  # digits that a float still holds
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (_LONGEST_NUMBER + 1))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class _Unusable(ValueError):
    """Says what is wrong with a document."""


def parse_json(
    data: bytes | str, where: str | Path, error: type[EdgeError], advice: str, *, finite: bool = False
) -> Any:
    """The JSON value in `data`, UTF-8 if bytes.

    where: its path, or words for it. finite: refuse NaN, Infinity and 1e999 as the standard does, so that the
    value can be written as JSON again; configs of models have them. Raises `error` with the sentence "WHERE
    is not valid JSON: REASON; ADVICE." for all else that strict JSON forbids, and for documents that are too
    large, deeper than 64 levels, or give a key two different values.
    """
    try:
        return _parse(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data, finite)
    except _Unusable as reason:
        what = str(reason)
    except UnicodeDecodeError:
        what = "it is not UTF-8 text"
    except RecursionError:
        what = f"it is nested deeper than {_DEEPEST} levels"
    except json.JSONDecodeError as reason:
        what = f"{reason.msg} at line {reason.lineno}"
    except ValueError:  # an integer that Python refuses to convert
        what = "it has a number with too many digits"
    raise error(f"{in_words(where)} is not valid JSON: {what}; {advice}.")


def parse_object(data: bytes | str, where: str | Path, error: type[EdgeError], advice: str) -> dict[str, Any]:
    """The same for a document that must be an object."""
    value = parse_json(data, where, error, advice)
    if not isinstance(value, dict):
        raise error(f"{in_words(where)} must hold a JSON object; {advice}.")
    return value


def decode_text(data: bytes, where: str | Path, error: type[EdgeError]) -> str:
    """A text file's contents; raises `error` if they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{in_words(where)} is not UTF-8 text; get the file again.") from None


def _parse(data: bytes, finite: bool) -> Any:
    if len(data) > MOST_BYTES:
        raise _Unusable(f"it is larger than {MOST_BYTES >> 20} MiB")
    brackets = data.count(b"[") + data.count(b"{")
    if brackets + data.count(b",") > _MOST_VALUES:
        raise _Unusable(f"it has more than {_MOST_VALUES} values")
    integer = _bounded if _LONG_NUMBER.search(data) else None
    number = _finite if finite else None  # it gets NaN and Infinity as well
    value = json.loads(
        data.decode("utf-8-sig"),
        object_pairs_hook=_object,
        parse_int=integer,
        parse_float=number,
        parse_constant=number,
    )
    if brackets > _DEEPEST and _is_deep(value):
        raise _Unusable(f"it is nested deeper than {_DEEPEST} levels")
    if _SURROGATE.search(data) and not _is_text(json.dumps(value, ensure_ascii=False)):
        raise _Unusable("it has half of a character (a lone surrogate)")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise _Unusable(f"it gives {key[:80]!r} two values")
    return found


def _bounded(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise _Unusable(f"it has a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Unusable(f"it has the number {text[:80]}, which JSON can't say")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
