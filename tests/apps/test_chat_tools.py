"""`edge chat --tools`: the functions of a file, the question before a call, and files that are wrong."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.apps.chat.loop import ChatLoop
from edge.apps.chat.tools import ask, functions_of, words
from edge.apps.chat.views import PlainView, ShownText
from edge.errors import EdgeError
from edge.runtime import load
from edge.text.messages import ToolCall
from edge.text.reply import CallBegin, ContentText, ReasoningText

FILE = '''
from dataclasses import dataclass
from os.path import join

@dataclass
class Place:
    name: str

def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b

def _hidden(x): ...
'''


def test_public_functions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tools.py"
    path.write_text(FILE)
    (function,) = functions_of(path)
    assert function.__name__ == "add" and function(2) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ny = x / 0\n", r"fail in line 2 \(ZeroDivisionError"),
        ("def f(:\n", "fail in line 1 .SyntaxError"),
        ("raise SystemExit(3)", "fail in line 1 .SystemExit"),
        ("from os.path import join\n", "no public function"),
        (None, "no Python file"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "tools.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EdgeError, match=says):
        functions_of(path)


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("YES\n", True), ("\n", False), ("", False)])
def test_the_question_before_a_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, runs: bool
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert ask(ToolCall("add", {"a": "\x1b[1m"})) is runs
    said = capsys.readouterr()
    assert said.out == "" and "Call add" in said.err and "\x1b" not in said.err


def test_a_long_call_is_shortened() -> None:
    assert len(words(ToolCall("add", {"a": "x" * 5000}))) < 600


def test_thinking_is_shown_between_marks() -> None:
    shown = ShownText()
    pieces = [shown.push([part]) for part in (ReasoningText("Hm"), ReasoningText("."), ContentText("Yes."))]
    assert "".join(pieces) == "<think>\nHm.\n</think>\n\nYes."
    assert shown.push([CallBegin(0, "add")]) == ""


def test_nobody_to_ask(run_edge: Callable[..., Any], tmp_path: Path, smollm2: str) -> None:
    path = tmp_path / "tools.py"
    path.write_text(FILE)
    done = run_edge("chat", smollm2, "--tools", path, "--prompt", "Hi")
    assert done.returncode == 2 and "add --yes-tools" in done.stderr


def test_calls_in_a_conversation(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is made to call by the choice that a chat can be told; the loop runs it and goes on."""
    path = tmp_path / "tools.py"
    path.write_text(FILE)
    with load(smollm2_gguf, threads=2, prefix_memory=0) as model:
        chat = model.chat(tools=functions_of(path), temperature=0, max_new_tokens=150)
        required = iter([{"type": "function", "name": "add"}])
        stream = chat.stream
        monkeypatch.setattr(
            chat, "stream", lambda said, **form: stream(said, tool_choice=next(required, "none"), **form)
        )
        loop = ChatLoop(model, chat, PlainView(model.context))
        done = loop.say("Add 3 and 4.")
    said = capsys.readouterr()
    (called, *results) = chat.messages[1:-1]
    assert called.calls and all(message.role == "tool" for message in results)
    assert "tool_call>" not in said.out and f"Call {words(called.calls[0])}" in said.err
    assert f"add: {results[0].content}" in said.err and done.content == chat.messages[-1].content
