"""`edge eval`: how well a model predicts a text, how far one is from another, and which tokens a text has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.apps.cli.loading import RopeOverride, keywords, load_model
from edge.apps.cli.options import MODEL_HELP, Group, Hub, Json, Model, Out, Run, Source, expand
from edge.apps.cli.terminal import convert_progress, error_console, output_console, print_json
from edge.config import KVChoice
from edge.config.rope_regime import RopeRegime
from edge.errors import EdgeError
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions
from edge.system.options import REQUIRED, option, same

if TYPE_CHECKING:
    from edge.runtime import Model as LoadedModel

app = typer.Typer(help="Measure the quality of a model.", no_args_is_help=True, add_completion=False)


TEXT_HELP = "The UTF-8 text that is looked at."


@dataclass(frozen=True)
class TextOptions:
    """What is scored."""

    text: Path = option(REQUIRED, TEXT_HELP, metavar="FILE")
    window: int | None = option(
        None, "Tokens of a window; by default 2048, to compare 512, and not beyond the context.", least=2
    )
    limit: int | None = option(
        None, "Score only so many tokens at the beginning of the text.", least=1, former=("--max-tokens",)
    )


@dataclass(frozen=True)
class SideOptions:
    """One of two forms of a network."""

    quantize: str | None = same(SourceOptions, "quantize")
    kv_type: KVChoice = same(RunOptions, "kv_type")
    activations: str = same(RunOptions, "activations")
    rope_regime: RopeRegime = same(RunOptions, "rope_regime")
    executor: str | None = same(RunOptions, "executor")

    def run(self, threads: int | None) -> RunOptions:
        """How it is run."""
        return RunOptions(
            executor=self.executor,
            threads=threads,
            activations=self.activations,
            kv_type=self.kv_type,
            rope_regime=self.rope_regime,
        )


@dataclass(frozen=True)
class ThreadOptions:
    """What both forms share."""

    threads: int | None = same(RunOptions, "threads")


@app.command("perplexity")
@expand
def perplexity(
    model: Model,
    *,
    scored: TextOptions,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window; by default half of one.")
    ] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Put the BOS token in front of every window.")] = False,
    as_json: Json = False,
    source: Source,
    run: Run,
    rope_override: RopeOverride = None,
) -> None:
    """Perplexity of a text in sliding windows; the protocol is printed with the result."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from edge.measure.perplexity import perplexity as evaluate

    content = _read(scored.text)
    loaded = load_model(model, source, run, rope_override)
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
            window=scored.window,
            stride=stride,
            bos=bos,
            max_tokens=scored.limit,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        facts = {**asdict(result), **_arithmetic(loaded), "attention": loaded.attention}
        print_json({"schema": 1, "model": model, "text": str(scored.text), **facts})
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
    scored: TextOptions,
    shared: ThreadOptions,
    side_a: Annotated[SideOptions, Group("A", suffix="-a")],
    side_b: Annotated[SideOptions, Group("B", suffix="-b")],
    as_json: Json = False,
) -> None:
    """KL divergence and top-1 agreement of two quantizations, number types or executors of one model."""
    from edge.measure.divergence import divergence

    content = _read(scored.text)
    sides = [(name, side, side.run(shared.threads)) for name, side in ((a, side_a), (b, side_b))]
    reference, other = (
        load_model(name, SourceOptions(quantize=side.quantize), run) for name, side, run in sides
    )
    with reference, other:
        result = divergence(reference, other, content, window=scored.window, max_tokens=scored.limit)
    facts = [
        {"model": name, "quantize": side.quantize, **_arithmetic(loaded)}
        for (name, side, _), loaded in zip(sides, (reference, other), strict=True)
    ]
    if as_json:
        document = {"schema": 1, "a": facts[0], "b": facts[1], "text": str(scored.text), **asdict(result)}
        print_json(document)
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


@app.command("frequencies")
@expand
def frequencies(
    model: Model,
    *,
    text: Annotated[list[Path], typer.Option(metavar="FILE", help=TEXT_HELP)],
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in the list; by default a quarter of the vocabulary."),
    ] = None,
    out: Out = None,
    as_json: Json = False,
    hub: Hub,
) -> None:
    """List the most frequent tokens of texts, for a draft that guesses with a part of the head (FR-Spec).

    Give `--text` for each file. The list is written to freq_SIZE.pt, as torch.save writes it, or to `--out`
    (.pt, .npy or .json).
    """
    from edge.checkpoints.frequency_list import check_list_name, write_frequency_list
    from edge.hub.resolve import open_texts
    from edge.measure.frequencies import count_tokens
    from edge.text.tokenizer.load import open_tokenizer

    if out is not None:
        check_list_name(out)  # before minutes of counting
    tokenizer = open_tokenizer(open_texts(model, **keywords(hub), progress=error_console().is_terminal))
    size = tokenizer.vocab_size // 4 if size is None else size
    if size > tokenizer.vocab_size:
        raise EdgeError(f"The model has only {tokenizer.vocab_size} tokens: give a size up to that.")
    with convert_progress(f"{len(text)} files", "Counting") as progress:
        counts = count_tokens(tokenizer, text, progress=progress)
    tokenizer.close()
    ids = counts.ranked(size, tokenizer.end_tokens)
    path = Path(f"freq_{size}.pt") if out is None else out
    write_frequency_list(path, ids.tolist())
    coverage = {
        each: counts.coverage(counts.ranked(each, tokenizer.end_tokens))
        for each in sorted({*counts.usual_sizes(), size})
    }
    unseen = max(0, size - counts.different)
    if as_json:
        print_json(
            {
                "schema": 1,
                "model": model,
                "texts": [str(each) for each in text],
                "list": str(path),
                "size": size,
                "unseen": unseen,
                "tokens": counts.tokens,
                "different": counts.different,
                "vocabulary": tokenizer.vocab_size,
                "coverage": {str(each): share for each, share in coverage.items()},
            }
        )
        return
    output = output_console()
    output.print(f"Wrote {path}: {size} of {tokenizer.vocab_size} tokens", style="bold", soft_wrap=True)
    output.print(
        f"{counts.tokens} tokens counted, {counts.different} different ones in {len(text)} files",
        soft_wrap=True,
    )
    for each, share in coverage.items():
        output.print(f"The {each} most frequent are {share:.2%} of these texts")
    if unseen:
        output.print(
            f"{unseen} tokens of the list never came up: they follow by their id; a larger corpus would rank "
            "them.",
            style="yellow",
            soft_wrap=True,
        )


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
