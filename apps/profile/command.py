"""`edge profile`: how fast a model is on this machine, why, and how fast it would be on another."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.apps.cli.options import MODEL_HELP, Group, Json, Out, expand, given_flags, refuse_beside
from edge.apps.cli.terminal import error_console, output_console, print_json
from edge.apps.profile.options import GuessOptions, PlanOptions
from edge.errors import EdgeError
from edge.measure.profile.options import ProfileOptions

if TYPE_CHECKING:
    from edge.measure.profile import Profile
    from edge.measure.profile.report import Report

_MODEL_HELP = f"{MODEL_HELP} With --compare: two files."


@expand
def profile(
    model: Annotated[list[str], typer.Argument(metavar="MODEL", help=_MODEL_HELP)],
    *,
    options: Annotated[ProfileOptions, Group("What to measure (lists by commas)")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two profiles, BEFORE and AFTER, instead of measuring.")
    ] = False,
    fail_above: Annotated[
        str | None,
        typer.Option(metavar="5%", help="With --compare: exit with 1 if a test became slower by more."),
    ] = None,
    guesses: Annotated[GuessOptions, Group("What guesses are worth (with --speculate)")],
    planned: Annotated[PlanOptions, Group("Planning, without a run (with --plan)")],
    adb: Annotated[
        Path | None,
        typer.Option(metavar="PROGRAM", help="Measure on an Android device, with this edge_bench for it."),
    ] = None,
    serial: Annotated[str | None, typer.Option(help="With --adb: which device.")] = None,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Print Markdown.")] = False,
    out: Out = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table of the results here.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with plots here (needs matplotlib).")
    ] = None,
) -> int:
    """Measure prefill and decode beside the machine's limits, compare two profiles, or plan without a run."""
    if as_json and as_markdown:
        raise typer.BadParameter("give either --json or --md", param_hint="'--md'")
    if compare and planned.plan:
        raise typer.BadParameter("give either --compare or --plan", param_hint="'--compare'")
    if len(model) != (2 if compare else 1):
        wanted = "two profiles, BEFORE and AFTER" if compare else "one model"
        raise typer.BadParameter(f"give {wanted}", param_hint="MODEL")
    if fail_above is not None and not compare:
        raise typer.BadParameter("belongs to --compare", param_hint="'--fail-above'")
    if compare:
        refuse_beside("--compare", "model", "fail_above", "as_json", "as_markdown")
        return _compare(Path(model[0]), Path(model[1]), fail_above, as_json, as_markdown)
    plans = {each.name for each in fields(PlanOptions)}
    if planned.plan:
        asked = ("quantize", "head", "kv_type", "depth", "prefill", "streams", "rows")
        refuse_beside("--plan", "model", *asked, "as_json", "as_markdown", *plans)
        if len(options.kv_type) > 1:
            raise typer.BadParameter("give one of them with --plan", param_hint="'--kv'")
        return _plan(model[0], options, planned, as_json, as_markdown)
    for name in sorted(plans & given_flags().keys()):
        raise typer.BadParameter("belongs to --plan", param_hint=f"'{given_flags()[name]}'")
    if "speculate" in given_flags():
        asked = ("quantize", "head", "threads", "executor", "attention", "kv_type", "activations")
        run = ("model", *asked, "generate", "repeat", "speculate", "prompts", "as_json", "as_markdown", "out")
        refuse_beside("--speculate", *run)
        return _guess(model[0], guesses, options, as_json, as_markdown, out)
    if guesses.prompts is not None:
        raise typer.BadParameter("belongs to --speculate", param_hint="'--prompts'")
    if serial is not None and adb is None:
        raise typer.BadParameter("belongs to --adb", param_hint="'--serial'")
    _check_outputs(out, csv, html)
    if adb is not None:
        from edge.measure.profile.adb import profile_on_android

        result = profile_on_android(model[0], options, adb, serial)
    else:
        result = _measure(model[0], options)
    _deliver(result, as_json, as_markdown, out, csv, html)
    return 0


def _check_outputs(out: Path | None, csv: Path | None, html: Path | None) -> None:
    """Refuse before minutes of measuring what would fail after them."""
    if html is not None:
        from edge.measure.profile.plots import require_matplotlib

        require_matplotlib()
    for path in (out, csv, html):
        if path is not None and not path.parent.is_dir():
            raise EdgeError(f"There is no folder '{path.parent}' for '{path.name}': make it first.")


def _measure(model: str, options: ProfileOptions) -> Profile:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from edge.measure.profile.run import profile as measure

    console = error_console()
    if not console.is_terminal:  # a log keeps a line of each measurement
        console.print(f"Opening {model}", soft_wrap=True)
        return measure(
            model,
            options,
            progress=lambda done, total, what: console.print(f"[{done + 1}/{total}] {what}", soft_wrap=True),
        )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("Opening", total=None)
        return measure(
            model,
            options,
            progress=lambda done, total, what: bar.update(
                task, completed=done, total=total, description=what
            ),
        )


def _deliver(
    result: Profile, as_json: bool, as_markdown: bool, out: Path | None, csv: Path | None, html: Path | None
) -> None:
    from edge.measure.profile.report import profile_report

    if csv is not None:
        from edge.measure.profile.export import to_csv

        _write(csv, to_csv(result))
    if html is not None:
        from edge.measure.profile.page import to_html

        _write(html, to_html(result))
    if out is not None:
        _write(out, json.dumps(result.to_json()) + "\n")
    if as_json:
        print_json(result.to_json())
    else:
        _print(profile_report(result), as_markdown)


def _print(report: Report, as_markdown: bool) -> None:
    from edge.apps.profile.view import print_report
    from edge.measure.profile.report import to_markdown

    if as_markdown:
        typer.echo(to_markdown(report), nl=False)
    else:
        print_report(report, output_console())


def _compare(before: Path, after: Path, fail_above: str | None, as_json: bool, as_markdown: bool) -> int:
    from edge.apps.profile.view import comparison_json
    from edge.measure.profile.compare import compare
    from edge.measure.profile.report import comparison_report
    from edge.measure.profile.schema import Profile

    limit = None if fail_above is None else _share(fail_above)
    old, new = Profile.load(before), Profile.load(after)
    found = compare(old, new)
    slower = [ratio for ratio in found.ratios if limit is not None and ratio.is_slower(limit)]
    if as_json:
        print_json(comparison_json(found, slower))
    else:
        remarks = (*old.machine.remarks, *new.machine.remarks)
        _print(comparison_report(found, slower, remarks), as_markdown)
    return 1 if slower else 0


def _plan(model: str, options: ProfileOptions, planned: PlanOptions, as_json: bool, as_markdown: bool) -> int:
    from edge.measure.profile.plan import parse_size, plan
    from edge.measure.profile.report import plan_report

    device = planned.planned_device()
    memory = None if planned.memory is None else parse_size(planned.memory)
    tests = {name: getattr(options, name) for name in ("depth", "prefill", "rows") if name in given_flags()}
    if tests and device is None:
        flag = given_flags()[next(iter(tests))]
        raise typer.BadParameter("needs --device or --bandwidth beside it", param_hint=f"'{flag}'")
    plans = plan(
        model,
        quantize=options.quantize,
        head=options.head,
        context=planned.context,
        kv_type=options.kv_type[0],
        memory=memory,
        device=device,
        streams=sorted(set(options.streams)),
        **tests,
    )
    if as_json:
        described = None if device is None else asdict(device)
        document = {"schema": 3, "model": model, "memory_bytes": memory}
        print_json({**document, "device": described, "plans": [each.to_json() for each in plans]})
    else:
        _print(plan_report(model, plans, memory, device), as_markdown)
    return 0


def _guess(
    model: str,
    guesses: GuessOptions,
    options: ProfileOptions,
    as_json: bool,
    as_markdown: bool,
    out: Path | None,
) -> int:
    from edge.measure.speculation import PROMPTS, profile_speculation, read_prompts
    from edge.measure.speculation_report import speculation_report

    prompts = PROMPTS if guesses.prompts is None else read_prompts(Path(guesses.prompts))
    several = ("quantize", "threads", "executor", "attention", "kv_type")
    for name in several:
        if len(getattr(options, name)) > 1:
            raise typer.BadParameter("give one with --speculate", param_hint=f"'{given_flags()[name]}'")
    _check_outputs(out, None, None)
    console = error_console()
    found = profile_speculation(
        model,
        guesses.speculate,
        prompts,
        max_new_tokens=options.generate if "generate" in given_flags() else 128,
        repeat=options.repeat if "repeat" in given_flags() else 3,
        progress=lambda done, total, what: console.print(
            f"[{done + 1}/{total}] {what}", soft_wrap=True, markup=False
        ),
        **{name: getattr(options, name)[0] for name in several},
        head=options.head,
        activations=options.activations,
    )
    if out is not None:
        _write(out, json.dumps(found.to_json()) + "\n")
    if as_json:
        print_json(found.to_json())
    else:
        _print(speculation_report(found), as_markdown)
    return 0


def _share(text: str) -> float:
    """0.05 of `5%` or `0.05`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise typer.BadParameter(f"'{text}' is not a share such as 5%", param_hint="'--fail-above'")
    return value


def _write(path: Path, text: str) -> None:
    from edge.formats.atomic import write_failure, write_file

    try:
        write_file(path, text.encode())
    except OSError as error:
        raise EdgeError(write_failure(path, error)) from None
