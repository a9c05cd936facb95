"""`edge serve`: answers requests of programs with a model."""

from __future__ import annotations

from typing import Annotated

import typer

from edge.apps.cli.errors import say
from edge.apps.cli.loading import RopeOverride, load_model
from edge.apps.cli.options import MODEL_HELP, Group, Run, Source, expand
from edge.apps.serve.options import ServeOptions
from edge.engine.speculative.options import SpeculationOptions
from edge.errors import EdgeError
from edge.hub.built_in import BUILT_IN


@expand
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help=MODEL_HELP, show_default=False)
    ] = None,
    *,
    server: Annotated[ServeOptions, Group("Server")],
    source: Source,
    run: Run,
    rope_override: RopeOverride = None,
    speculation: Annotated[SpeculationOptions, Group("Model")],
) -> None:
    """Answer programs that speak OpenAI's or Anthropic's API, until SIGTERM or Ctrl-C."""
    named = models or [BUILT_IN.name]
    if len(named) > 1:
        raise typer.BadParameter(
            "a server has one model at present: start one for each", param_hint="'MODEL'"
        )
    _check_installed()

    from edge.apps.serve.running import address_of, keys_of, listen
    from edge.apps.serve.running import serve as serve_until_told
    from edge.apps.serve.state import Served

    keys = keys_of(server)
    listener = listen(server)  # before a model that takes long to load
    with (
        listener,
        load_model(named[0], source, run, rope_override, speculation, prefix_folder=server.folder) as loaded,
    ):
        say(f"{address_of(listener)} answers with {loaded.name}; Ctrl-C ends.", "Serving: ", "bold green")
        serve_until_told(Served(loaded, server), keys, listener)


def _check_installed() -> None:
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise EdgeError(
            f"The server needs the package '{error.name}': pip install 'minicpm-edge[serve]'."
        ) from None
