"""Chat templates: messages to the text of a prompt, through a real Jinja engine in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from edge.errors import EdgeError
from edge.text.isolation.worker import Worker, WorkerFailure

Message = Mapping[str, Any]
_MAX_DEPTH = 100
_MAX_BITS = 4096  # Python writes longer numbers only on request
_shared: WeakValueDictionary[str, Worker] = WeakValueDictionary()


class TemplateLimitError(EdgeError):
    """A chat template went past its limit of time or memory."""


def supports_thinking(template: str) -> bool:
    """Whether a template has a switch for thinking, the variable `enable_thinking`."""
    return "enable_thinking" in template


class ChatTemplate:
    """A chat template. May be used from several threads.

    Templates get Hugging Face's environment: `trim_blocks` and `lstrip_blocks`, loop controls, `tojson`
    without HTML escapes, `raise_exception`, `strftime_now`, and `{% generation %}` (which changes nothing
    here). They are foreign code, and run in a process of their own (`edge.text.isolation`): each rendering
    may take `time_limit` seconds and, where the system can limit that (Linux), 1 GiB of memory.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        time_limit: float = 5.0,
        worker: Worker | None = None,
    ) -> None:
        """special_tokens: variables such as `bos_token` (`Tokenizer.named_tokens`). time_limit: seconds per
        render. worker: by default `template_worker()`.

        Raises EdgeError for a template that is not valid Jinja.
        """
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._time_limit = time_limit
        self._worker = worker or template_worker()
        self._call("check", source=source)

    @property
    def supports_thinking(self) -> bool:
        """Whether the template has a switch for thinking."""
        return supports_thinking(self.source)

    @property
    def special_tokens(self) -> tuple[tuple[str, str], ...]:
        """The variables with texts of tokens."""
        return tuple(sorted(self._special_tokens.items()))

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt's text, to be encoded with `parse_special=True`.

        messages: objects with `role` and `content` (and what else the template knows, such as `tool_calls`),
        made of plain JSON values; pass foreign text through `Tokenizer.protect` first, so that it can't
        inject control tokens. add_generation_prompt: end with the opening of the assistant's turn. variables:
        for instance `enable_thinking`. Raises EdgeError when the template refuses the messages or fails,
        TemplateLimitError when it exceeds its limits.
        """
        for message in messages:
            if not isinstance(message, Mapping):
                raise EdgeError(
                    "A chat message must be an object with 'role' and 'content', not "
                    f"{type(message).__name__}."
                )
        values = {
            **self._special_tokens,
            **variables,
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        text: str = self._call("render", source=self.source, values=_plain(values))
        return text

    def close(self) -> None:
        """End the process that renders; a later rendering starts another."""
        self._worker.close()

    def _call(self, method: str, **arguments: Any) -> Any:
        try:
            return self._worker.call(method, self._time_limit, **arguments)
        except WorkerFailure as failure:
            raise TemplateLimitError(
                f"The chat template failed ({failure}); correct the model's chat_template.jinja."
            ) from None


def template_worker() -> Worker:
    """The process that compiles and renders chat templates: one for all who hold it at the same time."""
    return _shared.setdefault("", Worker("edge.text.isolation.templates", packages=("jinja2", "markupsafe")))


def _plain(value: Any, depth: int = 0) -> Any:
    """The same value made of JSON types only, which is all that can be sent to a template."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise EdgeError(f"Chat messages and tools may have whole numbers of {_MAX_BITS} bits and no more.")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth > _MAX_DEPTH:
        raise EdgeError(f"Chat messages and tools may be nested {_MAX_DEPTH} levels deep and no deeper.")
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str.__str__(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise EdgeError(f"Chat messages and tools must be made of plain JSON values, not {type(value).__name__}.")
