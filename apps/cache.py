"""`edge cache`: the converted models on this machine."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from edge.apps.cli.options import Json, expand
from edge.apps.cli.terminal import output_console, print_json
from edge.system.units import format_bytes

app = typer.Typer(
    help="Models that were converted before and are kept for a fast start.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command("list")
@expand
def list_models(as_json: Json = False) -> None:
    """List the converted models, newest first."""
    from rich.table import Table

    from edge.hub.store import cached_models
    from edge.system.paths import cache_folder

    entries = cached_models()
    if as_json:
        print_json({"folder": str(cache_folder()), "models": [_facts(entry) for entry in entries]})
        return
    console = output_console()
    if not entries:
        console.print(f"The cache in {cache_folder()} is empty.", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Key", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Converted", no_wrap=True)
    table.add_column("Quantization", no_wrap=True)
    table.add_column("From", no_wrap=True, overflow="ellipsis")
    for entry in entries:
        when = datetime.fromtimestamp(entry.created).strftime("%Y-%m-%d %H:%M")
        quantization = ", ".join(entry.quantization)
        table.add_row(entry.name, format_bytes(entry.bytes), when, quantization, entry.source)
    console.print(table)
    total = format_bytes(sum(entry.bytes for entry in entries))
    console.print(f"{len(entries)} in {cache_folder()}, {total}", style="dim", soft_wrap=True)


@app.command("remove")
@expand
def remove_models(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Its key, or the beginning of it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all of them.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a converted model, or all of them; the next use converts again."""
    from edge.hub.store import remove_cached

    if (key is None) == (not everything):
        raise typer.BadParameter("give either one key or --all", param_hint="KEY")
    removed = remove_cached(key)
    if as_json:
        print_json({"removed": [_facts(entry) for entry in removed]})
        return
    console = output_console()
    for entry in removed:
        console.print(f"Removed {entry.name} ({format_bytes(entry.bytes)}).", soft_wrap=True)
    if not removed:
        console.print("There is nothing to remove.")


def _facts(entry: Any) -> dict[str, Any]:
    return {
        "key": entry.name,
        "path": str(entry.path),
        "source": entry.source,
        "quantization": list(entry.quantization),
        "bytes": entry.bytes,
        "created": entry.created,
    }
