"""`edge train tokenizer` and `edge train tokenize`: from texts to what `edge train run` reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge.apps.cli.options import Json, Out, expand, given_out
from edge.apps.cli.terminal import error_console, output_console, print_json
from edge.errors import EdgeError
from edge.executors.options import RunOptions
from edge.system.options import REQUIRED, option, same
from edge.train.data.texts import ReadingOptions, read_documents

Texts = Annotated[
    list[Path],
    typer.Argument(metavar="TEXT...", help="Files: .txt, .md, .jsonl (also as .gz) or .parquet."),
]


@dataclass(frozen=True)
class TokenizerOptions:
    """What tokenizer is made."""

    vocabulary: int = option(
        REQUIRED, "Tokens of the vocabulary, the special ones included.", least=268, metavar="N"
    )
    sample: float = option(
        100.0,
        "MB of text that is learned from; of more a part is chosen by the documents' contents.",
        least=0.001,
    )
    threads: int | None = same(RunOptions, "threads")


@dataclass(frozen=True)
class ShardOptions:
    """What shards are made."""

    tokenizer: Path = option(REQUIRED, "The folder of a tokenizer, or of a model with one.", metavar="DIR")
    holdout: float = option(
        0.0, "Share of the documents that goes into DIR-heldout instead, for validation.", least=0.0, most=0.5
    )
    shard_size: float = option(16.0, "Million characters of text in a shard.", least=0.001)
    workers: int = option(1, "Processes that tokenize.", least=1)


@expand
def tokenizer(
    texts: Texts, *, made: TokenizerOptions, reading: ReadingOptions, out: Out = None, as_json: Json = False
) -> None:
    """Train a tokenizer: SentencePiece BPE with byte fallback and MiniCPM's special tokens."""
    folder = given_out(out)
    from edge.formats.atomic import Partial, write_failure
    from edge.train.data.tokenizer_training import sampled, train_tokenizer

    if folder.exists():
        raise EdgeError(f"'{folder}' exists already; choose another --out.")
    started = time.monotonic()
    documents = read_documents(texts, reading)
    share = made.sample * 1e6 / max(1, sum(_size(path) for path in texts))
    used = {"documents": 0, "characters": 0}
    with counting("Reading", "documents") as count:

        def counted() -> Iterator[str]:
            for text in sampled(documents, share):
                used["documents"] += 1
                used["characters"] += len(text)
                count(used["documents"])
                yield text

        files = train_tokenizer(counted(), made.vocabulary, threads=made.threads or 1)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Partial(folder, folder=True) as partial:
            for name, data in files.items():
                (partial.path / name).write_bytes(data)
            partial.keep()
    except OSError as error:
        raise EdgeError(write_failure(folder, error)) from None
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        print_json(
            {"schema": 1, "out": str(folder), "vocabulary": made.vocabulary, **used, "seconds": seconds}
        )
        return
    output = output_console()
    output.print(f"Wrote {folder}: {made.vocabulary} tokens", style="bold", soft_wrap=True)
    output.print(
        f"Learned from {used['characters']} characters of {used['documents']} documents in {seconds} s"
    )


@expand
def tokenize(
    texts: Texts, *, made: ShardOptions, reading: ReadingOptions, out: Out = None, as_json: Json = False
) -> None:
    """Tokenize texts into memory-mapped shards; a run that was ended goes on where it was."""
    target = given_out(out)
    from edge.train.data.shards import read_tokenizer_files
    from edge.train.data.tokenize import Tokenizing
    from edge.train.data.tokenize import tokenize as make

    started = time.monotonic()
    plan = Tokenizing(
        target,
        read_tokenizer_files(made.tokenizer),
        made.holdout,
        max(1, int(made.shard_size * 1e6)),
        made.workers,
    )
    with counting("Tokenizing", "documents") as count:
        folders = make(read_documents(texts, reading), plan, lambda documents, _: count(documents))
    seconds = round(time.monotonic() - started, 1)
    facts = [
        {
            "out": str(folder.path),
            "documents": folder.documents,
            "tokens": folder.tokens,
            "shards": len(folder.shards),
            "longest": int(folder.lengths.max(initial=0)),
        }
        for folder in folders
    ]
    if as_json:
        shared = folders[0].facts
        print_json(
            {
                "schema": 1,
                **facts[0],
                "heldout": facts[1] if len(facts) > 1 else None,
                "vocab_size": shared.vocab_size,
                "dtype": shared.dtype.name,
                "tokenizer": shared.tokenizer,
                "seconds": seconds,
            }
        )
        return
    output = output_console()
    for each in facts:
        output.print(
            f"Wrote {each['out']}: {each['tokens']} tokens of {each['documents']} documents in "
            f"{each['shards']} shards",
            style="bold",
            soft_wrap=True,
        )
    output.print(f"{seconds} s", style="dim")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise EdgeError(f"Cannot read '{path}': {error.strerror or error}.") from None


@contextmanager
def counting(what: str, of: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that shows how many are done; it says nothing in a pipe."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = error_console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count: bar.update(task, completed=count, description=f"{what}: {count} {of}")
