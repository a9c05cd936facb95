"""`edge export`: makes a folder for a phone or another runtime out of a model, and checks such folders."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.apps.cli.loading import keywords, naming_flags
from edge.apps.cli.options import MODEL_HELP, DryRun, Hub, Json, Out, expand, refuse_beside
from edge.apps.cli.terminal import convert_progress, output_console, print_json
from edge.export.options import ExportOptions
from edge.hub.options import HubOptions
from edge.system.options import options_of
from edge.system.units import format_bytes

if TYPE_CHECKING:
    from edge.export.check import CheckResult
    from edge.formats.artifact.folder import Artifact


@expand
def export(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)] = None,
    *,
    options: ExportOptions | None,
    out: Out = None,
    hub: Hub,
    dry_run: DryRun = False,
    check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Check an exported folder in its own runtime instead."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Make a folder that a phone or another runtime can run, or check one."""
    if check is not None:
        if model is not None or options is not None or out is not None:
            raise typer.BadParameter("stands alone, without MODEL, --to and --out", param_hint="'--check'")
        refuse_beside("--check", "as_json")
        return _check(check, as_json)
    if model is None:
        raise typer.BadParameter("give a model, or --check with a folder", param_hint="MODEL")
    if options is None:
        targets = options_of(ExportOptions)["target"].names
        raise typer.BadParameter(f"choose one of {', '.join(targets)}", param_hint="'--to'")
    if out is None and not dry_run:
        raise typer.BadParameter("give the folder to write, or --dry-run", param_hint="'--out'")
    return _export(model, options, out, hub, dry_run, as_json)


def _export(
    model: str,
    options: ExportOptions,
    out: Path | None,
    hub: HubOptions,
    is_dry_run: bool,
    as_json: bool,
) -> int:
    from edge.export.artifact import dry_run, export_model, refuse_existing
    from edge.export.source import open_source

    if out is not None:
        refuse_existing(out)  # before minutes of quantizing
    found = keywords(hub)
    with naming_flags("--context"):
        if is_dry_run or out is None:
            with convert_progress(model) as progress:
                document = dry_run(model, options, progress, **found)
            _print_plan(document, as_json)
            return 0
        with convert_progress(model) as progress:
            source = open_source(model, options, progress, **found)
        with convert_progress(f"to {options.target}", "Writing") as progress:
            artifact = export_model(source, options, out, progress)
    _print_artifact(artifact, as_json)
    return 0


def _check(folder: Path, as_json: bool) -> int:
    from edge.export.artifact import check_artifact

    result = check_artifact(folder)
    if as_json:
        print_json({"artifact": str(folder), **result.to_json()})
    else:
        _print_check(folder, result)
    return 0 if result.passed else 1


def _print_plan(document: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    console = output_console()
    files, memory = document["files"], document["run_memory"]
    assert isinstance(files, dict) and isinstance(memory, dict)
    console.print(f"{document['source']} to {document['target']} ({document['flavour']})", style="bold")
    for name, size in {**files, "tokenizer, template, reference": document["small_files"]}.items():
        console.print(f"  {format_bytes(size):>9}  {name}")
    console.print(f"Size of the model's files: {document['formula']}.", soft_wrap=True)
    parts = " + ".join(f"{name} {format_bytes(size)}" for name, size in memory.items())
    console.print(
        f"Memory to run at {document['context']} tokens: {format_bytes(sum(memory.values()))} = {parts}"
    )
    console.print(f"Memory to export: up to {_bytes(document['export_memory'])} beside mapped files")
    operators = document["operators"]
    assert isinstance(operators, dict)
    console.print("Operators: " + ", ".join(f"{name} v{version}" for name, version in operators.items()))
    notes = document["notes"]
    assert isinstance(notes, list)
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)


def _bytes(size: object) -> str:
    assert isinstance(size, int)
    return format_bytes(size)


def _print_artifact(artifact: Artifact, as_json: bool) -> None:
    manifest = artifact.manifest
    if as_json:
        document = {
            "artifact": str(artifact.path),
            "target": manifest.target,
            "flavour": manifest.flavour,
            "bytes": manifest.total_bytes,
            "files": {name: entry.bytes for name, entry in manifest.files.items()},
        }
        print_json(document)
        return
    console = output_console()
    console.print(
        f"Wrote {artifact.path} ({format_bytes(manifest.total_bytes)}) for {manifest.runtime}.",
        soft_wrap=True,
    )
    console.print(f"Check it with: edge export --check {shlex.quote(str(artifact.path))}", soft_wrap=True)


def _print_check(folder: Path, result: CheckResult) -> None:
    console = output_console()
    console.print(
        f"{folder}: {'passed' if result.passed else 'FAILED'} in {result.runtime} {result.version}",
        style="green" if result.passed else "red",
        soft_wrap=True,
    )
    console.print(
        f"KL divergence {result.divergence:.2e} (limit {result.limit:.0e}), top-1 agreement "
        f"{result.agreement:.0%}, largest error of a logit {result.largest_error:.3g}"
    )
    for remark in result.remarks:
        console.print(remark, style="yellow", soft_wrap=True)
