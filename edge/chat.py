"""A conversation: its messages, and what happens when the context is full.

A chat belongs to one thread at a time, as its session does; only `Stream.cancel` may be called from another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from edge.engine.conversation_file import read_conversation, write_conversation
from edge.engine.generation import Chunk, Completion, Stream, answer_ends, generate
from edge.engine.session import Session
from edge.engine.settings import merge_settings, overlay
from edge.errors import ContextError, EdgeError
from edge.text.prompts import Message, PromptEncoder
from edge.text.tokenizer.base import Tokenizer

ContextPolicy = Literal["stop", "drop"]


class Chat:
    """Messages with a model and the KV cache that goes with them.

    settings: names of `edge.engine.settings.SETTING_NAMES` that hold for every answer; they may be changed
    between answers. thinking: what templates know as `enable_thinking`, None leaves it to the template.
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
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if context_policy not in get_args(ContextPolicy):
            raise EdgeError(f"Unknown context policy '{context_policy}'; choose 'stop' or 'drop'.")
        answer_ends(merge_settings(flags=settings), tokenizer)  # a wrong one fails here, not at an answer
        self.session = session
        self.settings: dict[str, Any] = dict(settings or {})
        self.thinking = thinking
        self.context_policy = context_policy
        self._system = system
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._generation_config = generation_config or {}
        self._model_name = model_name
        self._loaded_settings: dict[str, Any] = {}
        self._messages: list[Message] = []
        self._dropped = 0
        self._stream: Stream | None = None

    @property
    def system(self) -> str | None:
        """The system prompt; None leaves it to the template. Setting it keeps the conversation."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._finish()
        self._system = text

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, without the system prompt."""
        return tuple(self._messages)

    @property
    def dropped_messages(self) -> int:
        """How many of the oldest messages the model no longer sees."""
        return self._dropped

    def send(self, text: str, **settings: Any) -> Completion:
        """Say something and wait for the whole answer; parameters as for `stream`."""
        return self.stream(text, **settings).result

    def stream(self, text: str, **settings: Any) -> Stream:
        """Say something; returns the answer in the making.

        settings: for this answer only, stronger than the chat's own. Message and answer join the
        conversation when the answer ends, a cancelled one with what it has; without any token of an answer,
        nothing is added. An earlier answer that is still unfinished is cancelled. Raises ContextError,
        before anything is computed, if the conversation does not fit (see context_policy).
        """
        if not isinstance(text, str) or not text:
            raise EdgeError("The message is empty: say something.")
        self._finish()
        chosen = merge_settings(
            self._generation_config, self._loaded_settings, overlay(self.settings, settings)
        )
        question = Message("user", text)
        prompt = self._fit([*self._messages, question], chosen.max_new_tokens)

        def start(cancelled: Callable[[], bool]) -> Generator[Chunk, None, Completion]:
            done = yield from generate(self.session, prompt, chosen, self._tokenizer, cancelled)
            if done.tokens or done.stop_reason == "eos":
                # A stop string was cut from the text but not from the tokens.
                tokens = None if done.stop_reason == "stop" else done.tokens
                self._messages += [question, Message("assistant", done.text, tokens)]
            return done

        self._stream = Stream(start)
        return self._stream

    def reset(self) -> None:
        """Forget the conversation; system prompt and settings stay."""
        self._finish()
        self._messages.clear()
        self._dropped = 0
        self.session.reset()

    def save(self, path: str | Path) -> None:
        """Write the conversation to a JSON file, atomically."""
        self._finish()
        conversation = {
            "model": self._model_name,
            "system": self._system,
            "thinking": self.thinking,
            "settings": overlay(self._loaded_settings, self.settings),
            "messages": [{"role": m.role, "content": m.content} for m in self._messages],
        }
        write_conversation(path, conversation)

    def load(self, path: str | Path) -> None:
        """Continue a conversation that `save` wrote, with whatever model; this chat's settings stay stronger.

        Raises EdgeError, and changes nothing, if the file is not such a conversation.
        """
        data = read_conversation(Path(path))
        self._finish()
        self.session.reset()
        self._dropped = 0
        self._system = data["system"]
        self.thinking = data["thinking"]
        self._loaded_settings = data["settings"]
        self._messages = [Message(m["role"], m["content"]) for m in data["messages"]]

    def _finish(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()

    def _encode(self, messages: list[Message]) -> list[int]:
        system = [] if self._system is None else [Message("system", self._system)]
        variables = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return self._encoder.encode([*system, *messages], **variables)

    def _fit(self, messages: list[Message], max_new_tokens: int | None) -> list[int]:
        """The prompt, with the oldest turns left out as the policy says."""
        context = self.session.context
        prompt = self._encode(messages[self._dropped :])
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
            prompt = self._encode(messages[start:])
            if len(prompt) + room <= context:
                break
        if len(prompt) > context:
            raise ContextError(
                f"The message takes {len(prompt)} tokens with its system prompt and the context holds "
                f"{context}: shorten it or open the model with a longer context."
            )
        self._dropped = dropped
        return prompt
