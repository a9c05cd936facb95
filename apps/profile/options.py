"""The options of `edge profile`: what to measure, and what to plan for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import typer

from edge.apps.cli.options import MODEL_HELP, KVType

if TYPE_CHECKING:
    from edge.config import KVType as KVName
    from edge.config.attention import AttentionMode
    from edge.measure.profile.options import ProfileOptions
    from edge.measure.profile.plan import PlannedDevice

MODEL_OR_FILES = f"{MODEL_HELP} With --compare: two files."


@dataclass(frozen=True)
class TestOptions:
    """Which configurations to measure; lists are separated by commas."""

    PANEL: ClassVar = "What to measure (lists by commas)"

    executor: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What runs the network: native, onnx, executorch, torch; by default native, or the runtime "
            "that a folder was exported for.",
        ),
    ] = None
    quantize: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="int4, int8-g64, ternary, f16; by default what the model has."),
    ] = None
    head: Annotated[str | None, typer.Option(help="Quantization of embedding and output head.")] = None
    threads: Annotated[
        str | None, typer.Option(metavar="LIST", help="CPU threads; by default the performance cores.")
    ] = None
    prompt: Annotated[str, typer.Option(metavar="LIST", help="Tokens of a prefill, 0 for none.")] = "512"
    generate: Annotated[int, typer.Option(min=0, help="Tokens of a decode, 0 for none.")] = 64
    depth: Annotated[
        str, typer.Option(metavar="LIST", help="Tokens that are in the KV cache before each test.")
    ] = "0"
    attention: Annotated[str, typer.Option(metavar="LIST", help="Attention: dense, sparse.")] = "dense"
    kv_type: Annotated[str, typer.Option(metavar="LIST", help="Number types of the KV cache.")] = (
        KVType.float16.value
    )
    repeat: Annotated[int, typer.Option(min=1, help="Measurements of each test.")] = 5
    fill: Annotated[
        str, typer.Option(help="How depths are reached: prefill, or synthetic (repeated rows).")
    ] = "prefill"
    ops: Annotated[bool, typer.Option("--ops", help="Also measure every operator of every layer.")] = False

    @property
    def quantizations(self) -> tuple[str | None, ...]:
        """Names of `--quantize`; None for what the model has."""
        if self.quantize is None:
            return (None,)
        return _names(self.quantize)

    @property
    def kv_types(self) -> tuple[KVName, ...]:
        """Names of `--kv-type`."""
        return tuple(_known(name, KVType, "--kv-type") for name in _names(self.kv_type))

    def profile_options(self, activations: str) -> ProfileOptions:
        """The same for `edge.measure.profile`."""
        from edge.measure.profile.options import ProfileOptions

        return ProfileOptions(
            executor=(None,) if self.executor is None else _names(self.executor),
            quantize=self.quantizations,
            head=self.head,
            threads=(None,) if self.threads is None else _numbers(self.threads, "--threads"),
            prompt=_numbers(self.prompt, "--prompt"),
            generate=self.generate,
            depth=_numbers(self.depth, "--depth"),
            attention=cast("tuple[AttentionMode, ...]", _names(self.attention)),
            kv_type=self.kv_types,
            activations=activations,
            fill=self.fill,
            repeat=self.repeat,
            operators=self.ops,
        )


@dataclass(frozen=True)
class PlanOptions:
    """A plan for a device, without a run."""

    PANEL: ClassVar = "Planning, without a run"

    plan: Annotated[bool, typer.Option("--plan", help="Predict memory and speed from the shapes alone.")] = (
        False
    )
    context: Annotated[
        int | None,
        typer.Option(min=1, help="With --plan: tokens of the context; by default the trained ones."),
    ] = None
    memory: Annotated[str | None, typer.Option(metavar="8G", help="With --plan: memory of the device.")] = (
        None
    )
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --plan: a known device; an unknown name lists them."),
    ] = None
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/s", min=0.001, help="With --plan: memory bandwidth.")
    ] = None
    int8_tops: Annotated[
        float | None, typer.Option(metavar="TOPS", min=0.001, help="With --plan: dense int8 operations.")
    ] = None

    def planned_device(self) -> PlannedDevice | None:
        """The device that was named or described; None if neither."""
        from edge.measure.profile.devices import device
        from edge.measure.profile.plan import PlannedDevice

        if self.device is not None:
            known = device(self.device)
            bandwidth = self.bandwidth or known.bandwidth_gb_s
            return PlannedDevice(known.title, bandwidth, self.int8_tops or known.int8_tops, known.source)
        if self.bandwidth is not None:
            return PlannedDevice("the device described", self.bandwidth, self.int8_tops, "given")
        if self.int8_tops is not None:
            raise typer.BadParameter("needs --bandwidth or --device beside it", param_hint="'--int8-tops'")
        return None


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in _names(text)))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not a list of whole numbers such as 512,4096", param_hint=f"'{flag}'"
        ) from None


def _known(name: str, kind: Any, flag: str) -> Any:
    names = [each.value for each in kind]
    if name not in names:
        raise typer.BadParameter(f"'{name}' is not one of {', '.join(names)}", param_hint=f"'{flag}'")
    return name
