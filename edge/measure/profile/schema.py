"""The result of a profile: frozen dataclasses and their JSON form, which docs/profile.md describes.

`SCHEMA` grows when a field changes its meaning or goes away. Reading is strict: an unknown, missing or
mistyped field is a ProfileError that names it.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edge.errors import EdgeError
from edge.formats.guarded_json import parse_json
from edge.measure.profile.options import Case, Test

SCHEMA = 5
T = TypeVar("T")


class ProfileError(EdgeError):
    """A profile can't be measured, read or compared."""


@dataclass(frozen=True)
class Rate:
    """Tokens per second. median, min, max: over the repeats. p50, p90, p99: the rate that this share of the
    single tokens reach at least (decode; of a prefill, of the repeats).
    """

    median: float
    min: float
    max: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Memory:
    """Bytes of a test that are known by name; the rest of its peak is the interpreter and libraries."""

    weights: int
    kv_cache: int
    workspace: int


@dataclass(frozen=True)
class Operator:
    """One operator in one pass, or one decode step: the median over the passes.

    layer: -1 outside the layers. kernel: of a linear operator. bytes: weights and cache
    rows it must move. operations: multiply-adds. limit: the nearer limit, `memory` or the arithmetic
    (`edge.measure.profile.cost.Arithmetic`); empty for an operator that has neither bytes nor operations of
    its own, and in documents before schema 4. limit_share: the time that this limit needs, over `seconds`.
    """

    operation: str
    layer: int
    kernel: str
    seconds: float
    bytes: int
    operations: int
    limit: str
    limit_share: float


@dataclass(frozen=True)
class Row:
    """One test of one configuration; every `_per_token` is for the tokens of this test at this depth.

    model: as it was named. quantize: of most of the weights, as `int4-g32-min`. depth: tokens in the cache
    of each sequence before. streams: sequences that decode in one pass, each `tokens`; 1 in other tests.
    rows: of a verification, whose pass takes the median `seconds`; both None in other tests.
    ttft_seconds: time to the first sampled token of a prompt, None in other tests. tokens_per_second,
    samples: of all streams together; samples: of every repeat. latency_percentiles: seconds of the single
    passes of a decode or verification, percentiles 0 to 100 (empty for a prefill). operations_per_token:
    multiply-adds. bandwidth_share: weight and KV bytes moved per second over the read bandwidth.
    compute_share: time at the arithmetic peaks over the time taken. joules_per_token: None where the machine
    does not tell.
    """

    model: str
    executor: str
    quantize: str
    threads: int
    attention: str
    kv_type: str
    activations: str
    tier: str
    fill: str
    test: str
    tokens: int
    depth: int
    streams: int
    rows: int | None
    seconds: float | None
    ttft_seconds: float | None
    tokens_per_second: Rate
    samples: tuple[float, ...]
    latency_percentiles: tuple[float, ...]
    weight_bytes_per_token: float
    kv_bytes_per_token: float
    operations_per_token: float
    bandwidth_share: float
    compute_share: float
    load_seconds: float
    peak_memory_bytes: int
    memory: Memory
    joules_per_token: float | None
    operators: tuple[Operator, ...]

    def latency_ms(self, percent: int) -> float | None:
        """Milliseconds that so many percent of the single passes take at most; None for a prefill."""
        return 1000 * self.latency_percentiles[percent] if self.latency_percentiles else None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows the same test; the executor's tier may differ."""
        return (
            *(self.model, self.executor, self.quantize, self.threads, self.attention, self.kv_type),
            *(self.activations, self.fill, *self.case),
        )

    @property
    def case(self) -> Case:
        """What was measured of the configuration."""
        return Case(cast(Test, self.test), self.tokens, self.depth, self.streams)


@dataclass(frozen=True)
class LimitSamples:
    """Every measurement of the limits during the run, in order; empty in documents before schema 4."""

    read_bandwidth_gb_s: tuple[float, ...]
    int8_tops: tuple[float, ...]
    float_tflops: tuple[float, ...]


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most with so many threads: the best of `samples` (before schema 4 the
    median).
    """

    threads: int
    read_bandwidth_gb_s: float
    int8_tops: float
    float_tflops: float
    samples: LimitSamples


@dataclass(frozen=True)
class MachineFacts:
    """The machine and its state; what it does not tell is None.

    read_bandwidth_gb_s, int8_tops, float_tflops: with the most threads that were measured; a multiply-add is
    two operations. load: the average number of running processes in the minute before. other_cpu_share: share
    of all CPU time that others used during the run, the hypervisor's included. clock_mhz,
    temperature_celsius: at the start and at the end. noisy, throttled: with `remarks` that say why.
    """

    system: str
    cpu: str
    cores: int
    memory_bytes: int | None
    huge_pages: str | None
    read_bandwidth_gb_s: float
    int8_tops: float
    float_tflops: float
    limits: tuple[Limits, ...]
    load: float | None
    other_cpu_share: float | None
    clock_mhz: tuple[float, ...]
    temperature_celsius: tuple[float, ...]
    noisy: bool
    throttled: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """Everything that one run measured. created: UTC, ISO 8601."""

    schema: int
    program: str
    created: str
    repeat: int
    machine: MachineFacts
    results: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_json(cls, data: Any) -> Profile:
        """Inverse of `to_json`; raises ProfileError."""
        return _read(cls, _upgraded(data), "the profile")

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a file that `--out` or `--json` wrote: the document is its last line, or all of it."""
        try:
            text = Path(path).read_bytes().strip()
        except OSError as error:
            raise ProfileError(f"Cannot read the profile '{path}': {error.strerror or error}.") from None
        if not text.startswith(b"{\n"):
            text = text.rpartition(b"\n")[2]
        data = parse_json(text, path, ProfileError, "name a file that `edge profile --json` wrote")
        try:
            return cls.from_json(data)
        except ProfileError as error:
            raise ProfileError(f"'{path}' is not a profile: {error}") from None


def _upgraded(data: Any) -> Any:
    """The document in today's schema, if it is one of an earlier schema. What is malformed stays so."""
    if not isinstance(data, Mapping) or data.get("schema") in (None, SCHEMA):
        return data
    if data["schema"] not in range(1, SCHEMA):
        raise ProfileError(
            f"The profile has schema {data['schema']!r}, but this program reads 1 to {SCHEMA}: measure again."
        )
    rows, machine, upgraded = data.get("results"), data.get("machine"), _with_streams
    if data["schema"] < 4:
        machine, upgraded = _upgraded_machine(machine), lambda row: _with_streams(_upgraded_row(row))
    if isinstance(rows, list):
        rows = [upgraded(row) if isinstance(row, Mapping) else row for row in rows]
    return {**data, "schema": SCHEMA, "machine": machine, "results": rows}


def _with_streams(row: Mapping[str, Any]) -> dict[str, Any]:
    """Up to schema 4 one sequence decoded, and nothing was verified."""
    return {"streams": 1, "rows": None, "seconds": None, **row}


def _upgraded_machine(machine: Any) -> Any:
    """Up to schema 3 the single measurements of the limits were not kept."""
    if not isinstance(machine, Mapping) or not isinstance(machine.get("limits"), list):
        return machine
    samples: dict[str, Any] = {field.name: [] for field in fields(LimitSamples)}
    limits = [
        {**each, "samples": samples} if isinstance(each, Mapping) else each for each in machine["limits"]
    ]
    return {**machine, "limits": limits}


def _upgraded_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """In schema 1 `kernel` of an operator was `path`; up to 2 `quantize` was the kind, `group` beside it; up
    to 3 an operator did not name its limit.
    """
    found = dict(row)
    group, kind, operators = (found.get(name) for name in ("group", "quantize", "operators"))
    if isinstance(kind, str) and isinstance(group, int):
        name = kind.removesuffix("-min")
        groups = "" if name in ("f16", "f32") else f"-g{group}" if group else "-row"
        found["quantize"] = name + groups + kind.removeprefix(name)
        del found["group"]
    if isinstance(operators, list):
        found["operators"] = [
            {("kernel" if name == "path" else name): value for name, value in each.items()} | {"limit": ""}
            if isinstance(each, Mapping)
            else each
            for each in operators
        ]
    return found


def _read(kind: type[T], data: Any, where: str) -> T:
    """A dataclass from a JSON object, field by field."""
    if not isinstance(data, Mapping):
        raise ProfileError(f"{where} must be a JSON object, got {data!r:.40}.")
    hints, names = get_type_hints(kind), [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in data:
        if name not in names:
            raise ProfileError(f"{where} has an unknown field '{name}'.")
    for name in names:
        if name not in data:
            raise ProfileError(f"{where} has no field '{name}'.")
    return kind(**{name: _value(hints[name], data[name], f"'{name}' of {where}") for name in names})


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _value(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ProfileError(f"{where} must be a list, got {value!r:.40}.")
        return tuple(_value(arguments[0], item, f"entry {i} of {where}") for i, item in enumerate(value))
    if is_dataclass(kind):
        return _read(kind, value, where)  # type: ignore[arg-type]
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise ProfileError(f"{where} must be {kind.__name__}, got {value!r:.40}.")
    return kind(value)
