"""Command-line options that several commands share, each defined once.

A command takes a whole group as one parameter (`model: ModelOptions`); `expand` shows typer its fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import wraps
from typing import Annotated, Any, ClassVar, get_type_hints

import typer

from edge.errors import EdgeError
from edge.hub.names import DEFAULT_MODEL

MODEL_HELP = (
    f"{DEFAULT_MODEL}, a GGUF file, a Hugging Face folder, a bundle, a folder of edge export, "
    "a hub id (openbmb/MiniCPM4-0.5B), or random weights of a known shape (random:minicpm4-0.5b)."
)


@dataclass
class Debugging:
    """The object of typer's context. wanted: whether the user asked for tracebacks."""

    wanted: bool = False


def set_debug(context: typer.Context, wanted: bool) -> None:
    """Typer's callback of `--debug`, which may stand before or after the command."""
    context.obj.wanted |= wanted


Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on the last line.")]
_Debug = Annotated[bool, typer.Option("--debug", callback=set_debug, help="Show the traceback of an error.")]


class Activations(str, Enum):
    """Names of `--activations`."""

    int8 = "int8"
    float32 = "float32"


class KVType(str, Enum):
    """Names of `--kv`."""

    float16 = "float16"
    float32 = "float32"
    int8 = "int8"


class AttentionName(str, Enum):
    """Names of `--attention`."""

    auto = "auto"
    dense = "dense"
    sparse = "sparse"


def known_executor(name: str | None) -> str | None:
    """Typer's callback of `--executor`: refuses what is not there."""
    from edge.executors.registry import EXECUTORS

    if name is not None and EXECUTORS.find(name) is None:
        raise typer.BadParameter(f"'{name}' is not one of {', '.join(EXECUTORS)}")
    return name


@dataclass(frozen=True)
class SourceOptions:
    """Which weights to open, and how to quantize them."""

    PANEL: ClassVar = "Model"

    quantize: Annotated[
        str | None,
        typer.Option(help="Quantize to this; by default what the file has, int4 for float files."),
    ] = None
    head: Annotated[
        str | None,
        typer.Option(help="Quantization of embedding and output head."),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a hub model."),
    ] = None
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Never use the network."),
    ] = False
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Recompute the checksums of the converted model."),
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `edge.hub.resolve.open_model` and `edge.load`."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class RunOptions:
    """How to run a model."""

    PANEL: ClassVar = "Model"

    context: Annotated[
        int | None,
        typer.Option(min=1, help="Longest conversation in tokens; by default the trained one."),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="CPU threads; by default the performance cores."),
    ] = None
    mmap: Annotated[
        bool | None,
        typer.Option(
            "--mmap/--no-mmap",
            help="Read the weights' mapped file when it is used, or copy it; by default what is fast.",
            show_default=False,
        ),
    ] = None
    activations: Annotated[
        Activations,
        typer.Option(help="Arithmetic of the inputs of matrices; float32 is exact and slower."),
    ] = Activations.int8
    kv: Annotated[
        KVType,
        typer.Option(help="Number type of the KV cache; int8 takes half the memory and time of float16."),
    ] = KVType.float16
    attention: Annotated[
        AttentionName,
        typer.Option(help="InfLLM-V2 sparse attention beyond the dense length; auto: if the model says so."),
    ] = AttentionName.auto
    rope_override: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='Go beyond the trained context knowingly, e.g. \'{"rope_type": "yarn", "factor": 4}\'.',
        ),
    ] = None
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=known_executor,
            help="What runs the network: native, onnx, executorch or torch (the slow reference, exact in "
            "float32); by default native, or the runtime that a folder was exported for.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `edge.load`."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {"kv_type" if name == "kv" else name: value for name, value in values.items()}


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; what is not given is the model's own setting, or else the default."""

    PANEL: ClassVar = "Sampling"

    temperature: Annotated[
        float | None,
        typer.Option(help="0 always takes the likeliest token."),
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens, 0 for all.")] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Keep the likeliest tokens up to this total probability."),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(help="Drop tokens below this share of the best one's probability."),
    ] = None
    typical: Annotated[
        float | None,
        typer.Option(help="Locally typical sampling up to this total probability."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1 discourages every token seen before."),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        typer.Option(help="Subtracted per earlier occurrence."),
    ] = None
    presence_penalty: Annotated[
        float | None,
        typer.Option(help="Subtracted once from tokens that occurred."),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=VALUE",
            help="Add VALUE to the logit of a token; repeatable.",
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None
    logprobs: Annotated[
        int | None,
        typer.Option(help="Report log-probabilities of this many best tokens (with --json)."),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End the answer at this text; repeatable."),
    ] = None
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.")] = None

    def settings(self) -> dict[str, Any]:
        """What was given, under its names in `edge.engine.settings`; typer.BadParameter for a value out of
        range.
        """
        from edge.engine.settings import merge_settings

        renamed = {"typical": "typical_p", "max_tokens": "max_new_tokens"}
        given: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or value == []:
                continue
            name = renamed.get(field.name, field.name)
            given[name] = _logit_bias(value) if name == "logit_bias" else value
            try:
                merge_settings(flags={name: given[name]})
            except EdgeError as error:
                flag = "--" + field.name.replace("_", "-")
                raise typer.BadParameter(str(error), param_hint=f"'{flag}'") from None
        return given


def expand(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let typer see the fields of dataclass parameters as options of their own, and add `--debug`."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _field_parameters(hints[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    parameters.append(
        inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    )

    @wraps(command)
    def run(debug: bool, **values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return command(**values)

    del run.__wrapped__  # typer would follow it to the signature that it should not see
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _field_parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in fields(group):
        for info in hints[field.name].__metadata__:
            info.rich_help_panel = group.PANEL
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
        )
    return parameters


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _logit_bias(given: list[str]) -> dict[int, float]:
    bias = {}
    for item in given:
        token, _, value = item.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise typer.BadParameter(
                f"'{item}' is not ID=VALUE, for example 42=-5.", param_hint="'--logit-bias'"
            ) from None
    return bias
