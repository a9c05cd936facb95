"""Opens the model of a command, and says with which flags a problem with the context can be solved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge.apps.cli.options import RunOptions, SourceOptions
from edge.apps.cli.terminal import convert_progress
from edge.errors import ContextError

if TYPE_CHECKING:
    from edge.runtime import Model


def load_model(model: str, source: SourceOptions, run: RunOptions) -> Model:
    """`edge.load` with the options of the command line and a progress bar."""
    from edge.runtime import load

    with convert_progress(model) as progress, naming_flags("--context", "--rope-override", "--quantize"):
        return load(model, **source.arguments(), **run.arguments(), progress=progress)


@contextmanager
def naming_flags(*flags: str) -> Iterator[None]:
    """Add the flags that help to the sentence of a ContextError, which knows of the Python API only."""
    try:
        yield
    except ContextError as error:
        raise ContextError(f"{str(error).rstrip('.')} (flags: {', '.join(flags)}).") from error
