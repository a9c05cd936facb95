"""Planning without a run: what fits into a device's memory, and how fast it should be there.

A prediction, from the arithmetic of `edge.measure.profile.cost`: no device was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from edge.config import KVChoice, KVType, ModelConfig
from edge.config.presets import preset
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import EdgeError
from edge.executors.memory import workspace_bytes
from edge.executors.options import kv_beside
from edge.hub.resolve import RANDOM, open_model
from edge.measure.profile.cost import Limit, NetworkCost, Part, Roofline, binding, pass_seconds
from edge.measure.profile.cpu import Cpu, CpuModel
from edge.measure.profile.options import Case, Test
from edge.quant.scheme import SOURCE, QuantScheme

_BATCH = 256
_ARM_KV: KVType = "float16"  # what `auto` stands for on the CPUs of devices
_FLOAT_SHARE = 0.25  # float operations over int8 ones, where only int8 is known: as on AVX-512 and NEON


@dataclass(frozen=True)
class PlannedDevice:
    """What the prediction stands on. int8_tops: None leaves out prefill. cpu: its cores, which then count
    instead of int8_tops.
    """

    title: str
    bandwidth_gb_s: float
    int8_tops: float | None
    source: str
    cpu: Cpu | None = None


@dataclass(frozen=True)
class PlannedSpeed:
    """A prediction, as a row of a profile.

    streams: sequences in one decode step. seconds: of a prefill until its first token, of one decode step, of
    a verification of `tokens` rows. limit: what most of that time goes to.
    """

    test: Test
    tokens: int
    depth: int
    streams: int
    tokens_per_second: float
    seconds: float
    limit: Limit


@dataclass(frozen=True)
class Plan:
    """Memory and predicted speed in one quantization (its full name); bytes and seconds.

    total_bytes: weights, KV cache at the context (of every stream), and workspace. fits: None if no memory
    was given. longest_context: that fits, at most the model's own. predicted: none without a device.
    """

    quantize: str
    kv_type: KVType
    context: int
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    total_bytes: int
    fits: bool | None
    longest_context: int | None
    predicted: tuple[PlannedSpeed, ...]

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
    depth: Sequence[int] | None = None,
    prefill: Sequence[int] | None = None,
    streams: Sequence[int] = (1,),
    rows: Sequence[int] = (),
) -> list[Plan]:
    """Plans for `model`, one for each quantization (None: what it has, int4 for random weights).

    context: tokens, by default those the model was trained for. memory: bytes of the device. device: None
    leaves out the speed. depth: for which it is predicted, by default four of the context. prefill: their
    lengths at each depth, by default one of the whole context. streams: sequences that decode in one pass;
    the memory is that of the most. rows: of one sequence that are verified in one pass. Random weights and
    other quantizations than the model's own are planned from their shapes: nothing is made or converted for
    them. Raises EdgeError.
    """
    plans = []
    for name in quantize:
        own = device is None or device.cpu is None
        network = _network(model, name, head, kv_type if own or kv_type != "auto" else _ARM_KV)
        tokens = network.config.longest_context if context is None else context
        network.config.check_context(tokens)
        tests = _tests(tokens, depth, prefill, streams, rows)
        plans.append(_plan(network, tokens, max(streams), memory, device, tests))
    return plans


@dataclass(frozen=True)
class _Network:
    """scheme: of most weights; head: of the head."""

    config: ModelConfig
    cost: NetworkCost
    kv_type: KVType
    scheme: QuantScheme
    head: QuantScheme


def _network(model: str, quantize: str | None, head: str | None, asked: KVChoice) -> _Network:
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
            kv_type = _kv_type(asked, activations)
            cost = NetworkCost.of(config, tensors, kv_type, activations)
            last = bundle.tensors[EMBEDDING if config.tie_word_embeddings else HEAD]
            return _Network(config, cost, kv_type, largest.scheme, last.scheme)
    scheme = QuantScheme.from_name(name)
    top = QuantScheme.chosen(head)
    if top is None and is_random:
        top = scheme.beside  # as `edge.checkpoints.synthetic` makes them
    kv_type = _kv_type(asked, "int8")
    return _Network(config, NetworkCost.planned(config, scheme, top, kv_type), kv_type, scheme, top or scheme)


def _kv_type(asked: KVChoice, activations: str) -> KVType:
    return kv_beside(activations) if asked == "auto" else asked


def _tests(
    context: int,
    depth: Sequence[int] | None,
    prefill: Sequence[int] | None,
    streams: Sequence[int],
    rows: Sequence[int],
) -> list[Case]:
    """The speeds to predict; EdgeError for one that was asked for and does not fit."""
    if depth is None:
        depths, lengths = sorted({0, context // 4, context // 2, context - 1}), prefill or (context,)
        tests = [Case("prefill", tokens, 0) for tokens in lengths]
    else:
        depths = list(depth)
        tests = [Case("prefill", tokens, each) for each in depth for tokens in prefill or (context - each,)]
    tests += [Case("decode", 1, each, count) for each in depths for count in streams]
    tests += [
        Case("verify", n, each) for each in depths for n in rows if depth is not None or each + n <= context
    ]
    for test, tokens, each, _ in tests:
        if each + tokens > context:
            what = "verification" if test == "verify" else test
            raise EdgeError(
                f"A {what} of {tokens} at depth {each} does not fit into a context of {context} tokens: give "
                "a larger --context, or less of both."
            )
    return [each for each in tests if each.tokens > 0]


def _plan(
    network: _Network,
    context: int,
    streams: int,
    memory: int | None,
    device: PlannedDevice | None,
    tests: Sequence[Case],
) -> Plan:
    config, cost = network.config, network.cost
    workspace, row = workspace_bytes(config, _BATCH), streams * cost.kv_row
    total = cost.resident + context * row + workspace
    longest = None
    if memory is not None:
        room = (memory - cost.resident - workspace) // row
        longest = max(0, min(room, config.longest_context))
    return Plan(
        quantize=str(network.scheme),
        kv_type=network.kv_type,
        context=context,
        weights_bytes=cost.resident,
        kv_cache_bytes=context * row,
        workspace_bytes=workspace,
        total_bytes=total,
        fits=None if memory is None else total <= memory,
        longest_context=longest,
        predicted=() if device is None else _predicted(network, device, tests),
    )


def _predicted(network: _Network, device: PlannedDevice, tests: Sequence[Case]) -> tuple[PlannedSpeed, ...]:
    parts_of, speeds = _parts(network, device), []
    for case in tests:
        if (case.test != "decode" or case.streams > 1) and device.cpu is None and device.int8_tops is None:
            continue
        parts = parts_of(case)
        seconds = pass_seconds(parts)
        speed = PlannedSpeed(*case, round(case.total / seconds, 2), round(seconds, 6), binding(parts))
        speeds.append(speed)
    return tuple(speeds)


def _parts(network: _Network, device: PlannedDevice) -> Callable[[Case], tuple[Part, ...]]:
    """The parts of a test's pass on the device: of its cores where they are known, else of its limits."""
    cost, read_bytes = network.cost, device.bandwidth_gb_s * 1e9
    prefill: Callable[[int, int], tuple[Part, ...]]
    decode: Callable[..., tuple[Part, ...]]
    if device.cpu is not None:
        model = CpuModel(
            cost=cost,
            config=network.config,
            kv_type=network.kv_type,
            body=network.scheme,
            head=network.head,
            cpu=device.cpu,
            read_bytes=read_bytes,
            batch=_BATCH,
        )
        prefill, decode = model.prefill_parts, model.decode_parts
    else:
        # Where the arithmetic rate is unknown it is taken as no limit: then only single tokens are predicted.
        int8 = device.int8_tops * 1e12 / 2 if device.int8_tops else float("inf")
        roofline = Roofline(read_bytes, int8, int8 * _FLOAT_SHARE)
        prefill = partial(cost.prefill_parts, roofline=roofline)
        decode = partial(cost.decode_parts, roofline=roofline)

    def parts(case: Case) -> tuple[Part, ...]:
        if case.test == "prefill":
            return prefill(case.tokens, case.depth)
        return decode(case.depth, streams=case.streams, rows=case.tokens)

    return parts


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
