"""`edge chat`: in a terminal, in a pipe, or for one prompt."""

from __future__ import annotations

import sys
from enum import Enum
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge import __version__
from edge.apps.cli.errors import FAILED, say
from edge.apps.cli.loading import RopeOverride, load_model
from edge.apps.cli.options import Group, Json, Model, Run, Source, expand
from edge.apps.cli.terminal import output_console
from edge.engine.settings import GenerationSettings, SamplingParams
from edge.engine.speculative.options import SpeculationOptions
from edge.errors import EdgeError
from edge.hub.built_in import BUILT_IN

if TYPE_CHECKING:
    from edge.apps.chat.loop import ChatLoop
    from edge.engine.constraints.grammar import Grammar
    from edge.runtime import Model as LoadedModel


Settings = Annotated[dict[str, Any], Group("Sampling", given=(SamplingParams, GenerationSettings))]


class Overflow(str, Enum):
    """Names of `--overflow`."""

    stop = "stop"
    drop = "drop"


@expand
def chat(
    model: Model = BUILT_IN.name,
    *,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this and exit; - reads all of stdin.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt; by default the model's own.")
    ] = None,
    overflow: Annotated[
        Overflow, typer.Option(help="When the context is full: stop, or drop the oldest turns.")
    ] = Overflow.stop,
    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think", help="Switch thinking, if the chat template can.", show_default=False
        ),
    ] = None,
    thinking_budget: Annotated[
        int | None,
        typer.Option(min=0, metavar="TOKENS", help="Most tokens that an answer thinks.", show_default=False),
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.py",
            help="Let the model call the public functions of this file; you are asked before each call.",
        ),
    ] = None,
    yes_tools: Annotated[bool, typer.Option("--yes-tools", help="Run calls without asking.")] = False,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Every answer is JSON of the JSON schema in this file."),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Every answer is a text of the Lark grammar in this file."),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Every answer is a text that this regex matches.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Begin with the KV cache in this file, if there is one, and leave ours there.",
        ),
    ] = None,
    as_json: Json = False,
    source: Source,
    run: Run,
    rope_override: RopeOverride = None,
    speculation: Annotated[SpeculationOptions, Group("Model")],
    settings: Settings,
) -> None:
    """Chat with a model. In a pipe every line of stdin is a message."""
    interactive = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    if as_json and interactive:
        raise typer.BadParameter("it needs --prompt, or messages on stdin", param_hint="'--json'")
    if settings.get("logprobs") is not None and not as_json:
        raise typer.BadParameter("belongs to --json, which shows them", param_hint="'--logprobs'")
    if tools is not None and not yes_tools and not sys.stdin.isatty():
        raise typer.BadParameter(
            "nobody can be asked before a call: add --yes-tools to run them all", param_hint="'--tools'"
        )
    message = None if prompt is None else _message(prompt)
    form = _form(schema, grammar, regex)

    from edge.apps.chat.json_document import answer_document
    from edge.apps.chat.loop import ChatLoop
    from edge.apps.chat.tools import ask, functions_of
    from edge.apps.chat.views import JsonView, PlainView, TerminalView, View

    functions = None if tools is None else functions_of(tools.expanduser())

    started = perf_counter()
    with load_model(model, source, run, rope_override, speculation) as loaded:
        load_seconds = perf_counter() - started
        if form is not None:
            from edge.engine.constraints.grammar import compile_grammar

            compile_grammar(form, loaded.tokenizer)  # a mistake in it is said before any message
        conversation = loaded.chat(
            system,
            context_policy=overflow.value,
            thinking=think,
            thinking_budget=thinking_budget,
            tools=functions,
            **settings,
        )
        if cache is not None:
            conversation.session.check_files()  # before a conversation that could not be kept
            if cache.exists():
                conversation.session.load(cache)
        view: View
        if as_json:
            describe = partial(answer_document, loaded, conversation, load_seconds)
            view = JsonView(loaded.context, describe)
        else:
            view = TerminalView(loaded.context) if sys.stdout.isatty() else PlainView(loaded.context)
        allow = None if yes_tools else ask
        loop = ChatLoop(
            loaded,
            conversation,
            view,
            system=system,
            thinking=think,
            allow=allow,
            response_format=form,
        )
        try:
            if interactive:
                _interact(loop, loaded)
            elif message is not None:
                done = loop.say(message)
                if done.stop_reason == "cancelled":
                    raise KeyboardInterrupt  # for the exit code: the answer is not whole
            else:
                _read_lines(loop)
        finally:
            if cache is not None:
                conversation.session.save(cache)


def _form(schema: Path | None, grammar: Path | None, regex: str | None) -> Grammar | None:
    """What every answer must look like."""
    from edge.engine.constraints.grammar import Grammar
    from edge.formats.guarded_json import parse_object

    given = {"--schema": schema, "--grammar": grammar, "--regex": regex}
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise typer.BadParameter(f"it can't stand beside {flags[0]}", param_hint=f"'{flags[1]}'")
    if schema is not None:
        text = _text(schema, "--schema")
        return Grammar.json_schema(parse_object(text, schema, EdgeError, "give a JSON schema"))
    if grammar is not None:
        try:
            return Grammar.lark(_text(grammar, "--grammar").decode())
        except UnicodeDecodeError:
            raise EdgeError(f"The grammar '{grammar}' is not UTF-8 text.") from None
    return None if regex is None else Grammar.regex(regex)


def _text(path: Path, flag: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise EdgeError(f"The file '{path}' of {flag} can't be read: {error.strerror or error}.") from None


def _message(prompt: str) -> str:
    """The one message to answer."""
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise EdgeError("The prompt is empty: say something.")
    return text


def _read_lines(loop: ChatLoop) -> None:
    """Take every line of stdin. One that fails does not keep the others from their answers."""
    failed = False
    for line in sys.stdin:
        try:
            if not loop.enter(line):
                break
        except EdgeError as error:
            say(str(error))
            failed = True
    if failed:
        raise typer.Exit(FAILED)


def _interact(loop: ChatLoop, model: LoadedModel) -> None:
    from rich.text import Text

    from edge.apps.chat.interrupts import Interrupts
    from edge.apps.chat.line_editor import LineEditor
    from edge.apps.chat.loop import memory_line

    console = output_console()
    facts = f" {__version__} · {model.name} · {loop.machine()}"
    console.print(Text("MiniCPM Edge", style="bold").append(facts, style="not bold"), soft_wrap=True)
    console.print(f"Memory: {memory_line(model)}", style="dim", soft_wrap=True)
    console.print("/help lists the commands, Ctrl-C stops an answer, /exit or Ctrl-D leaves.\n", style="dim")
    editor = LineEditor(loop.commands, loop.status)
    with Interrupts() as interrupts:
        while True:
            try:
                text = editor.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                console.print("(Ctrl-D or /exit leaves)", style="dim")
                continue
            if text.strip() in ("exit", "quit"):  # as in a shell; the model would make a story of it
                return
            try:
                with interrupts.armed():
                    if not loop.enter(text):
                        return
            except EdgeError as error:
                say(str(error))
            except KeyboardInterrupt:  # not during an answer: that is cancelled
                console.print("(stopped: cancelled)", style="dim")
            console.print()
