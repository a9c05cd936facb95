"""`edge eval`: how well a model predicts a text, and how far one is from another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.apps.cli.options import (
    MODEL_HELP,
    Activations,
    Json,
    KVType,
    Model,
    RunOptions,
    SourceOptions,
    expand,
    known_executor,
)
from edge.apps.cli.terminal import error_console, output_console
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.runtime import Model as LoadedModel

app = typer.Typer(help="Measure the quality of a model.", no_args_is_help=True)


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

    from edge.apps.cli.loading import load_model
    from edge.measure.perplexity import perplexity as evaluate

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
        facts = {**asdict(result), **_arithmetic(loaded), "attention": loaded.attention}
        typer.echo(json.dumps({"schema": 1, "model": model, "text": str(text), **facts}))
        return
    output = output_console()
    output.print(f"Perplexity {result.perplexity:.4f} ({result.nll:.5f} nats per token)", style="bold")
    output.print(f"Protocol: {result.protocol}", soft_wrap=True)
    used = _arithmetic(loaded)
    kinds = f"{used['activations']} activations, {used['kv_type']} KV cache, attention {loaded.attention}"
    output.print(f"Arithmetic: {kinds}", soft_wrap=True)
    output.print(f"{result.tokens / result.seconds:.0f} tokens/s", style="dim")


@app.command("compare")
@expand
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The reference: {MODEL_HELP}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same network in another form.")],
    *,
    text: Annotated[Path, typer.Option(metavar="FILE", help="UTF-8 text to compare on.")],
    window: Annotated[int | None, typer.Option(min=2, help="Tokens of a window; by default 512.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Compare on the beginning of the text only.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    quantize_a: Annotated[str | None, typer.Option(help="Quantize A to this.")] = None,
    quantize_b: Annotated[str | None, typer.Option(help="Quantize B to this.")] = None,
    kv_a: Annotated[KVType, typer.Option(help="KV cache of A.")] = KVType.float16,
    kv_b: Annotated[KVType, typer.Option(help="KV cache of B.")] = KVType.float16,
    activations_a: Annotated[Activations, typer.Option(help="Arithmetic of A.")] = Activations.int8,
    activations_b: Annotated[Activations, typer.Option(help="Arithmetic of B.")] = Activations.int8,
    executor_a: Annotated[
        str | None, typer.Option(metavar="NAME", callback=known_executor, help="What runs A.")
    ] = None,
    executor_b: Annotated[
        str | None, typer.Option(metavar="NAME", callback=known_executor, help="What runs B.")
    ] = None,
    as_json: Json = False,
) -> None:
    """KL divergence and top-1 agreement of two quantizations, number types or executors of one model."""
    from edge.apps.cli.loading import load_model
    from edge.measure.divergence import divergence

    content = _read(text)
    run_a = RunOptions(None, threads, kv=kv_a, activations=activations_a, executor=executor_a)
    run_b = RunOptions(None, threads, kv=kv_b, activations=activations_b, executor=executor_b)
    sides = ((a, quantize_a, run_a), (b, quantize_b, run_b))
    reference, other = (load_model(name, SourceOptions(quantize), run) for name, quantize, run in sides)
    with reference, other:
        result = divergence(reference, other, content, window=window, max_tokens=max_tokens)
    facts = [
        {
            "model": name,
            "quantize": quantize,
            **_arithmetic(loaded),
        }
        for (name, quantize, _), loaded in zip(sides, (reference, other), strict=True)
    ]
    if as_json:
        document = {"schema": 1, "a": facts[0], "b": facts[1], "text": str(text), **asdict(result)}
        typer.echo(json.dumps(document))
        return
    output = output_console()
    output.print(
        f"KL divergence {result.kl_divergence:.5f} (p50 {result.kl_p50:.5f}, p90 {result.kl_p90:.5f}, p99 "
        f"{result.kl_p99:.5f}, max {result.kl_max:.4f})",
        style="bold",
        soft_wrap=True,
    )
    output.print(f"Top-1 agreement {result.top1_agreement:.2%}", style="bold")
    output.print(f"Perplexity: A {result.perplexity_a:.4f}, B {result.perplexity_b:.4f}")
    output.print(f"Protocol: {result.protocol}", soft_wrap=True)


def _arithmetic(loaded: LoadedModel) -> dict[str, str]:
    """What a model ran on, and the number types that it computed with."""
    info = loaded.executor.info
    return {"activations": info.activations, "kv_type": info.kv_type, "executor": info.name}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"Cannot read '{path}': {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise EdgeError(f"'{path}' is not a UTF-8 text; convert it to UTF-8 or name another.") from None
