"""One request, prepared: from messages, tools and wishes to a prompt, a constraint and a reader.

`Model.prepare` is where it is called; every API (Python's own, the server's) asks through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge.engine.answer import Constraint
from edge.engine.settings import GenerationSettings
from edge.text.messages import AUTO, Message, Tool, ToolChoice
from edge.text.reply import ReplyParser

if TYPE_CHECKING:
    from edge.engine.constraints.grammar import Grammar


@dataclass(frozen=True)
class Request:
    """What is asked of a model.

    tools: what it may ask to call. tool_choice: whether it does. parallel_tool_calls: False allows one call
    an answer. grammar: what its text must be. thinking: what templates know as `enable_thinking`, None leaves
    it to the template. thinking_budget: most tokens of it. template_variables: others that the template
    knows. settings: names of `edge.engine.settings.SETTING_NAMES`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    grammar: Grammar | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What an answer is made of.

    prompt: its token ids. parser: makes a reader of the answer's text. constraint: makes what its tokens must
    keep to, None for anything. visible: control tokens that belong to the answer's text.
    """

    prompt: tuple[int, ...]
    settings: GenerationSettings
    parser: Callable[[], ReplyParser]
    constraint: Callable[[], Constraint | None]
    visible: frozenset[int]
