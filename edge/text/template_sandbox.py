"""The Jinja environment of chat templates: what Hugging Face's has, sandboxed, with limits on time and size.

Templates come with downloaded models and are code. The sandbox keeps them away from Python's internals; the
limits stop one that loops or grows without end. Imports jinja2, so it is itself imported only when needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 1 << 25
"""The longest text that a template may build; a window of 131072 tokens is a sixtieth of that."""
_MAX_EXPONENT = 1024

_deadline: ContextVar[float] = ContextVar("deadline")


class Refusal(TemplateError):
    """The template called `raise_exception`: it does not accept these messages."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Rendering inside this block, in this thread, stops with SecurityError after so many seconds."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (the type that jinja2 gives it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Limits(NodeTransformer):
    """Adds checks to the rounds of loops and to concatenation with `~`; calls and operators have theirs."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        check = _call("check_time", []).set_lineno(node.lineno)
        node.body.insert(0, nodes.ExprStmt(check).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat_checked", node.nodes).set_lineno(node.lineno)


def _call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


class Environment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. Render only inside `time_limit`."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Limits().visit(tree)
        return tree

    def check_time(self) -> None:
        """Raise SecurityError when the time of this rendering is over."""
        if time.monotonic() > _deadline.get():
            raise SecurityError("it takes too long, probably a loop that does not end")

    def concat_checked(self, *parts: Any) -> str:
        """What `~` does, within the size limit."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        self.check_time()
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.check_time()
        if operator == "**":
            if isinstance(right, (int, float)) and right > _MAX_EXPONENT:
                raise SecurityError(f"it raises to a power above {_MAX_EXPONENT}")
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    _check_size(len(sequence) * count)
        elif isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def _check_size(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise SecurityError(f"it builds a text of more than {MAX_CHARACTERS} characters")


def join_output(parts: Iterator[str]) -> str:
    """Collect what a template generates, within the size limit."""
    found: list[str] = []
    length = 0
    for part in parts:
        length += len(part)
        _check_size(length)
        found.append(part)
    return "".join(found)


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
    raise Refusal(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
