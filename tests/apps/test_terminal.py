"""`edge chat` in a real terminal: several turns, commands, Ctrl-C, history, Ctrl-D."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pexpect = pytest.importorskip("pexpect")
if sys.platform == "win32":
    pytest.skip("needs a Unix terminal", allow_module_level=True)

READY, TAKEN = "\x1b[?2004h", "\x1b[?2004l"  # the input line switches bracketed paste on, and off again
OPTIONS = ("--temperature", "0", "--max-tokens", "24")
ENDLESS = (
    "--temperature",
    "0",
    "--logit-bias",
    "2=-inf",
)  # without an end token an answer ends by Ctrl-C only


class Terminal:
    """A chat in a terminal of 40 lines by 100 columns; what it shows is compared without escape sequences."""

    def __init__(self, script: str, environment: dict[str, str], *options: str) -> None:
        terminal = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        command = ["chat", "smollm2-135m", *options]
        self.child = pexpect.spawn(
            script,
            command,
            env={**environment, **terminal},
            encoding="utf-8",
            dimensions=(40, 100),
            timeout=20,
        )

    def wait(self, text: str) -> str:
        """Wait for `text` on the screen; returns what came before it."""
        self.child.expect_exact(text)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.child.before)

    def enter(self, line: str) -> str:
        """Send a line and wait for the next input line; returns what was shown in between."""
        self.child.send(line + "\r")
        self.wait(TAKEN)
        return self.wait(READY)

    def leave(self) -> int:
        """Ctrl-D; returns the exit code."""
        self.child.sendeof()
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus)


@pytest.fixture
def open_chat(
    edge_script: str, environment: dict[str, str], smollm2: str
) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*options: str) -> Terminal:
        terminal = Terminal(edge_script, environment, *options)
        opened.append(terminal)
        terminal.wait(READY)
        return terminal

    yield start
    for terminal in opened:
        terminal.child.close(force=True)


def saved(terminal: Terminal, path: Path) -> list[dict[str, Any]]:
    terminal.enter(f"/save {path}")
    messages: list[dict[str, Any]] = json.loads(path.read_text())["messages"]
    return messages


def test_banner_says_what_runs(edge_script: str, environment: dict[str, str], smollm2: str):
    terminal = Terminal(edge_script, environment)
    banner = terminal.wait(READY)
    for expected in ("MiniCPM Edge", "int4-g32-min", "threads", "Memory: ", "weights", "KV cache", "/help"):
        assert expected in banner
    assert terminal.leave() == 0


def test_turns_share_the_cache(open_chat, tmp_path: Path):
    terminal = open_chat(*OPTIONS)
    terminal.enter("My name is Bartholomew.")
    terminal.enter("Say something about my name.")
    messages = saved(terminal, tmp_path / "chat.json")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"] == "Say something about my name."
    assert messages[1]["content"] and messages[3]["content"]
    stats = terminal.enter("/stats")
    reused = re.search(r"last prompt +(\d+) tokens, (\d+) of them reused", stats)
    assert reused and 30 < int(reused[2]) < int(reused[1])
    for expected in ("time to first token", "prefill", "decode", "memory"):
        assert expected in stats
    assert terminal.leave() == 0


def test_answers_equal_those_of_a_pipe(open_chat, run_edge, tmp_path: Path):
    """Formatting changes the screen, not the conversation."""
    terminal = open_chat(*OPTIONS)
    terminal.enter("Explain what a compiler does.")
    answer = saved(terminal, tmp_path / "chat.json")[1]["content"]
    plain = run_edge("chat", "--prompt", "Explain what a compiler does.", *OPTIONS).stdout
    assert plain == answer + "\n"


def test_reset_forgets(open_chat, tmp_path: Path):
    terminal = open_chat(*OPTIONS)
    terminal.enter("Hello")
    assert "forgotten" in terminal.enter("/reset")
    assert re.search(r"messages +0", terminal.enter("/stats"))
    assert saved(terminal, tmp_path / "chat.json") == []


def test_ctrl_c_ends_the_answer_and_not_the_program(open_chat, tmp_path: Path):
    terminal = open_chat(*ENDLESS)
    terminal.child.send("Tell a very long story.\r")
    terminal.wait(TAKEN)
    terminal.child.expect(r"[a-z]{3,}")
    terminal.child.sendintr()
    terminal.wait("(stopped: cancelled)")
    terminal.wait(READY)
    messages = saved(terminal, tmp_path / "first.json")
    assert len(messages) == 2 and messages[1]["content"]
    # The conversation goes on from there.
    terminal.child.send("Another one.\r")
    terminal.wait(TAKEN)
    terminal.child.expect(r"[a-z]{3,}")
    terminal.child.sendintr()
    terminal.wait("(stopped: cancelled)")
    terminal.wait(READY)
    again = saved(terminal, tmp_path / "second.json")
    assert again[:2] == messages and len(again) == 4
    assert terminal.leave() == 0


def test_ctrl_c_before_the_answer_begins(open_chat, tmp_path: Path):
    """While a prompt is rendered and encoded there is no answer yet that could be cancelled."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    terminal = open_chat(*OPTIONS)
    saved(terminal, old)
    conversation = json.loads(old.read_text())
    long_text = "The quick brown fox jumps over the lazy dog. " * 60_000
    conversation["messages"] = [{"role": "user", "content": long_text}]
    old.write_text(json.dumps(conversation))
    terminal.enter(f"/load {old}")
    terminal.child.send("Hello\r")
    terminal.wait(TAKEN)
    time.sleep(0.3)  # encoding takes about a second
    for _ in range(3):
        terminal.child.kill(signal.SIGINT)
    shown = terminal.wait("(stopped: cancelled)")
    assert "Error" not in shown
    terminal.wait(READY)
    assert saved(terminal, new) == conversation["messages"]
    assert terminal.leave() == 0


def test_ctrl_c_at_the_input_line_stays(open_chat):
    terminal = open_chat(*OPTIONS)
    terminal.child.send("half a line")
    terminal.child.sendintr()
    terminal.wait("(Ctrl-D or /exit leaves)")
    terminal.wait(READY)
    assert "list the commands" in terminal.enter("/help")
    assert terminal.leave() == 0


def test_save_and_load_between_programs(open_chat, tmp_path: Path):
    path = tmp_path / "chat.json"
    first = open_chat(*OPTIONS)
    first.enter("/system You are a pirate.")
    first.enter("Hello")
    messages = saved(first, path)
    assert first.leave() == 0
    second = open_chat(*OPTIONS)
    assert "Loaded 2 messages" in second.enter(f"/load {path}")
    assert "You are a pirate." in second.enter("/system")
    second.enter("And goodbye")
    assert saved(second, tmp_path / "again.json")[:2] == messages


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/dance", "no command '/dance'"),
        ("/load", "needs the name of a file"),
        ("/load /no/such/file", "Cannot read '/no/such/file'"),
        ("/think", "thinking"),
        ("word " * 300, "context holds 256"),
    ],
)
def test_mistakes_do_not_end_the_chat(open_chat, line: str, words: str):
    terminal = open_chat("--context", "256", *OPTIONS)
    shown = terminal.enter(line)
    assert words in " ".join(shown.split())
    assert "Traceback" not in shown
    terminal.enter("Hello")
    assert terminal.leave() == 0


def test_history_comes_back(open_chat, tmp_path: Path):
    first = open_chat(*OPTIONS)
    first.enter("/system Remember these words.")
    assert first.leave() == 0
    second = open_chat(*OPTIONS)
    second.child.send("\x1b[A")  # arrow up
    second.wait("Remember these words.")
    second.child.send("\r")
    second.wait(READY)
    assert "Remember these words." in second.enter("/system")


@pytest.mark.parametrize("word", ["/exit", "exit", "quit"])
def test_exit_leaves(open_chat, word: str):
    terminal = open_chat(*OPTIONS)
    terminal.child.send(f"{word}\r")
    terminal.child.expect(pexpect.EOF)
    terminal.child.close()
    assert terminal.child.exitstatus == 0


def test_alt_enter_writes_several_lines(open_chat, tmp_path: Path):
    terminal = open_chat(*OPTIONS)
    terminal.child.send("first line\x1b\r")
    terminal.enter("second line")
    assert saved(terminal, tmp_path / "chat.json")[0]["content"] == "first line\nsecond line"


def test_one_prompt_in_a_terminal_is_formatted(edge_script: str, environment: dict[str, str], smollm2: str):
    command = ["chat", "smollm2-135m", "--prompt", "Hi", *OPTIONS]
    terminal = {"TERM": "xterm-256color"}
    child = pexpect.spawn(edge_script, command, env={**environment, **terminal}, encoding="utf-8", timeout=20)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "\x1b[" in child.before


def test_json_in_a_terminal_needs_a_prompt(edge_script: str, environment: dict[str, str]):
    child = pexpect.spawn(edge_script, ["chat", "--json"], env=environment, encoding="utf-8", timeout=20)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 2
    assert "needs --prompt" in child.before


def test_interrupted_prompt_has_its_exit_code(edge_script: str, environment: dict[str, str], smollm2: str):
    command = ["chat", "smollm2-135m", "--prompt", "Tell a very long story.", *ENDLESS]
    child = pexpect.spawn(edge_script, command, env=environment, encoding="utf-8", timeout=20)
    child.expect(r"[a-z]{3,}")
    child.sendintr()
    child.expect_exact("(stopped: cancelled)")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
