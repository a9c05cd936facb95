"""The fields of a request's body, each read with its type and its limits; a wrong one is named.

A field that is null counts as absent, as in OpenAI's API.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from edge.apps.serve.errors import ApiError, refusal
from edge.errors import EdgeError
from edge.formats.guarded_json import parse_json

_T = TypeVar("_T")
_LONGEST_SHOWN = 60


class _BodyError(EdgeError):
    pass


def read_body(data: bytes) -> Fields:
    """The JSON object in a request's body; ApiError if there is none."""
    if not data.strip():
        raise refusal(None, "The request has no body: send a JSON object.")
    try:
        value = parse_json(data, "The request's body", _BodyError, "send a JSON object", finite=True)
    except _BodyError as error:
        raise refusal(None, str(error)) from None
    if not isinstance(value, dict):
        raise refusal(None, f"The request's body must be a JSON object, got {shown(value)}.")
    return Fields(value)


def shown(value: Any) -> str:
    """A value in a sentence."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


class Fields:
    """The fields of one object. path: where it stands in the body, for messages."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values, self.path = values, path

    def name(self, field: str) -> str:
        """The full name of a field, such as `messages[0].content`."""
        return f"{self.path}.{field}" if self.path else field

    def has(self, field: str) -> bool:
        """Whether a field is there and not null."""
        return self.values.get(field) is not None

    def error(self, field: str, must: str) -> ApiError:
        """The refusal of a field: it `must`, for example `be a text`."""
        return refusal(self.name(field), f"{self.name(field)} must {must}, got {shown(self.values[field])}.")

    def missing(self, field: str) -> ApiError:
        """The refusal of a body without a field."""
        return refusal(self.name(field), f"{self.name(field)} is missing.", "missing_required_parameter")

    def refuse(self, field: str, sentence: str, *, harmless: Sequence[Any] = ()) -> None:
        """Raise ApiError if a field is there that this server can't do, unless its value changes nothing."""
        if self.has(field) and self.values[field] not in harmless:
            raise refusal(self.name(field), f"{self.name(field)}: {sentence}", "unsupported_parameter")

    def text(self, field: str, default: _T = None, *, most: int | None = None) -> str | _T:  # type: ignore[assignment]
        """A text, of so many characters at most."""
        if not self.has(field):
            return default
        value = self.values[field]
        if not isinstance(value, str):
            raise self.error(field, "be a text")
        if most is not None and len(value) > most:
            name = self.name(field)
            raise refusal(name, f"{name} may have {most} characters at most.")
        return value

    def required_text(self, field: str) -> str:
        """A text that must be there."""
        value = self.text(field)
        if value is None:
            raise self.missing(field)
        return value

    def flag(self, field: str, default: _T = False) -> bool | _T:  # type: ignore[assignment]
        """True or false."""
        if not self.has(field):
            return default
        value = self.values[field]
        if not isinstance(value, bool):
            raise self.error(field, "be true or false")
        return value

    def whole(self, field: str, least: int, most: int | None = None) -> int | None:
        """A whole number in a range."""
        if not self.has(field):
            return None
        value = self.values[field]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            must = f"of {least} or more" if most is None else f"from {least} to {most}"
            raise self.error(field, f"be a whole number {must}")
        return int(value)

    def number(self, field: str, least: float, most: float) -> float | None:
        """A number in a range."""
        if not self.has(field):
            return None
        value = self.values[field]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:
            raise self.error(field, f"be a number from {least:g} to {most:g}")
        return float(value)

    def choice(self, field: str, choices: Sequence[str], default: _T = None) -> str | _T:  # type: ignore[assignment]
        """One of several words."""
        value = self.text(field, default)
        if self.has(field) and value not in choices:
            raise self.error(field, f"be one of {', '.join(choices)}")
        return value

    def object(self, field: str) -> Fields | None:
        """An object's fields."""
        if not self.has(field):
            return None
        value = self.values[field]
        if not isinstance(value, dict):
            raise self.error(field, "be an object")
        return Fields(value, self.name(field))

    def list(self, field: str) -> list[Any] | None:
        """A list of anything."""
        if not self.has(field):
            return None
        value = self.values[field]
        if not isinstance(value, list):
            raise self.error(field, "be a list")
        return value

    def objects(self, field: str) -> Iterator[Fields]:
        """The objects of a list; nothing if it is absent."""
        for index, value in enumerate(self.list(field) or ()):
            where = f"{self.name(field)}[{index}]"
            if not isinstance(value, dict):
                raise refusal(where, f"{where} must be an object, got {shown(value)}.")
            yield Fields(value, where)

    def texts(self, field: str, most: int) -> tuple[str, ...] | None:
        """A text or a list of texts, none of them empty."""
        if not self.has(field):
            return None
        value = self.values[field]
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise self.error(field, "be a text or a list of texts, none of them empty")
        if len(texts) > most:
            raise refusal(self.name(field), f"{self.name(field)} may have {most} texts at most.")
        return tuple(texts)
