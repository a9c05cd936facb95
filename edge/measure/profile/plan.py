"""Planning without a run: what fits into a device's memory, and how fast it should be there.

A prediction, from the arithmetic of `edge.measure.profile.cost`: no device was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edge.config import KVChoice, KVType, ModelConfig
from edge.config.presets import preset
from edge.errors import EdgeError
from edge.executors.memory import workspace_bytes
from edge.executors.options import kv_beside
from edge.hub.resolve import RANDOM, open_model
from edge.measure.profile.cost import NetworkCost, Roofline
from edge.quant.scheme import SOURCE, QuantScheme

_BATCH = 256
_FLOAT_SHARE = 0.25  # float operations over int8 ones, where only int8 is known: as on AVX-512 and NEON


@dataclass(frozen=True)
class PlannedDevice:
    """What the prediction stands on. int8_tops: None leaves out prefill."""

    title: str
    bandwidth_gb_s: float
    int8_tops: float | None
    source: str


@dataclass(frozen=True)
class Plan:
    """Memory and predicted speed in one quantization (its full name); bytes and seconds.

    total_bytes: weights, KV cache at the context, and workspace. fits: None if no memory was given.
    longest_context: that fits, at most the model's own. decode_tokens_per_second: by depth. ttft_seconds: of
    a prompt that fills the context.
    """

    quantize: str
    context: int
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    total_bytes: int
    fits: bool | None
    longest_context: int | None
    decode_tokens_per_second: dict[int, float] | None
    prefill_tokens_per_second: float | None
    ttft_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan(
    model: str,
    *,
    quantize: Sequence[str | None] = (None,),
    head: str | None = None,
    context: int | None = None,
    kv_type: KVChoice = "auto",
    memory: int | None = None,
    device: PlannedDevice | None = None,
) -> list[Plan]:
    """Plans for `model`, one for each quantization (None: what it has, int4 for random weights).

    context: tokens, by default those the model was trained for. memory: bytes of the device. device: None
    leaves out the speed. Random weights and other quantizations than the model's own are planned from their
    shapes: nothing is made or converted for them. Raises EdgeError.
    """
    plans = []
    for name in quantize:
        config, cost, scheme = _network(model, name, head, kv_type)
        tokens = config.max_position_embeddings if context is None else context
        config.check_context(tokens)
        plans.append(_plan(config, cost, scheme, tokens, memory, device))
    return plans


def _network(
    model: str, quantize: str | None, head: str | None, asked: KVChoice
) -> tuple[ModelConfig, NetworkCost, QuantScheme]:
    is_random = model.startswith(RANDOM)
    if is_random:
        config, name = preset(model.removeprefix(RANDOM)), quantize or "int4"
    else:
        bundle = open_model(model)
        config, name = bundle.config, quantize or SOURCE
        if name == SOURCE:
            tensors = [(info.name, info.shape, info.scheme) for info in bundle.tensors.values()]
            largest = max(bundle.tensors.values(), key=lambda info: info.bytes)
            activations = bundle.activations or "int8"
            cost = NetworkCost.of(config, tensors, _kv_type(asked, activations), activations)
            return config, cost, largest.scheme
    scheme = QuantScheme.from_name(name)
    top = QuantScheme.chosen(head)
    if top is None and is_random:
        top = scheme.beside  # as `edge.checkpoints.synthetic` makes them
    return config, NetworkCost.planned(config, scheme, top, _kv_type(asked, "int8")), scheme


def _kv_type(asked: KVChoice, activations: str) -> KVType:
    return kv_beside(activations) if asked == "auto" else asked


def _plan(
    config: ModelConfig,
    cost: NetworkCost,
    scheme: QuantScheme,
    context: int,
    memory: int | None,
    device: PlannedDevice | None,
) -> Plan:
    workspace = workspace_bytes(config, _BATCH)
    total = cost.resident + context * cost.kv_row + workspace
    longest = None
    if memory is not None:
        room = (memory - cost.resident - workspace) // cost.kv_row
        longest = max(0, min(room, config.max_position_embeddings))
    empty = Plan(
        quantize=str(scheme),
        context=context,
        weights_bytes=cost.resident,
        kv_cache_bytes=context * cost.kv_row,
        workspace_bytes=workspace,
        total_bytes=total,
        fits=None if memory is None else total <= memory,
        longest_context=longest,
        decode_tokens_per_second=None,
        prefill_tokens_per_second=None,
        ttft_seconds=None,
    )
    if device is None:
        return empty
    # Where the arithmetic rate is unknown it is taken as no limit: then only decoding is predicted.
    int8 = device.int8_tops * 1e12 / 2 if device.int8_tops else float("inf")
    roofline = Roofline(device.bandwidth_gb_s * 1e9, int8, int8 * _FLOAT_SHARE)
    depths = sorted({0, context // 4, context // 2, context - 1})
    speeds = {depth: round(1 / cost.decode_seconds(depth, roofline), 2) for depth in depths}
    seconds = cost.prefill_seconds(context, 0, roofline) if device.int8_tops else None
    return replace(
        empty,
        decode_tokens_per_second=speeds,
        prefill_tokens_per_second=round(context / seconds, 2) if seconds else None,
        ttft_seconds=round(seconds, 4) if seconds else None,
    )


def parse_size(text: str) -> int:
    """Bytes of `8G`, `8GB`, `7.5GiB`, `512M`: powers of 1000, and of 1024 with an i. EdgeError for anything
    else.
    """
    number, unit = text.strip().lower(), 1
    number = number.removesuffix("b")
    base = 1000
    if number.endswith("i"):
        number, base = number[:-1], 1024
    for power, letter in enumerate("kmgt", start=1):
        if number.endswith(letter):
            number, unit = number[:-1], base**power
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise EdgeError(f"'{text}' is not a size; write for example 8G or 512M.")
    return size
