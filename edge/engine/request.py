"""One request, prepared: from messages, tools and wishes to a prompt, a constraint and a reader.

`Model.prepare` is where it is called; every API (Python's own, the server's) asks through it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from edge.engine.answer_settings import check_settings
from edge.engine.completion import Chunk, Completion
from edge.engine.constraints.constraint import Constraint
from edge.engine.generation import generate
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings
from edge.errors import EdgeError
from edge.text.messages import AUTO, Message, Tool, ToolChoice, new_call_id
from edge.text.prompts import PromptEncoder
from edge.text.reply import CallEnd, ContentText, ReasoningText, ReplyParser
from edge.text.thinking import Thinking, opened, thinking_marks
from edge.text.tokenizer.base import Tokenizer
from edge.text.tools.grammar import answer_grammar

if TYPE_CHECKING:
    from edge.engine.constraints.grammar import Grammar

_TAIL = 32  # tokens of a prompt in which it may have begun to think


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

    @property
    def variables(self) -> dict[str, Any]:
        """All variables of the template."""
        thinking = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return {**self.template_variables, **thinking}


@dataclass(frozen=True)
class Prepared:
    """What an answer is made of.

    prompt: its token ids. parser: makes a reader of the answer's text. constraint: makes what its tokens must
    keep to, None for anything. visible: control tokens that belong to the answer's text. opening: tokens at
    the end of the prompt with which the answer has begun to think.
    """

    prompt: tuple[int, ...]
    settings: GenerationSettings
    parser: Callable[[], ReplyParser]
    constraint: Callable[[], Constraint | None]
    visible: frozenset[int]
    opening: tuple[int, ...] = ()


def prepare(
    request: Request,
    encoder: PromptEncoder,
    settings: GenerationSettings,
    prompt: Sequence[int] | None = None,
) -> Prepared:
    """What an answer to a request is made of. prompt: of the request, if it is known.

    Raises EdgeError for messages that the template refuses, for a schema that can't be kept to, and for
    settings that name tokens which the model does not have.
    """
    tokenizer = encoder.tokenizer
    check_settings(settings, tokenizer)
    if request.tool_choice.must_call and not request.tools:
        raise EdgeError("The tool choice asks for a call, but there are no tools: give some.")
    if prompt is None:
        prompt = encoder.encode(request.messages, request.tools, **request.variables)
    special = tokenizer.special_tokens
    tail = tuple(prompt[-_TAIL:])
    marks = thinking_marks(encoder.template_source, special)
    thinking = opened(tokenizer.decode(tail, skip_special=False), marks)
    form = encoder.tool_support.form if request.tools and request.tool_choice.mode != "none" else None
    texts = [] if form is None else list(form.marks)
    texts += [] if thinking is None else [thinking.opening, thinking.closing]
    control = frozenset(text for text in texts if text in special)
    constraint = partial(_constraint, request, encoder, thinking)
    constraint()  # what is wrong is said now, and what was compiled is kept
    return Prepared(
        tuple(prompt),
        settings,
        partial(ReplyParser, form, request.tools, thinking, control),
        constraint,
        frozenset(special[text] for text in control),
        _opening(tail, thinking, tokenizer),
    )


def parsed(done: Completion, parser: ReplyParser) -> Completion:
    """The answer with what it says as a reply."""
    parts = [*parser.push(done.text), *parser.finish()]
    calls = (part.call for part in parts if isinstance(part, CallEnd))
    return replace(
        done,
        reasoning="".join(part.text for part in parts if isinstance(part, ReasoningText)) or None,
        content="".join(part.text for part in parts if isinstance(part, ContentText)),
        calls=tuple(replace(call, id=new_call_id()) for call in calls),
    )


def with_parts(
    chunks: Generator[Chunk, None, Completion], parser: ReplyParser
) -> Generator[Chunk, None, Completion]:
    """The same chunks with the parts of the reply, and one more if that has something left."""
    done = yield from _pushed(chunks, parser)
    if left := tuple(parser.finish()):
        yield Chunk("", parts=left)
    return done


def answer_prepared(
    prepared: Prepared,
    session: Session,
    tokenizer: Tokenizer,
    cancelled: Callable[[], bool],
    ended: Callable[[Completion], None],
) -> Generator[Chunk, None, Completion]:
    """The chunks of an answer with their parts; see `edge.engine.generation.Stream` for the last two."""
    chunks = generate(
        session,
        prepared.prompt,
        prepared.settings,
        tokenizer,
        cancelled,
        lambda done: ended(parsed(done, prepared.parser())),
        constraint=prepared.constraint(),
        visible=prepared.visible,
    )
    return with_parts(chunks, prepared.parser())


def _pushed(
    chunks: Generator[Chunk, None, Completion], parser: ReplyParser
) -> Generator[Chunk, None, Completion]:
    try:
        while True:
            try:
                chunk = next(chunks)
            except StopIteration as end:
                done: Completion = end.value
                return done
            yield replace(chunk, parts=tuple(parser.push(chunk.text)))
    finally:
        chunks.close()  # what ends this one in its middle ends the answer


def _constraint(request: Request, encoder: PromptEncoder, thinking: Thinking | None) -> Constraint | None:
    """What one answer must keep to, thinking apart."""
    tokenizer, budget, choice = encoder.tokenizer, request.thinking_budget, request.tool_choice
    must = request.grammar is not None or choice.must_call or any(tool.strict for tool in request.tools)
    if not (must or request.tools or budget is not None):
        return None
    if not must and budget is None and find_spec("llguidance") is None:
        return None  # an answer that may call is as good as its model
    if thinking is not None and request.thinking is False and not thinking.is_open:
        thinking = None  # what is constrained does not think then
    token = None if thinking is None else tokenizer.special_tokens.get(thinking.opening)
    is_apart = thinking is not None and (thinking.is_open or token is not None)
    thought = None
    if thinking is not None:
        thought = ("", "") if is_apart else (thinking.opening, thinking.closing)
    try:
        inner = _answer(request, encoder, thought)
    except EdgeError:
        if must:
            raise
        inner = None
    if thinking is None or (inner is None and budget is None):
        return inner
    from edge.engine.constraints.thinking import AfterThinking, LimitedThinking, ThinkingBudget

    limit = None
    if budget is not None:
        closing = tokenizer.encode(f"\n{thinking.closing}", add_bos=False, parse_special=True, continues=True)
        limit = ThinkingBudget(budget, tuple(closing))
    if not is_apart:
        marks = (thinking.opening, thinking.closing)
        return inner if limit is None else LimitedThinking(inner, marks, tokenizer, limit)
    opens = None if thinking.is_open else token
    return AfterThinking(inner, thinking.closing, tokenizer, opens=opens, budget=limit)


def _answer(request: Request, encoder: PromptEncoder, thought: tuple[str, str] | None) -> Constraint | None:
    """What the answer must keep to behind its thinking."""
    from edge.engine.constraints.grammar import Grammar, compile_grammar

    tokenizer, grammar = encoder.tokenizer, request.grammar
    if not request.tools or (grammar is not None and request.tool_choice.mode == "none"):
        return None if grammar is None else compile_grammar(grammar, tokenizer)
    text = answer_grammar(
        encoder.tool_support.form,
        request.tools,
        request.tool_choice,
        tokenizer.special_tokens,
        parallel=request.parallel_tool_calls,
        thought=thought,
        content=None if grammar is None or request.tool_choice.must_call else _expression(grammar),
    )
    return None if text is None else compile_grammar(Grammar.lark(text), tokenizer)


def _expression(grammar: Grammar) -> str:
    """A grammar inside of another one."""
    if grammar.kind == "json_schema":
        return f"%json {grammar.source}"
    if grammar.kind == "json_object":
        return '%json {"type": "object"}'
    raise EdgeError(
        f"A {grammar.kind} grammar and tools can't be had together: leave one out, or set the tool choice."
    )


def _opening(tail: Sequence[int], thinking: Thinking | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    token = None if thinking is None else tokenizer.special_tokens.get(thinking.opening)
    if thinking is None or not thinking.is_open or token is None or token not in tail:
        return ()
    return tuple(tail[len(tail) - 1 - list(reversed(tail)).index(token) :])
