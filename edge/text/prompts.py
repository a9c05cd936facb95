"""From messages to token ids, through the chat template, so that the KV cache of earlier turns is reused.

Two things go wrong when rendered text is simply encoded. Text of a message could stand for control tokens:
`Tokenizer.protect` marks such places. And encoding an old answer again may give other ids than the model
had produced, so that nothing after it is found in the cache: the ids of answers are kept and put in their
place, with only the text between them encoded.

Places are found by rendering a second time with a sentinel instead of each text. If the template changes an
answer (trims it, drops its thinking), that rendering does not become the first one by putting the text back;
then this answer is encoded from the rendered text, which is always right and only costs time.

An answer with calls or thinking is not its text alone. Where such an answer, written as a plain text that is
all of what the model produced, gives the same prompt, its ids are kept too.

The sentinels also show whether the template writes every message. One that walks over typed content parts
writes nothing for a plain string, without a word; then it gets parts, and is refused if that does not help.
A template that looks at the texts themselves is checked by the rendering with them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations
from time import monotonic
from typing import Any

from edge.config.fields import shown
from edge.errors import EdgeError
from edge.system.notices import notice
from edge.text.answer_memory import AnswerMemory
from edge.text.chat_template import ChatTemplate, TemplateLimitError
from edge.text.messages import Message as Message
from edge.text.messages import Tool
from edge.text.tokenizer.base import LITERAL_MARK, Tokenizer
from edge.text.tools.description import as_text, with_description
from edge.text.tools.detection import (
    ToolSupport,
    messages_with,
    template_message,
    tool_support,
    variables_with,
)

# Noncharacters: no real text contains them.
_OPEN, _CLOSE = "\ufdd1", "\ufdd2"
_SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
# What a template for plain texts makes of typed parts: it prints the list.
_PRINTED_PART = re.compile(f"text['\"]: *['\"]{_OPEN}(\\d+){_CLOSE}")
_FORM_SECONDS = 2.0


class PromptEncoder:
    """Renders and encodes conversations for one model."""

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        check_text: Callable[[str], None] | None = None,
    ) -> None:
        """check_text: raises for a text that is too long to be worth encoding."""
        self._template = template
        self._check_text = check_text
        self.answers = AnswerMemory()
        """What was answered before: such answers keep the ids that they had."""
        self._tokenizer = tokenizer
        self._support: ToolSupport | None = None
        self._lock = threading.Lock()
        self._typed: frozenset[str] = frozenset()  # roles whose content this template wants as typed parts
        self._encoded: dict[tuple[str, bool], list[int]] = {}  # of the last prompt: most of it comes again

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._tokenizer

    @property
    def template_source(self) -> str:
        """The text of the template."""
        return self._template.source

    @property
    def tool_support(self) -> ToolSupport:
        """What the template does for tools."""
        if self._support is None:
            self._support = tool_support(self._template, tuple(self._tokenizer.special_tokens))
        return self._support

    def encode(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), /, **variables: Any
    ) -> list[int]:
        """Ids of the prompt that lets the model answer `messages`; variables go to the template, whatever
        their names.

        tools: what the model may ask to call. A template that knows none, or writes no calls, gets them as
        text (`edge.text.tools.description`). May be called from several threads. Raises EdgeError if the
        template fails, or would leave out a message.
        """
        with self._lock:
            return self._prompt(messages, tools, variables)

    def _prompt(
        self, messages: Sequence[Message], tools: Sequence[Tool], variables: Mapping[str, Any]
    ) -> list[int]:
        if tools or any(message.calls or message.role == "tool" for message in messages):
            support = self.tool_support
            if not support.writes:
                messages = as_text(messages, support.form, tools)
            if tools and support.tells:
                given = [self._all_protected(tool.as_openai()) for tool in tools]
                variables = {**variables, **variables_with(given, support.way)}
            elif tools:
                messages = with_description(messages, tools)
        marked = self._marked(messages, variables)
        text = self._render(messages, set(), variables)
        spliced = {i for i, message in enumerate(messages) if self._may_be_known(message)}
        structured = {i for i in spliced if _is_structured(messages[i])}
        is_kept = self._restored(marked, messages) == text
        if not is_kept:
            self._check_changed(messages, text, variables)
        if is_kept and not structured:
            parts = self._restored(marked, messages, but=spliced)
        else:
            parts = self._parts(messages, spliced, text, variables)
        if self._check_text is not None:
            self._check_text(parts)
        ids: list[int] = []
        fresh: dict[tuple[str, bool], list[int]] = {}

        def encoded(text: str) -> list[int]:
            if not text and ids:  # the BOS comes with the first part, even if an answer follows at once
                return []
            key = (text, not ids)
            fresh[key] = self._encoded[key] if key in self._encoded else self._encode(*key)
            return fresh[key]

        text = ""  # since the last answer whose ids are known
        for at, part in enumerate(_SENTINEL.split(parts)):
            if at % 2 == 0:
                text += part
                continue
            before, message = ids + encoded(text), messages[int(part)]
            known = self._ids_of(message, before)
            if known is None:
                text += self._protected(message.content)
            else:
                ids, text = [*before, *known], ""
        ids += encoded(text)
        self._encoded = fresh
        return ids

    def _may_be_known(self, message: Message) -> bool:
        """Whether the model's own ids of a message are known, perhaps."""
        if message.tokens is not None:
            return True
        is_plain = message.role == "assistant" and not _is_structured(message)
        return is_plain and self.answers.has(message.content)

    def _ids_of(self, message: Message, before: Sequence[int]) -> Sequence[int] | None:
        """The model's own ids of a message behind these; None if they are not known."""
        if message.tokens is not None:
            return message.tokens
        found = self.answers.find(before, message.content)
        if found is None or self._tokenizer.decode(found, skip_special=False) != message.content:
            return None
        return found

    def _marked(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """The conversation with a sentinel for each text, in the form in which the template writes them all.

        What worked last is tried first; then plain texts, then typed parts for some roles and for all.
        """
        roles = sorted({message.role for message in messages})
        forms = chain.from_iterable(combinations(roles, count) for count in range(len(roles) + 1))
        problem: EdgeError | None = None
        usable: tuple[frozenset[str], str] | None = None
        deadline = monotonic() + _FORM_SECONDS
        for typed in dict.fromkeys((self._typed, *map(frozenset, forms))):
            self._typed = typed
            try:
                # Calls and thinking are no text that a mark could stand for.
                plain = [i for i, message in enumerate(messages) if not _is_structured(message)]
                marked = self._render(messages, plain, variables)
            except TemplateLimitError:
                raise
            except EdgeError as error:
                problem = problem or error
            else:
                missing = _missing(messages, marked, typed)
                if not missing:
                    return marked
                if usable is None and (
                    missing.issubset(_opening_answers(messages))
                    or self._are_left_behind(messages, missing, variables)
                ):
                    usable = typed, marked
                roles = sorted({messages[i].role for i in missing})
                problem = problem or EdgeError(
                    f"The chat template leaves out messages of the role {' and '.join(map(repr, roles))}: "
                    "begin a conversation without them, or correct the model's chat_template.jinja."
                )
            if monotonic() > deadline:
                break
        self._typed = usable[0] if usable else frozenset()
        if usable:
            return usable[1]
        assert problem is not None
        raise problem

    def _are_left_behind(
        self, messages: Sequence[Message], missing: set[int], variables: Mapping[str, Any]
    ) -> bool:
        """Whether the template writes these messages as long as the last question is open, and leaves them
        out behind it: Mistral's does so with the system prompt where results of calls follow.
        """
        asked = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        open_ = messages[: asked + 1]
        if max(missing) >= asked or len(open_) == len(messages):
            return False
        plain = [i for i, message in enumerate(open_) if not _is_structured(message)]
        try:
            if _missing(open_, self._render(open_, plain, variables), self._typed):
                return False
        except EdgeError:
            return False
        roles = " and ".join(repr(role) for role in sorted({messages[i].role for i in missing}))
        notice(f"The chat template leaves out messages of the role {roles} behind calls of tools.")
        return True

    def _check_changed(self, messages: Sequence[Message], text: str, variables: Mapping[str, Any]) -> None:
        """Look at the messages that are not in `text` as they were said: EdgeError for one of which nothing
        is written (a template may choose by length, say), a notice for one that was changed.
        """
        for i, message in enumerate(messages):
            said = self._protected(message.content).strip()
            if message.role == "assistant" or not said or said in text:  # thinking may be dropped
                continue
            emptied = [*messages[:i], replace(message, content=""), *messages[i + 1 :]]
            if self._render(emptied, (), variables) == text:
                raise EdgeError(
                    f"The chat template writes nothing of the {message.role}'s message {shown(said)}: say it "
                    "in other words, or correct the model's chat_template.jinja."
                )
            if message.role != "tool":  # a result may well be written as JSON
                notice(
                    f"The chat template changes the {message.role}'s message: the model reads another text."
                )

    def _parts(
        self, messages: Sequence[Message], spliced: set[int], text: str, variables: Mapping[str, Any]
    ) -> str:
        """`text` with sentinels for those answers in `spliced` that the template writes as they are."""
        if self._is_same(spliced, messages, text, variables):
            return self._render(messages, spliced, variables)
        kept = {i for i in spliced if self._is_same({i}, messages, text, variables)}
        if kept and self._is_same(kept, messages, text, variables):
            return self._render(messages, kept, variables)
        return text

    def _render(
        self, messages: Sequence[Message], marked: Collection[int], variables: Mapping[str, Any]
    ) -> str:
        plain: list[Mapping[str, Any]] = []
        for i, message in enumerate(messages):
            if i in marked:
                given: dict[str, Any] = {"role": message.role, "content": f"{_OPEN}{i}{_CLOSE}"}
                given |= {} if message.role == "assistant" else self._beside(message)
            else:
                given = {"role": message.role, "content": self._protected(message.content)}
                given |= self._beside(message)
            if message.role in self._typed:
                given["content"] = [{"type": "text", "text": given["content"]}]
            plain.append(given)
        if tools := variables.get("tools"):
            plain = messages_with(plain, tools, self.tool_support.way)
        rendered = self._template.render(plain, **{**variables, "add_generation_prompt": True})
        if not {*_SENTINEL.findall(rendered)} <= {str(i) for i in marked}:
            raise EdgeError(
                f"The chat template writes U+{ord(_OPEN):X} itself, which is no character of any text; "
                "correct the model's chat_template.jinja."
            )
        return rendered

    def _beside(self, message: Message) -> dict[str, Any]:
        """What a message has beside role and content, for the template."""
        found = template_message(message)
        return {key: self._all_protected(found[key]) for key in found if key not in ("role", "content")}

    def _all_protected(self, value: Any) -> Any:
        """The same JSON value with every text in it protected, keys included."""
        if isinstance(value, str):
            return self._protected(value)
        if isinstance(value, Mapping):
            return {self._protected(str(key)): self._all_protected(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._all_protected(each) for each in value]
        return value

    def _protected(self, content: str) -> str:
        return self._tokenizer.protect(content.replace(_OPEN, "\ufffd").replace(_CLOSE, "\ufffd"))

    def _restored(self, parts: str, messages: Sequence[Message], but: Collection[int] = ()) -> str:
        def text(match: re.Match[str]) -> str:
            i = int(match[1])
            if i in but:
                return match[0]
            if _is_structured(messages[i]):
                return self._tokenizer.decode(messages[i].tokens or (), skip_special=False, continues=True)
            return self._protected(messages[i].content)

        return _SENTINEL.sub(text, parts)

    def _is_same(
        self, kept: Collection[int], messages: Sequence[Message], text: str, variables: Mapping[str, Any]
    ) -> bool:
        """Whether the template makes the same prompt of what the model wrote in these answers."""
        try:
            found = self._restored(self._render(messages, kept, variables), messages)
        except TemplateLimitError:
            raise
        except EdgeError:  # it may refuse a result without a call
            return False
        return found == text or self._unmarked(found) == self._unmarked(text)

    @staticmethod
    def _unmarked(text: str) -> str:
        """Without the marks of protection, which what a model wrote does not have."""
        return text.replace(LITERAL_MARK, "")

    def _encode(self, part: str, first: bool) -> list[int]:
        if first:
            return self._tokenizer.encode(part, parse_special=True)
        # Behind a control token, so that a tokenizer does not treat this as the beginning of a text.
        lead = next(iter(self._tokenizer.special_tokens), "")
        ids = self._tokenizer.encode(lead + part, add_bos=False, parse_special=True)
        return ids[1:] if lead else ids


def _missing(messages: Sequence[Message], marked: str, typed: Collection[str]) -> set[int]:
    """Indices of the messages that a rendering with sentinels lacks."""
    for mark in (_OPEN, _CLOSE):  # as `tojson` may write them
        marked = marked.replace(f"\\u{ord(mark):04x}", mark)
    found = {int(i) for i in _SENTINEL.findall(marked)}
    if typed:
        found -= {int(i) for i in _PRINTED_PART.findall(marked)}
    return {i for i, message in enumerate(messages) if not _is_structured(message)} - found


def _is_structured(message: Message) -> bool:
    """Whether an answer is more than its text."""
    return bool(message.calls) or message.reasoning is not None


def _opening_answers(messages: Sequence[Message]) -> set[int]:
    """Answers before the first question, which many templates leave out: they begin with the user."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
    return {i for i in range(first) if messages[i].role == "assistant"}
