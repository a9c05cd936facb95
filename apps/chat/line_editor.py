"""The input line of the interactive chat: editing, history, completion of commands, a status line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from edge.apps.cli.terminal import state_folder

PROMPT = "› "
_STYLE = Style.from_dict({"prompt": "ansicyan bold", "bottom-toolbar": "noreverse fg:ansibrightblack"})


class LineEditor:
    """Reads messages from a terminal. Enter sends, Alt-Enter begins a new line."""

    def __init__(self, commands: Mapping[str, str], status: Callable[[], str]) -> None:
        """commands: name with its slash -> what it does. status: the text of the line below the input."""
        self._session: PromptSession[str] = PromptSession(
            message=FormattedText([("class:prompt", PROMPT)]),
            prompt_continuation=FormattedText([("class:prompt", "· ")]),
            history=_history(),
            auto_suggest=AutoSuggestFromHistory(),
            completer=_CommandCompleter(commands),
            complete_while_typing=True,
            multiline=True,
            key_bindings=_keys(),
            bottom_toolbar=lambda: f" {status()}",
            style=_STYLE,
            reserve_space_for_menu=4,
        )

    def read(self) -> str:
        """The next message; KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D."""
        return self._session.prompt()


class _CommandCompleter(Completer):
    """Completes a command at the start of the input, and the file of /save and /load."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        command, space, argument = text.partition(" ")
        if not text.startswith("/"):
            return
        if not space:
            for name, meaning in self._commands.items():
                if name.startswith(text):
                    yield Completion(name, start_position=-len(text), display_meta=meaning)
        elif command in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), event)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """The user's earlier messages, readable by nobody else; in memory if there is no place for a file."""
    folder = state_folder()
    path = folder / "chat_history"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    with suppress(OSError):
        path.chmod(0o600)
    return FileHistory(path)
