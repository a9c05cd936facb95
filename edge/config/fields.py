"""Typed access to mappings that others wrote; every failure names the field and where it was looked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.errors import ConfigError


@dataclass(frozen=True)
class Fields:
    """The fields of a mapping.

    where: what holds them, in words. prefix: of every key. names: what a field is called there, where that
    differs from ours. defaults: what holds for a field, by our name, that is absent.
    """

    data: Mapping[str, Any]
    where: str
    prefix: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """The key of a field."""
        return self.prefix + self.names.get(name, name)

    def get(self, name: str) -> Any:
        """The value, or None when it is absent or null and has no default.

        ConfigError if a field that is called otherwise stands there under our name too, with another value.
        """
        key = self.key(name)
        value = self.data.get(key)
        if name in self.names:
            refuse_two(self.where, {key: value, name: self.data.get(name)})
        return self.defaults.get(name) if value is None else value

    def is_null(self, name: str) -> bool:
        """Whether null stands there, which some fields tell apart from being absent."""
        key = self.key(name)
        return key in self.data and self.data[key] is None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; required if there is no default, as in the methods below."""
        value = self._required(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
            raise self._wrong(name, "an integer", value)
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number, or None."""
        return None if self.get(name) is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A number within the range of a float."""
        value = self._required(name, default)
        if not _is_number(value):
            raise self._wrong(name, "a number", value)
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A number, or None."""
        return None if self.get(name) is None else self.number(name)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str) -> str:
        """A text; always required."""
        value = self._required(name, None)
        if not isinstance(value, str):
            raise self._wrong(name, "a text", value)
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers, empty if it is absent."""
        values = self._list(name, "a list of numbers")
        if not all(_is_number(value) for value in values):
            raise self._wrong(name, "a list of numbers", values)
        return tuple(float(value) for value in values)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty if it is absent."""
        values = self._list(name, "a list of texts")
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(name, "a list of texts", values)
        return values

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them, each once, without null and negative numbers, which mean none."""
        value = self.get(name)
        values = value if isinstance(value, (list, tuple)) else [value]
        given = [item for item in values if item is not None]
        if not all(_is_number(item) and item == int(item) for item in given):
            raise self._wrong(name, "a token id or a list of them", value)
        return unique(int(item) for item in given if item >= 0)

    def _list(self, name: str, wanted: str) -> tuple[Any, ...]:
        values = self.get(name)
        if values is not None and not isinstance(values, (list, tuple)):
            raise self._wrong(name, wanted, values)
        return tuple(values or ())

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self.where} lacks the required field '{self.key(name)}'.")
        return value

    def _wrong(self, name: str, wanted: str, value: Any) -> ConfigError:
        return ConfigError(
            f"The field '{self.key(name)}' of {self.where} must be {wanted}, not {shown(value)}."
        )


def unique(values: Iterable[int]) -> tuple[int, ...]:
    """Every value once, in order."""
    return tuple(dict.fromkeys(values))


def head_size(value: int | None, hidden_size: int, heads: int) -> int:
    """The size of an attention head: as given, or hidden_size / heads."""
    if heads <= 0:
        raise ConfigError(f"num_attention_heads must be a positive number, not {heads}.")
    if value is not None:
        return value
    if hidden_size % heads:
        raise ConfigError(f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({heads}).")
    return hidden_size // heads


def refuse_two(where: str, values: Mapping[str, Any]) -> None:
    """ConfigError if one fact, which stands under several names, has more than one value besides null."""
    said = {name: value for name, value in values.items() if value is not None}
    first, *others = said.items() or [("", None)]
    for name, value in others:
        if value != first[1]:
            raise ConfigError(
                f"{where} contradicts itself: '{first[0]}' is {shown(first[1])}, but '{name}' is "
                f"{shown(value)}; remove the wrong one."
            )


def shown(value: Any) -> str:
    """A value in a message, cut to a length that can be read."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[str]) -> str:
    """Names in a sentence: `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _is_number(value: Any) -> bool:
    """Whether a value is a number within the range of a float."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
