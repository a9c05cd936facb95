"""`edge train answers` and `edge train draft`: from a model over its answers to what guesses them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge.apps.cli.loading import load_model
from edge.apps.cli.options import Json, Model, Out, Run, Source, expand, given_out
from edge.apps.cli.terminal import output_console, print_json
from edge.apps.train_data import counting
from edge.apps.train_run import Changes, train_as
from edge.engine.speculative.options import SpeculationOptions
from edge.system.options import same
from edge.train.config import read
from edge.train.data.texts import ReadingOptions, read_documents
from edge.train.drafts.options import AnswerOptions

_RUNS = {"bita": "bita"}
"""Presets of runs by the kind of draft; the others have `draft`."""


@dataclass(frozen=True)
class DraftOptions:
    """What is trained."""

    kind: str = same(AnswerOptions, "kind")


@expand
def answers(
    model: Model,
    prompts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PROMPTS]...", help="Prompts, one a document: .jsonl, .txt, .md, .parquet."),
    ] = None,
    *,
    of: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Answers that exist: they are read again, for another kind of draft or form of the model.",
        ),
    ] = None,
    first: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --of: only the first so many of them.")
    ] = None,
    reading: ReadingOptions,
    options: AnswerOptions,
    source: Source,
    run: Run,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Let a model answer prompts, for a draft to learn from; what was ended goes on where it was."""
    folder = given_out(out)
    if (of is None) == (not prompts):
        raise typer.BadParameter("give prompts or --of, one of them", param_hint="PROMPTS")
    if first is not None and of is None:
        raise typer.BadParameter("says how many answers of --of are read", param_hint="--first")
    from edge.train.data.shards import ShardFolder
    from edge.train.drafts.answers import Asked, Earlier, Prompts, make_answers

    asked: Asked = Prompts(list(read_documents(prompts or (), reading)))
    if of is not None:
        asked = Earlier(ShardFolder.open(of), first)
    started = time.monotonic()
    opened = load_model(model, source, run, speculation=SpeculationOptions("off"), prefix_memory=0)
    with opened, counting("Answering", f"of {len(asked)}") as count:
        made = make_answers(opened, asked, folder, options, lambda done, _: count(done))
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        print_json(
            {
                "schema": 1,
                "out": str(folder),
                "asked": len(asked),
                "answers": made.documents,
                "tokens": made.tokens,
                "seconds": seconds,
            }
        )
        return
    output_console().print(
        f"Wrote {folder}: {made.documents} answers with their prompts, {made.tokens} tokens", soft_wrap=True
    )


@expand
def draft(
    model: Model,
    *,
    answers: Annotated[
        Path, typer.Option(metavar="DIR", help="The model's answers, as `edge train answers` made them.")
    ],
    made: DraftOptions,
    held_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Other answers, which it is judged by while it learns.")
    ] = None,
    change: Changes = None,
    out: Out = None,
    as_json: Json = False,
) -> int:
    """Train a draft of a model, which guesses what it will say."""
    folder = given_out(out)
    quoted = {"draft.target": model, "draft.kind": made.kind, "data.sources.answers": str(answers)}
    if held_out is not None:
        quoted["evaluation.sources.answers"] = str(held_out)
    changes = [f'{name}="{value}"' for name, value in quoted.items()]
    said = f"Trained {folder}/model; guess with it: edge chat {model} --speculate {folder}/model"
    return train_as(read(_RUNS.get(made.kind, "draft"), [*changes, *(change or ())]), folder, as_json, said)
