"""Every `edge` command that a page shows: its words are read by the real program, and the cheap ones run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from edge.apps.cli.errors import Debugging
from edge.apps.cli.main import app
from edge.config.presets import preset

ROOT = Path(__file__).resolve().parents[2]
OWN_PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md")
PAGES = [*OWN_PAGES, *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"extending.md": "tests/test_extending.py runs these with the plugin that they need"}
CHEAP = re.compile(r"edge inspect|edge cache list|--plan|--dry-run")
OTHERS = {"--no-deps", "--use-compress-lse"}  # of pip and CPM.cu


def code_lines(text: str) -> list[str]:
    """The lines of a page's code blocks, those that end in a backslash joined."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


@dataclass(frozen=True)
class Shown:
    """A command on a page; whole: it stands in a block of code, ready to be run, and not in a sentence."""

    page: str
    command: str
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.command[:60]}"


def shown() -> list[Shown]:
    """Every line `edge ...`, and of sentences what has options too."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in code_lines(text) if re.match(r"(EDGE_\w+=\S+ )*edge( |$)", line)]
        inline = [" ".join(code.split()) for code in re.findall(r"`(edge [^`]+ --[^`]+)`", text)]
        found += [Shown(path.name, line, True) for line in lines]
        found += [Shown(path.name, code, False) for code in inline]
    return [each for each in dict.fromkeys(found) if each.page not in ELSEWHERE]


COMMANDS = shown()


def arguments(command: str) -> list[str]:
    """The words after `edge`, without variables before, comments and redirections behind."""
    words = shlex.split(command, comments=True)
    words = words[next(i for i, word in enumerate(words) if word == "edge") + 1 :]
    end = next((i for i, word in enumerate(words) if word in ("<", ">", "|")), len(words))
    return words[:end]


def parsed(words: list[str], complete: bool = True) -> dict[str, Any]:
    """What the program makes of the words, without running anything; its own error for what it refuses."""
    command, name, context = typer.main.get_command(app), "edge", None
    while hasattr(command, "get_command"):
        context = command.make_context(name, list(words), parent=context, obj=Debugging())
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, f"there is no command '{name}'"
    return dict(command.make_context(name, words, parent=context, resilient_parsing=not complete).params)


def numbers(value: Any) -> list[int]:
    """The numbers of an option that takes a list."""
    return [int(number) for text in value or () for number in str(text).split(",")]


def test_commands_are_found():
    assert len(COMMANDS) > 40 and Shown("README.md", "edge doctor", True) in COMMANDS
    words = arguments('EDGE_TRACE=a.json edge chat MODEL --prompt "a b" < x # y')
    assert words == ["chat", "MODEL", "--prompt", "a b"]
    with pytest.raises(Exception, match="No such option"):
        parsed(["chat", "MODEL", "--colour", "red"])


@pytest.mark.parametrize("each", COMMANDS, ids=str)
def test_the_program_takes_it(each: Shown):
    """Its flags exist and take these values; and the context that it asks for is one that its model has."""
    words = arguments(each.command)
    params = parsed(words, each.whole)
    model = next((word for word in words if word.startswith("random:")), "random:smollm2-135m")
    longest = preset(model.removeprefix("random:")).max_position_embeddings
    asked = max(params.get("context") or 0, params.get("window") or 0)
    if words[0] == "profile" and not params["plan"]:
        tokens = [*numbers(params["prefill"]), params["generate"] or 0]
        asked = max([0, *numbers(params["depth"])]) + max(tokens)
    assert asked <= longest, f"{model} has a context of {longest} tokens"


@pytest.mark.parametrize(
    "command", [each.command for each in COMMANDS if each.whole and CHEAP.search(each.command)]
)
def test_a_cheap_one_runs(command: str, run_inside, smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_inside(*(smollm2 if word == "MODEL" else word for word in arguments(command)))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def flags_of(command: Any, context: Any = None) -> set[str]:
    """All flags of a command and of those below it."""
    found = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    if hasattr(command, "list_commands"):
        context = command.make_context("edge", [], parent=context, obj=Debugging(), resilient_parsing=True)
        for name in command.list_commands(context):
            found |= flags_of(command.get_command(context, name), context)
    return found


def test_flags_that_the_pages_name_exist():
    """`--quantize` and the like in sentences: of `edge`, of its C++ programs, or of another program."""
    known = {"--help", *flags_of(typer.main.get_command(app))} | OTHERS
    missing = [
        f"{path.name} names {flag}"
        for path in PAGES
        for code in re.findall(r"`(--[^`]+)`", path.read_text(encoding="utf-8"))
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)
        if path.name not in ELSEWHERE and flag not in known
    ]
    assert not missing, "\n".join(missing)
