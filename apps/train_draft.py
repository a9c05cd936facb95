"""`edge train answers` and `edge train draft`: from a model over its answers to what guesses them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from edge.apps.cli.loading import load_model
from edge.apps.cli.options import Json, Model, Out, Run, Source, expand, given_out
from edge.apps.cli.terminal import output_console, print_json
from edge.apps.train_data import counting
from edge.apps.train_run import train_as
from edge.engine.speculative.options import SpeculationOptions
from edge.train.config import read
from edge.train.data.texts import ReadingOptions, read_documents
from edge.train.drafts.options import DRAFT_KINDS, AnswerOptions

_RUNS = {"bita": "bita"}
"""Presets of runs by the kind of draft; the others have `draft`."""


@expand
def answers(
    model: Model,
    *,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Prompts, one a document: .jsonl, .txt, .md or .parquet; several times."
        ),
    ] = None,
    of: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Answers that exist: they are read again, for another kind of draft or form of the model.",
        ),
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
    if (of is None) == (prompts is None):
        raise typer.BadParameter("give either of them", param_hint="'--prompts' or '--of'")
    from edge.train.data.shards import ShardFolder
    from edge.train.drafts.answers import Asked, Earlier, Prompts, make_answers

    asked: Asked = Prompts(list(read_documents(prompts or (), reading)))
    if of is not None:
        asked = Earlier(ShardFolder.open(of))
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
    kind: Annotated[
        str, typer.Option(help=f"What the draft is like: {', '.join(DRAFT_KINDS)}.")
    ] = DRAFT_KINDS[0],
    held_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Other answers, which it is judged by while it learns.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value for an option of the run."),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> int:
    """Train a draft of a model, which guesses what it will say."""
    folder = given_out(out)
    quoted = {"draft.target": model, "draft.kind": kind, "data.sources.answers": str(answers)}
    if held_out is not None:
        quoted["evaluation.sources.answers"] = str(held_out)
    changes = [f'{name}="{value}"' for name, value in quoted.items()]
    said = f"Trained {folder}/model; guess with it: edge chat {model} --speculate {folder}/model"
    return train_as(read(_RUNS.get(kind, "draft"), [*changes, *(change or ())]), folder, as_json, said)
