"""Flags come from declared options: shared ones are the same, former names tell the new, help works."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from edge.apps.cli import options as cli_options
from edge.apps.cli.errors import Debugging, FormerNameError
from edge.apps.cli.main import COMMANDS, app
from edge.apps.cli.options import Group, expand
from edge.apps.export import export
from edge.system.options import REQUIRED, Option, option, options_of, same, several

WORDS = [
    *([name] for name in COMMANDS),
    *(
        ["eval", "perplexity"],
        ["eval", "compare"],
        ["eval", "frequencies"],
        ["cache", "list"],
        ["cache", "remove"],
    ),
]


def parameters(command: Any) -> Iterator[Any]:
    """Those of a command and of all below it."""
    yield from command.params
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from parameters(command.get_command(None, name))


def test_a_flag_of_several_commands_is_one_declaration():
    seen: dict[str, Any] = {}
    shared = set()
    for parameter in parameters(typer.main.get_command(app)):
        for flag in parameter.opts:
            if not flag.startswith("--") or flag == "--help" or parameter.hidden:
                continue
            first = seen.setdefault(flag, parameter)
            if first is parameter:
                continue
            shared.add(flag)
            assert parameter.help == first.help, flag
            is_list, was_list = parameter.metavar == "LIST", first.metavar == "LIST"
            if is_list == was_list:
                assert (parameter.metavar, parameter.default) == (first.metavar, first.default), flag
            else:
                one, many = (first, parameter) if is_list else (parameter, first)
                assert many.default in ([one.default], None), flag
    assert shared >= {"--context", "--threads", "--kv", "--attention", "--executor", "--quantize", "--head"}
    assert shared >= {"--revision", "--offline", "--text", "--window", "--out", "--json", "--debug"}


def test_a_flag_of_several_dataclasses_has_one_check():
    from edge.apps.inspect import PlanOptions
    from edge.executors.options import RunOptions
    from edge.export.options import ExportOptions
    from edge.hub.options import HubOptions, SourceOptions
    from edge.measure.profile.options import ProfileOptions

    known: dict[str, Option] = {}
    for kind in (RunOptions, SourceOptions, HubOptions, PlanOptions, ExportOptions, ProfileOptions):
        for name, declared in options_of(kind).items():
            first = known.setdefault(declared.flag or name, declared)
            for fact in ("help", "choices", "least", "most", "former", "check"):
                assert getattr(declared, fact) == getattr(first, fact), (kind, name)


@pytest.mark.parametrize("command", [[], *WORDS], ids=" ".join)
def test_help(run_edge: Callable[..., Any], command: list[str]):
    shown = run_edge(*command, "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert "Usage: edge" in shown.stdout and "--help" in shown.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["chat", "--help"]], ids=" ".join)
def test_what_only_prints_a_text_needs_no_numpy(environment: dict[str, str], arguments: list[str]):
    """NumPy would be a third of the time until the text is there."""
    program = (
        "import sys; from edge.apps.cli.main import main; "
        f"sys.argv[1:] = {arguments}; code = main(); sys.exit(code or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_help_shows_choices_ranges_and_defaults(run_edge: Callable[..., Any]):
    shown = run_edge("chat", "--help").stdout
    for part in (
        "native|onnx|executorch|cuda|",
        "auto|int16|float16|float32",
        "1<=x<=1024",
        "[default: auto]",
    ):
        assert part in shown
    assert "--kv-type" not in shown and "--group" not in shown
    assert "LIST" in run_edge("profile", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("chat", "--kv-type", "int8"), "The option --kv-type is now --kv: Number type of the KV cache"),
        (("profile", "m", "--kv-type", "int8"), "The option --kv-type is now --kv:"),
        (("chat", "--group", "64"), "The option --group is now --quantize: Quantize to"),
        (("profile", "m", "--group", "64"), "The option --group is now --quantize: Quantize to"),
        (("profile", "m", "--prompt", "64"), "The option --prompt is now --prefill:"),
        (
            ("export", "m", "--quantize", "none"),
            "'--quantize': The quantization 'none' is called 'source' now",
        ),
        (("eval", "perplexity", "m", "--text", "t", "--max-tokens", "9"), "--max-tokens is now --limit:"),
    ],
)
def test_former_names_tell_the_new_one(run_edge: Callable[..., Any], arguments, sentence):
    told = run_edge(*arguments)
    assert told.returncode == 2 and told.stdout == ""
    assert told.stderr.startswith("Error: ") and sentence in told.stderr and told.stderr.count("\n") == 1


@dataclass(frozen=True)
class Oven:
    degrees: int = option(180, "How hot.", least=0, most=300, former=("--heat",))
    kind: str = option("gas", "What heats.", choices=("gas", "steam"))
    fan: bool | None = option(None, "The fan.", flag="--fan/--no-fan")
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Oven2:
    name: str = option(REQUIRED, "Its name.")
    degrees: tuple[int, ...] = several(Oven, "degrees")
    kind: str = same(Oven, "kind")


def run(command: Callable[..., Any], *arguments: str) -> Any:
    """What the command got, from the JSON that it prints; the sentence of a usage error, or the exception."""
    program = typer.Typer(add_completion=False)
    program.command()(expand(command))
    done = CliRunner().invoke(program, list(arguments), obj=Debugging(), standalone_mode=False)
    if done.exception is None:
        return json.loads(done.output)
    wrong: Any = done.exception
    return wrong.format_message() if hasattr(wrong, "format_message") else wrong


def bake(oven: Oven) -> None:
    typer.echo(json.dumps(vars(oven)))


def bake_twice(
    a: Annotated[Oven, Group("A", suffix="-a")], b: Annotated[Oven, Group("B", suffix="-b")]
) -> None:
    typer.echo(json.dumps([a.degrees, b.degrees]))


def bake_many(oven: Oven2 | None) -> None:
    typer.echo(json.dumps(None if oven is None else vars(oven)))


def bake_given(oven: Annotated[dict[str, Any], Group(given=(Oven,))]) -> None:
    typer.echo(json.dumps(oven))


def test_expand_makes_the_dataclass():
    assert run(bake) == {"degrees": 180, "kind": "gas", "fan": None, "extra": {}}
    made = run(bake, "--degrees", "20", "--kind", "steam", "--no-fan")
    assert made == {"degrees": 20, "kind": "steam", "fan": False, "extra": {}}
    assert run(bake_twice, "--degrees-a", "1", "--degrees-b", "2") == [1, 2]
    assert run(bake_given) == {} and run(bake_given, "--degrees", "180") == {"degrees": 180}


def test_expand_of_lists_and_required_options():
    assert run(bake_many) is None
    many = run(bake_many, "--name", "x", "--degrees", "1,2", "--degrees", "2, 3")
    assert many == {"name": "x", "degrees": [1, 2, 3], "kind": "gas"}
    assert run(bake_many, "--name", "x")["degrees"] == [180]
    assert "'1,x' is not a list of whole numbers" in run(bake_many, "--name", "x", "--degrees", "1,x")
    assert "'--degrees'" in run(bake_many, "--name", "x", "--degrees", "1,301")


def test_expand_names_the_flag_of_a_wrong_value():
    assert "Invalid value for '--kind': Unknown kind 'wood'" in run(bake, "--kind", "wood")
    assert "Invalid value for '--degrees'" in run(bake, "--degrees", "301")
    assert isinstance(run(bake, "--heat", "9"), FormerNameError)
    assert "--heat is now --degrees" in str(run(bake, "--heat", "9"))


def test_expand_adds_options_of_plugins(monkeypatch: pytest.MonkeyPatch):
    extra = {"spin": (int | None, None, Option("Turns per minute.", least=1))}
    monkeypatch.setattr(cli_options, "extra_options", lambda kind: extra if kind is Oven else {})
    assert run(bake, "--spin", "3")["extra"] == {"spin": 3}
    assert run(bake)["extra"] == {}
    assert "'--spin'" in run(bake, "--spin", "0")


def test_commands_hide_former_names():
    hidden = [name for name in inspect.signature(export).parameters if name.startswith("former_")]
    assert len(hidden) == 1  # --group
