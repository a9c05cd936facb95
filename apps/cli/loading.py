"""Opens the model of a command, and says with which flags a problem with the context can be solved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.apps.cli.options import given_flags
from edge.apps.cli.terminal import convert_progress
from edge.engine.speculative.options import SpeculationOptions
from edge.errors import ContextError
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions

if TYPE_CHECKING:
    from edge.runtime import Model

RopeOverride = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help='Go beyond the trained context knowingly, e.g. \'{"rope_type": "yarn", "factor": 4}\'.',
        rich_help_panel="Model",
    ),
]


def load_model(
    model: str,
    source: SourceOptions,
    run: RunOptions,
    rope_override: str | None = None,
    speculation: SpeculationOptions | None = None,
    prefix_folder: Path | None = None,
    prefix_memory: int | None = None,
) -> Model:
    """`edge.load` with the options of the command line and a progress bar."""
    from edge.runtime import load

    with convert_progress(model) as progress, naming_flags("--context", "--rope-override", "--quantize"):
        return load(
            model,
            **keywords(source),
            **keywords(run),
            rope_override=rope_override,
            **keywords(speculation or SpeculationOptions()),
            progress=progress,
            prefix_folder=prefix_folder,
            prefix_memory=prefix_memory,
        )


def keywords(options: Any) -> dict[str, Any]:
    """What was typed or differs from the defaults in a dataclass of options, as keywords, with those in
    `extra`.
    """
    default, typed = type(options)(), given_flags()
    values = {each.name: getattr(options, each.name) for each in fields(options)}
    changed = {
        name: value for name, value in values.items() if value != getattr(default, name) or name in typed
    }
    extra = changed.pop("extra", {})
    return {**changed, **extra}


@contextmanager
def naming_flags(*flags: str) -> Iterator[None]:
    """Add the flags that help to the sentence of a ContextError, which knows of the Python API only."""
    try:
        yield
    except ContextError as error:
        raise ContextError(f"{str(error).rstrip('.')} (flags: {', '.join(flags)}).") from error
