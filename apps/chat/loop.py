"""A conversation as its user drives it: messages, slash commands, and the figures of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.apps.chat.tools import shortened, words
from edge.apps.chat.views import View
from edge.apps.cli.loading import naming_flags
from edge.errors import EdgeError
from edge.system.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from edge.chat import Chat
    from edge.engine.completion import Completion
    from edge.engine.constraints.response_format import ResponseFormat
    from edge.engine.speculative.sequence import SpeculationStatistics
    from edge.runtime import Model
    from edge.text.messages import Message, ToolCall

_MOST_ROUNDS = 8  # of calls for a message
_COMMANDS = {
    "/help": "list the commands",
    "/reset": "forget the conversation",
    "/system": "TEXT: set the system prompt; alone: show it; /system - : back to the model's own",
    "/save": "FILE: write the conversation to a file, and its KV cache beside it",
    "/load": "FILE: continue a saved conversation",
    "/stats": "speed and memory of this conversation",
    "/think": "let the model think before it answers",
    "/no_think": "let it answer at once",
    "/exit": "leave (or Ctrl-D)",
}


class ChatLoop:
    """Takes what the user enters, one line or message at a time."""

    def __init__(
        self,
        model: Model,
        chat: Chat,
        view: View,
        *,
        system: str | None = None,
        thinking: bool | None = None,
        allow: Callable[[ToolCall], bool] | None = None,
        response_format: ResponseFormat | None = None,
    ) -> None:
        """system, thinking: what the flags say, stronger than a loaded conversation; None: nothing. allow:
        whether a call may run, None lets all run. response_format: what every answer must look like.
        """
        self._model = model
        self._chat = chat
        self._view = view
        self._flag_system = system
        self._flag_thinking = thinking
        self._allow = allow
        self._format = response_format
        self._last: Completion | None = None
        self._answers = 0
        self._handlers: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/think": lambda argument: self._switch_thinking(True),
            "/no_think": lambda argument: self._switch_thinking(False),
        }

    @property
    def commands(self) -> dict[str, str]:
        """The commands that this model knows, and what they do."""
        hidden = () if self._model.chat_template.supports_thinking else ("/think", "/no_think")
        return {name: meaning for name, meaning in _COMMANDS.items() if name not in hidden}

    def enter(self, text: str) -> bool:
        """Handle a message or a command; False when the user wants to leave."""
        text = text.strip()
        if not text:
            return True
        if not text.startswith("/") or text.startswith("//"):
            self.say(text.removeprefix("/"))
            return True
        name, _, argument = text.partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return False
        if name not in self._handlers:
            raise EdgeError(
                f"There is no command '{name}'; /help lists them, and a message that begins with / is sent "
                "with another / in front of it."
            )
        self._handlers[name](argument.strip())
        return True

    def say(self, text: str) -> Completion:
        """Send a message and show the answer; run what the model asks to call, and show what it says then."""
        done = self._answer(text)
        for _ in range(_MOST_ROUNDS):
            if not done.calls or done.stop_reason == "cancelled":
                break
            done = self._answer(self._results(done.calls))
        return done

    def _answer(self, said: str | list[Message]) -> Completion:
        with naming_flags(*self._context_flags()):
            stream = self._chat.stream(said, response_format=self._format)
        self._last = self._view.answer(stream)
        self._answers += 1
        return self._last

    def _results(self, calls: Sequence[ToolCall]) -> list[Message]:
        """Run calls one after the other, each shown with its result."""
        found = []
        for call in calls:
            if self._allow is None:
                self._remark(f"Call {words(call)}")
            found += self._chat.results([call], self._allow or (lambda call: True))
            self._remark(f"{call.name}: {shortened(found[-1].content)}")
        return found

    def status(self) -> str:
        """One line: the model, how full the context is, the speed of the last answer."""
        parts = [self._model.name, f"{self._chat.session.length}/{self._model.context} tokens"]
        if self._last and self._last.tokens_per_second:
            parts.append(f"{self._last.tokens_per_second:.0f} tokens/s")
        return " · ".join(parts)

    def machine(self) -> str:
        """How the weights are stored and what runs them."""
        tensors = self._model.files.tensors.values()
        schemes = dict.fromkeys(str(tensor.scheme) for tensor in tensors if len(tensor.shape) == 2)
        info = self._model.executor.info
        facts = [", ".join(schemes), f"{info.threads} threads, {info.tier}"]
        facts.append(f"attention {self._model.attention}")
        facts.append(f"{info.activations} activations")
        return " · ".join(facts)

    def _help(self, argument: str) -> None:
        table = _table()
        for name, meaning in self.commands.items():
            table.add_row(name, meaning)
        table.add_row("//TEXT", "send a message that begins with /")
        table.add_row("Alt-Enter", "a new line in the message")
        table.add_row("Ctrl-C", "stop the answer")
        self._view.show(table)

    def _reset(self, argument: str) -> None:
        self._chat.reset()
        self._remark("The conversation is forgotten.")

    def _system(self, argument: str) -> None:
        if argument:
            self._chat.system = None if argument == "-" else argument
            self._remark("The system prompt holds from the next message on.")
        elif self._chat.system is None:
            self._remark("The model's own system prompt is in use.")
        else:
            self._remark(f"System prompt: {self._chat.system}")

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save")
        self._chat.save(path)
        size = self._chat.session.save(_cache_beside(path))
        self._remark(
            f"Saved {_messages(self._chat)} to {path}, and {self._chat.session.length} tokens of KV cache "
            f"({format_bytes(size)}) beside it."
        )

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load")
        self._chat.load(path)
        if self._flag_system is not None:
            self._chat.system = self._flag_system
        if self._flag_thinking is not None:
            self._chat.thinking = self._flag_thinking
        self._last = None
        self._remark(f"Loaded {_messages(self._chat)} from {path}.")
        if (cache := _cache_beside(path)).exists():
            try:
                self._chat.session.load(cache)
            except EdgeError as error:  # the conversation is whole without it, only slower to continue
                self._remark(str(error))
            else:
                self._remark(f"{self._chat.session.length} tokens are in the KV cache already.")

    def _switch_thinking(self, wanted: bool) -> None:
        if not self._model.chat_template.supports_thinking:
            raise EdgeError("The chat template of this model has no switch for thinking.")
        self._chat.thinking = wanted
        self._remark("The model thinks before it answers." if wanted else "The model answers at once.")

    def _stats(self, argument: str) -> None:
        session, table = self._chat.session, _table()
        table.add_row("messages", str(len(self._chat.messages)))
        table.add_row("context", f"{session.length} of {session.context} tokens")
        table.add_row("computed, reused", f"{session.computed_tokens} and {session.reused_tokens} tokens")
        if self._chat.dropped_messages:
            table.add_row("left out", f"the oldest {self._chat.dropped_messages} messages")
        if done := self._last:
            table.add_row("last prompt", f"{done.prompt_tokens} tokens, {done.reused_tokens} of them reused")
            table.add_row("last answer", f"{len(done.tokens)} tokens, stopped by {done.stop_reason}")
            if done.ttft_seconds is not None:
                table.add_row("time to first token", f"{done.ttft_seconds * 1000:.0f} ms")
            table.add_row("prefill", f"{done.prefill_tokens_per_second:.0f} tokens/s")
            table.add_row("decode", f"{done.tokens_per_second:.1f} tokens/s")
            if (guessed := done.speculation) is not None and guessed.passes:
                table.add_row(f"guesses ({guessed.drafter})", speculation_line(guessed))
        table.add_row("memory", memory_line(self._model))
        info = self._model.executor.info
        table.add_row("arithmetic", f"{info.activations} activations, {info.kv_type} KV cache")
        table.add_row("sampling", self._chat.chosen_settings().sampling.words)
        self._view.show(table)

    def _context_flags(self) -> list[str]:
        """The flags that let a longer conversation go on."""
        config = self._model.config
        if self._model.context == config.sliding_window and self._chat.context_policy != "drop":
            return ["--overflow drop"]
        longest = config.longest_context
        more = "--context" if self._model.context < longest else "--context with --rope-override"
        return [more] if self._chat.context_policy == "drop" else [more, "--overflow drop"]

    def _remark(self, text: str) -> None:
        from rich.text import Text

        self._view.show(Text(text, style="dim"))


def speculation_line(found: SpeculationStatistics) -> str:
    """What guesses did for an answer."""
    if not found.drafted:
        return f"none in {found.passes} passes"
    depths = " ".join(
        f"{accepted / offered:.0%}"
        for accepted, offered in zip(found.accepted_at, found.offered_at, strict=True)
    )
    parts = (
        f"{found.accepted} of {found.drafted} right, by depth {depths}",
        f"{found.mean_accepted_length:.2f} tokens a pass",
        f"trees of up to {found.largest_tree}",
        f"{found.draft_share:.1%} of the time in drafting",
        f"plain {found.plain_tokens_per_second:.1f} tokens/s",
    )
    return ", ".join(parts)


def memory_line(model: Model) -> str:
    """The memory plan of a model in one line."""
    plan = model.memory_plan
    draft = f" + draft {format_bytes(plan.draft)}" if plan.draft else ""
    return (
        f"{format_bytes(plan.total)} = weights {format_bytes(plan.weights)} + KV cache "
        f"{format_bytes(plan.kv_cache)} at {plan.context} tokens + workspace {format_bytes(plan.workspace)}"
        f"{draft}"
    )


def _table() -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise EdgeError(f"{command} needs the name of a file, for example {command} chat.json.")
    return Path(argument).expanduser()


def _cache_beside(path: Path) -> Path:
    return path.with_name(path.name + ".kv")


def _messages(chat: Chat) -> str:
    count = len(chat.messages)
    return f"{count} message{'' if count == 1 else 's'}"
