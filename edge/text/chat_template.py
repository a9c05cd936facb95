"""Chat templates: messages to the text of a prompt, through a real, sandboxed Jinja engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import EdgeError

Message = Mapping[str, Any]


def supports_thinking(template: str) -> bool:
    """Whether a template has a switch for thinking, the variable `enable_thinking`."""
    return "enable_thinking" in template


class ChatTemplate:
    """A compiled chat template. May be used from several threads.

    Templates expect Hugging Face's environment: `trim_blocks` and `lstrip_blocks`, loop controls, `tojson`
    without HTML escapes, `raise_exception`, `strftime_now`, and `{% generation %}` (which changes nothing
    here).
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, *, time_limit: float = 5.0
    ) -> None:
        """special_tokens: variables such as `bos_token` (`Tokenizer.named_tokens`). time_limit: seconds per
        render.

        Raises EdgeError for a template that is not valid Jinja.
        """
        from jinja2 import TemplateError

        from edge.text.template_sandbox import Environment

        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._time_limit = time_limit
        try:
            self._template = Environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            where = f" in line {line}" if line else ""
            raise EdgeError(
                f"The chat template is not valid Jinja{where} ({_one_line(error)}); correct the model's "
                "chat_template.jinja."
            ) from None

    @property
    def supports_thinking(self) -> bool:
        """Whether the template has a switch for thinking."""
        return supports_thinking(self.source)

    def render(
        self,
        messages: Sequence[Message],
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
        for instance `enable_thinking`. Raises EdgeError when the template refuses the messages, fails, or
        exceeds its limits.
        """
        from edge.text.template_sandbox import Refusal, join_output, time_limit

        for message in messages:
            if not isinstance(message, Mapping):
                raise EdgeError(
                    "A chat message must be an object with 'role' and 'content', not "
                    f"{type(message).__name__}."
                )
        values = {
            **self._special_tokens,
            **{name: _plain(value) for name, value in variables.items()},
            "messages": _plain(messages),
            "tools": _plain(tools),
            "documents": _plain(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with time_limit(self._time_limit):
                return join_output(self._template.generate(values))
        except Refusal as error:
            raise EdgeError(
                f"The chat template does not accept these messages: {_one_line(error)}."
            ) from None
        except Exception as error:  # a template is foreign code and can fail in any way
            raise EdgeError(
                f"The chat template failed ({_one_line(error)}); check the messages, or correct the model's "
                "chat_template.jinja."
            ) from error


def _plain(value: Any) -> Any:
    """A copy made of JSON types only: other objects could offer a template methods that do harm."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise EdgeError(f"Chat messages and tools must be made of plain JSON values, not {type(value).__name__}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
