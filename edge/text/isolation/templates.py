"""Compiles and renders chat templates: the Jinja environment that Hugging Face gives them, sandboxed.

Served in a process of its own (`worker`), which limits time and memory; the sandbox keeps templates away from
Python's internals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge.errors import EdgeError
from edge.text.isolation.server import one_line


class Program:
    """What the process offers; every failure of a template is an EdgeError of one sentence."""

    def check(self, source: str) -> None:
        """Compile a template."""
        _compiled(source)

    def render(self, source: str, values: Mapping[str, Any]) -> str:
        """The text that a template makes of its variables."""
        template = _compiled(source)
        try:
            return template.render(values)
        except _Refusal as error:
            raise EdgeError(f"The chat template does not accept these messages: {one_line(error)}.") from None
        except MemoryError:
            raise
        except Exception as error:  # a template is foreign code and can fail in any way
            raise EdgeError(
                f"The chat template failed ({one_line(error)}); check the messages, or correct the model's "
                "chat_template.jinja."
            ) from None


@lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    try:
        return _Environment().from_string(source)
    except MemoryError:
        raise
    except Exception as error:  # also Python's own limits: on nested blocks, on the digits of a number
        line = getattr(error, "lineno", None) if isinstance(error, TemplateError) else None
        where = f" in line {line}" if line else ""
        reason = error.msg if isinstance(error, SyntaxError) else error  # its line is not the template's
        raise EdgeError(
            f"The chat template is not valid Jinja{where} ({one_line(reason)}); correct the model's "
            "chat_template.jinja."
        ) from None


class _Refusal(TemplateError):
    """The template called `raise_exception`: it does not accept these messages."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (the type that jinja2 gives it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Hugging Face's `tojson`: unlike Jinja's own it does not escape for HTML."""
    pair = None if separators is None else (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
