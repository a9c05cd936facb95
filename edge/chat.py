"""A conversation: its messages, and what happens when the context is full.

A chat belongs to one thread at a time, as its session does; only `Stream.cancel` may be called from another.
While a thread has an unfinished answer, every other one gets an EdgeError, and the answer goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edge.engine.answer_settings import check_settings
from edge.engine.completion import Chunk, Completion
from edge.engine.constraints.response_format import ResponseFormat, read_response_format
from edge.engine.conversation_file import read_conversation, write_conversation
from edge.engine.generation import Stream
from edge.engine.request import Request, answer_prepared, prepare
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings, merge_settings, overlay
from edge.errors import ContextError, EdgeError, WrongTypeError
from edge.system.guards import OneThread
from edge.system.options import plain
from edge.text.messages import Message, ToolCall, ToolChoice, parse_messages, parse_tool_choice
from edge.text.prompts import PromptEncoder
from edge.text.tokenizer.base import Tokenizer
from edge.text.tools.functions import tool_box

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edge.engine.keywords import Settings

Said = str | Sequence[Message | Mapping[str, Any]]
"""What a user says: a text, or messages as `{"role": "user", "content": "..."}`."""
Choice = ToolChoice | Mapping[str, Any] | str | None
"""Whether the model calls, see `edge.text.messages.parse_tool_choice`."""
ContextPolicy = Literal["stop", "drop"]


class Chat:
    """Messages with a model and the KV cache that goes with them.

    settings: names of `edge.engine.settings.SETTING_NAMES` that hold for every answer; they may be changed
    between answers. thinking: what templates know as `enable_thinking`, None leaves it to the template.
    thinking_budget: most tokens that an answer thinks, None for any number; both may be changed as well.
    tools: what the model may ask to call: functions with types, `edge.Tool`s, or objects in OpenAI's form;
    answers have `calls` then, and `run_tools` runs them.
    context_policy, when a conversation no longer fits: `stop` raises ContextError, `drop` leaves out the
    oldest turns (a turn is a user's message with all that follows it up to the next one) and keeps the system
    prompt; `messages` keeps them all. An answer that reaches the end of the context in its middle ends with
    stop reason `context` under both.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        encoder: PromptEncoder,
        *,
        generation_config: Mapping[str, Any] | None = None,
        model_name: str = "",
        system: str | None = None,
        context_policy: ContextPolicy = "stop",
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        tools: Sequence[Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if context_policy not in get_args(ContextPolicy):
            raise EdgeError(f"Unknown context policy '{context_policy}'; choose 'stop' or 'drop'.")
        if thinking_budget is not None and (type(thinking_budget) is not int or thinking_budget < 0):
            raise WrongTypeError(
                f"thinking_budget must be a number of tokens or None, got {thinking_budget!r}."
            )
        check_settings(merge_settings(flags=settings), tokenizer)  # a wrong one fails here, not at an answer
        self.session = session
        self.settings: dict[str, Any] = dict(settings or {})
        self.thinking = thinking
        self.thinking_budget = thinking_budget
        self.tools = tool_box(tools)
        self.context_policy = context_policy
        self._alone = OneThread("chat")
        self._system = _checked_system(system)
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._generation_config = generation_config or {}
        self._model_name = model_name
        self._loaded_settings: dict[str, Any] = {}
        self._messages: list[Message] = []
        self._dropped = 0

    @property
    def system(self) -> str | None:
        """The system prompt; None leaves it to the template. Setting it keeps the conversation."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        with self._alone:
            self.session.begin()
            self._system = _checked_system(text)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, without the system prompt. Setting it goes on with another one, in the form
        that `send` takes; a system message at its beginning becomes the system prompt.
        """
        return tuple(self._messages)

    @messages.setter
    def messages(self, conversation: Sequence[Message | Mapping[str, Any]]) -> None:
        messages = parse_messages(conversation)
        with self._alone:
            self.session.begin()
            if messages and messages[0].role == "system":
                self._system = messages.pop(0).content
            self._messages, self._dropped = messages, 0

    @property
    def dropped_messages(self) -> int:
        """How many of the oldest messages the model no longer sees."""
        return self._dropped

    def send(
        self,
        message: Said,
        *,
        tool_choice: Choice = None,
        response_format: ResponseFormat | None = None,
        **settings: Unpack[Settings],
    ) -> Completion:
        """Say something and wait for the whole answer; parameters as for `stream`.

        After an interrupt (Ctrl-C) the conversation has what there was of the answer, and KeyboardInterrupt
        goes on.
        """
        stream = self.stream(message, tool_choice=tool_choice, response_format=response_format, **settings)
        return stream.result

    def run_tools(
        self,
        message: Said,
        *,
        most_rounds: int = 8,
        tool_choice: Choice = None,
        allow: Callable[[ToolCall], bool] = lambda call: True,
        **settings: Unpack[Settings],
    ) -> Completion:
        """Say something, run what the model asks to call, tell it the results, and so on until it answers.

        most_rounds: of calls; the last answer is returned then as it is, with its calls. tool_choice: for the
        first answer. allow: whether a call is run, otherwise the model is told that it was refused. What a
        function raises is told to the model, too. EdgeError for a tool without a function.
        """
        for tool in self.tools.tools:
            if tool.name not in self.tools.functions:
                raise EdgeError(f"The tool '{tool.name}' has no function to run: give a Python function.")
        done = self.send(message, tool_choice=tool_choice, **settings)
        for _ in range(most_rounds):
            if not done.calls:
                break
            done = self.send(self.results(done.calls, allow), **settings)
        return done

    def results(
        self, calls: Sequence[ToolCall], allow: Callable[[ToolCall], bool] = lambda call: True
    ) -> list[Message]:
        """Run calls with the chat's functions; returns the messages for `send`. allow: as for `run_tools`."""
        return [
            self.tools.run(call)
            if allow(call)
            else Message("tool", "Error: the user refused this call.", call_id=call.id, name=call.name)
            for call in calls
        ]

    def stream(
        self,
        message: Said,
        *,
        tool_choice: Choice = None,
        response_format: ResponseFormat | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """Say something; returns the answer in the making.

        message: a text, or a list of messages that joins the conversation as a whole; a system message at its
        beginning is the system prompt of a conversation that has none; results of calls have the role `tool`.
        tool_choice: `auto`, `none`, `required`, or an object that names a function. response_format: what the
        answer must look like, see `edge.engine.constraints.response_format`. settings: for this answer only,
        stronger than the chat's own. Message and answer join the conversation when the answer
        ends, a cancelled one with what it has; without any token of an answer, nothing is added. An earlier
        answer that is still unfinished is cancelled. Raises ContextError, before anything is computed, if the
        conversation does not fit (see context_policy).
        """
        said = parse_messages([{"role": "user", "content": message}] if isinstance(message, str) else message)
        with self._alone:
            self.session.begin()
            system = self._opening(said)
            if not said or not (said[-1].content or said[-1].role == "tool"):
                raise EdgeError("The message is empty: say something.")
            if said[-1].role == "assistant":
                raise EdgeError("The last message is the assistant's: end with one that it can answer.")
            choice = parse_tool_choice(tool_choice, self.tools.tools)
            chosen = self.chosen_settings(**settings)
            messages = [*self._messages, *said]
            grammar = read_response_format(response_format)
            prompt = self._fit(messages, chosen.max_new_tokens, system)
            request = Request(
                tuple(messages),
                self.tools.tools,
                choice,
                grammar=grammar,
                thinking=self.thinking,
                thinking_budget=self.thinking_budget,
            )
            prepared = prepare(request, self._encoder, chosen, prompt)

            def record(done: Completion) -> None:
                if done.tokens or done.stop_reason == "eos":
                    # A stop string was cut from the text but not from the tokens.
                    tokens = None if done.stop_reason == "stop" else (*prepared.opening, *done.tokens)
                    content = done.text if done.content is None else done.content
                    # An answer that is more than its text says so, even where the rest is empty.
                    is_more = bool(prepared.opening) or content != done.text
                    reasoning = (
                        "" if done.reasoning is None and is_more and not done.calls else done.reasoning
                    )
                    answer = Message("assistant", content, tokens, reasoning, done.calls)
                    self._messages += [*said, answer]
                    self._system = system

            def start(
                cancelled: Callable[[], bool], ended: Callable[[Completion], None]
            ) -> Generator[Chunk, None, Completion]:
                def end(done: Completion) -> None:
                    record(done)
                    ended(done)

                return answer_prepared(prepared, self.session, self._tokenizer, cancelled, end)

            stream = Stream(start)
            self.session.begin(stream)
            return stream

    def chosen_settings(self, **settings: Unpack[Settings]) -> GenerationSettings:
        """What an answer is made with: the model's settings, a loaded conversation's over them, then this
        chat's, and then these. EdgeError for a wrong one.
        """
        return merge_settings(
            self._generation_config, self._loaded_settings, overlay(self.settings, settings)
        )

    def reset(self) -> None:
        """Forget the conversation; system prompt and settings stay."""
        with self._alone:
            self.session.reset()
            self._messages.clear()
            self._dropped = 0

    def save(self, path: str | Path) -> None:
        """Write the conversation to a JSON file that only its owner can read, atomically."""
        with self._alone:
            self.session.begin()
            conversation = {
                "model": self._model_name,
                "system": self._system,
                "thinking": self.thinking,
                "settings": plain(overlay(self._loaded_settings, self.settings)),
                "messages": [message.as_openai() for message in self._messages],
            }
            write_conversation(path, conversation)

    def load(self, path: str | Path) -> None:
        """Continue a conversation that `save` wrote, with whatever model; this chat's settings stay stronger.

        Raises EdgeError, and changes nothing, if the file is not such a conversation.
        """
        data = read_conversation(path)
        with self._alone:
            self.session.reset()
            self._dropped = 0
            self._system = data["system"]
            self.thinking = data["thinking"]
            self._loaded_settings = data["settings"]
            self._messages = data["messages"]

    def _opening(self, said: list[Message]) -> str | None:
        """The system prompt from now on; taken out of the messages that begin a conversation."""
        if self._messages or not said or said[0].role != "system":
            return self._system
        if self._system not in (None, said[0].content):
            raise EdgeError(
                "The chat has a system prompt, and the messages begin with another one: give one of them."
            )
        return said.pop(0).content

    def _encode(self, messages: list[Message], system: str | None) -> list[int]:
        """system: None is the chat's own."""
        system = self._system if system is None else system
        first = [] if system is None else [Message("system", system)]
        variables: dict[str, Any] = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return self._encoder.encode([*first, *messages], self.tools.tools, **variables)

    def _fit(
        self, messages: list[Message], max_new_tokens: int | None, system: str | None = None
    ) -> list[int]:
        """The prompt, with the oldest turns left out as the policy says."""
        context = self.session.context
        prompt = self._encode(messages[self._dropped :], system)
        if self.context_policy == "stop":
            if len(prompt) > context:
                raise ContextError(
                    f"The conversation takes {len(prompt)} tokens and the context holds {context}: reset it, "
                    "let old turns be dropped (context policy 'drop'), or load the model with more context."
                )
            return prompt
        room = min(max_new_tokens or context, context // 8)
        if len(prompt) + room <= context:
            return prompt
        # More than needed now, so that the cache is not computed anew at every turn.
        room = max(room, context // 4)
        starts = [i for i, m in enumerate(messages) if m.role == "user" and i > self._dropped]
        dropped = self._dropped
        for start in starts:
            dropped = start
            prompt = self._encode(messages[start:], system)
            if len(prompt) + room <= context:
                break
        if len(prompt) > context:
            raise ContextError(
                f"The message takes {len(prompt)} tokens with its system prompt and the context holds "
                f"{context}: shorten it or open the model with a longer context."
            )
        self._dropped = dropped
        return prompt


def _checked_system(text: Any) -> str | None:
    if text is not None and not isinstance(text, str):
        raise WrongTypeError(f"The system prompt must be a text, got {text!r}.")
    return text
