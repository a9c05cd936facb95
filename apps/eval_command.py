"""`edge eval`: how well a model predicts a text."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from apps.options import Json, Model, RunOptions, SourceOptions, expand
from apps.terminal import error_console, output_console
from edge.errors import EdgeError

app = typer.Typer(help="Measure the quality of a model.", no_args_is_help=True)


@app.callback()
def _eval() -> None:
    """Keeps `perplexity` a command of its own while it is the only one."""


@app.command("perplexity")
@expand
def perplexity(
    model: Model,
    *,
    text: Annotated[Path, typer.Option(metavar="FILE", help="UTF-8 text to score.")],
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window; by default 2048 or the context.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window; by default half of one.")
    ] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Put the BOS token in front of every window.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Score only the beginning of the text.")
    ] = None,
    as_json: Json = False,
    source: SourceOptions,
    run: RunOptions,
) -> None:
    """Perplexity of a text in sliding windows; the protocol is printed with the result."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from apps.loading import load_model
    from edge.perplexity import perplexity as evaluate

    content = _read(text)
    loaded = load_model(model, source, run)
    console = error_console()
    columns = (
        TextColumn("Scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with loaded, bar:
        task = bar.add_task("", total=None)
        result = evaluate(
            loaded,
            content,
            window=window,
            stride=stride,
            bos=bos,
            max_tokens=max_tokens,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        arithmetic = {
            "activations": run.activations.value,
            "kv_type": run.kv.value,
            "attention": loaded.attention,
        }
        typer.echo(
            json.dumps({"schema": 1, "model": model, "text": str(text), **asdict(result), **arithmetic})
        )
        return
    output = output_console()
    output.print(f"Perplexity {result.perplexity:.4f} ({result.nll:.5f} nats per token)", style="bold")
    output.print(f"Protocol: {result.protocol}", soft_wrap=True)
    kinds = f"{run.activations.value} activations, {run.kv.value} KV cache, attention {loaded.attention}"
    output.print(f"Arithmetic: {kinds}", soft_wrap=True)
    output.print(f"{result.tokens / result.seconds:.0f} tokens/s", style="dim")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"Cannot read '{path}': {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise EdgeError(f"'{path}' is not a UTF-8 text; convert it to UTF-8 or name another.") from None
