"""The whole run: opens every configuration, interleaves the repeats, and makes rows of what was measured."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge import __version__
from edge.config import KVType, SparseConfig
from edge.config.attention import AttentionMode
from edge.config.tensors import EMBEDDING, HEAD
from edge.executors.native import library as native
from edge.executors.opening import activations_of, find_executor, kv_type_of, refuse_ignored
from edge.executors.options import RunOptions
from edge.executors.registry import EXECUTORS, ExecutorSpec
from edge.formats.model_files import ModelFiles
from edge.hub.resolve import open_model
from edge.measure.profile import machine
from edge.measure.profile.cost import NetworkCost, Roofline
from edge.measure.profile.limits import best_of, limits_of, variation_remarks
from edge.measure.profile.measure import Measured
from edge.measure.profile.operators import summarise
from edge.measure.profile.options import Case, ProfileOptions
from edge.measure.profile.roofline import RooflineProbe
from edge.measure.profile.room import check_room
from edge.measure.profile.schema import SCHEMA, MachineFacts, Memory, Profile, ProfileError, Rate, Row
from edge.measure.profile.worker import Ready, Setup, Worker
from edge.quant.scheme import QuantScheme

Progress = Callable[[int, int, str], None]


@dataclass
class _Configuration:
    """One executor with its settings, its process, and what was measured with it so far."""

    model: str
    executor: str
    attention: str
    kv_type: KVType
    files: ModelFiles
    cost: NetworkCost
    worker: Worker
    measured: dict[Case, list[Measured]] = field(default_factory=lambda: defaultdict(list))
    passes: dict[Case, list[Any]] = field(default_factory=dict)


def profile(
    model: str | Path, options: ProfileOptions | None = None, *, progress: Progress | None = None
) -> Profile:
    """Measure `model` (a name as for `edge.load`) on this machine.

    options: by default ProfileOptions(). progress: called before every measurement with (done, total, what).
    Raises EdgeError: for a context that the model was not made for, for memory that is not there, for streams
    that the executor runs one after another, and what opening a model raises.
    """
    options = options or ProfileOptions()
    opened = [
        _open(model, executor, quantize, options)
        for executor, quantize in product(options.executor, options.quantize)
    ]
    for files, _ in opened:
        files.config.check_context(options.context)
    settings = [
        (files, spec, threads, attention, kv_type)
        for files, spec in opened
        for threads in options.threads
        for attention, kv_type in _arithmetic(files, spec, options)
    ]
    check_room(
        [(files, spec, attention, kv_type) for files, spec, _, attention, kv_type in settings], options
    )
    watch = machine.Watch()
    with ExitStack() as stack:
        configurations = []
        for files, spec, threads, attention, asked in settings:
            run = RunOptions(
                executor=spec.name,
                context=options.context,
                threads=threads,
                activations=activations_of(spec, files, options.activations),
                kv_type=asked,
                attention=attention,
                rope_regime=options.rope_regime,
            )
            worker = stack.enter_context(Worker(Setup(str(files.path), asdict(run), options.fill)))
            _check_passes(spec.name, worker.ready, options)
            fixed = spec.fixed(files)
            weights = None if fixed is None else fixed.scheme
            tensors = [(info.name, info.shape, weights or info.scheme) for info in files.tensors.values()]
            kv_type = worker.ready.kv_type  # the executor's own, where it has no choice
            cost = NetworkCost.of(files.config, tensors, kv_type, worker.ready.activations)
            if attention == "sparse":
                cost = replace(cost, sparse=files.config.sparse or SparseConfig())
            configurations.append(
                _Configuration(str(model), spec.name, attention, kv_type, files, cost, worker)
            )
        probe = RooflineProbe()
        stack.callback(probe.close)

        def own_seconds() -> float:
            return time.process_time() + sum(each.worker.cpu_seconds for each in configurations)

        watch.start(own_seconds())
        limits = _measure(configurations, options, probe, progress)
        watched = watch.result(own_seconds())
    rows = [
        _row(each, test, options, best_of(limits[each.worker.ready.threads]))
        for each in configurations
        for test in options.tests
    ]
    return Profile(
        schema=SCHEMA,
        program=f"minicpm-edge {__version__}",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        repeat=options.repeat,
        machine=machine_facts(limits, watched),
        results=tuple(rows),
    )


def machine_facts(measured: dict[int, list[Roofline]], watched: machine.Watched) -> MachineFacts:
    """The machine of this process; measured: its limits during the run, by number of threads."""
    limits = tuple(limits_of(threads, found) for threads, found in sorted(measured.items()))
    most, varied = limits[-1], variation_remarks(limits)
    return MachineFacts(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=machine.cpu_name(),
        cores=machine.core_count(),
        memory_bytes=machine.memory_bytes(),
        huge_pages=machine.huge_pages(),
        read_bandwidth_gb_s=most.read_bandwidth_gb_s,
        int8_tops=most.int8_tops,
        float_tflops=most.float_tflops,
        limits=limits,
        load=watched.load,
        other_cpu_share=watched.other_cpu_share,
        clock_mhz=watched.clock_mhz,
        temperature_celsius=watched.temperature_celsius,
        noisy=watched.noisy or bool(varied),
        throttled=watched.throttled,
        remarks=(*watched.remarks, *varied),
    )


def _open(
    model: str | Path, executor: str | None, quantize: str | None, options: ProfileOptions
) -> tuple[ModelFiles, ExecutorSpec]:
    target = None if executor is None else EXECUTORS.get(executor).target
    files = open_model(model, quantize=quantize, head=options.head, target=target)
    return files, find_executor(files, executor)


def _arithmetic(
    files: ModelFiles, spec: ExecutorSpec, options: ProfileOptions
) -> Iterable[tuple[AttentionMode, KVType]]:
    """(attention that is active, KV type) of each run; an exported folder has its own."""
    if files.attention is not None:
        for mode, kv_type in product(options.attention, options.kv_type):
            refuse_ignored(
                spec, files, RunOptions(attention=mode, kv_type=kv_type, rope_regime=options.rope_regime)
            )
        return [(files.attention, kv_type_of(spec, files, "int8"))]
    activations = activations_of(spec, files, options.activations)
    kv_types = dict.fromkeys(kv_type_of(spec, files, activations, each) for each in options.kv_type)
    active: dict[AttentionMode, None] = {}
    for mode in options.attention:
        if mode == "auto":
            active["dense" if spec.sparse(files, mode, options.context) is None else "sparse"] = None
        else:
            active[mode] = None
    return product(active, kv_types)


def _check_passes(executor: str, ready: Ready, options: ProfileOptions) -> None:
    """Refuse, before anything is computed, tests that the executor can't run in one pass."""
    streams, rows = max(options.streams), max(options.rows, default=0)
    if streams > 1 and not ready.batch_invariant:
        raise ProfileError(
            f"The executor '{executor}' runs several sequences one after another, so {streams} streams are "
            "no faster than one: leave --streams out, or measure the native executor."
        )
    for count, what, flag in ((streams, "streams", "--streams"), (rows, "rows", "--rows")):
        if count > ready.max_batch:
            raise ProfileError(
                f"A pass of the executor '{executor}' takes up to {ready.max_batch} tokens, not those of "
                f"{count} {what}: give {flag} at most that."
            )


def _measure(
    configurations: list[_Configuration],
    options: ProfileOptions,
    probe: RooflineProbe,
    progress: Progress | None,
) -> dict[int, list[Roofline]]:
    """Every repeat measures each test once, so that a drift of the machine touches all alike, and before each
    test the limits; once more at the end.
    """
    limits: dict[int, list[Roofline]] = defaultdict(list)
    per_repeat = len(configurations) * len(options.tests)
    total = per_repeat * (options.repeat + (1 if options.operators else 0))
    done = 0

    def report(each: _Configuration, test: Case) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, f"{test} at depth {test.depth}, {each.worker.ready.threads} threads")
        done += 1

    for _ in range(options.repeat):
        for each in configurations:
            for test in options.tests:
                report(each, test)
                limits[each.worker.ready.threads].append(probe.measure(each.worker.ready.threads))
                each.measured[test].append(each.worker.measure(test))
    if options.operators:
        for each in configurations:
            for test in options.tests:
                report(each, test)
                limits[each.worker.ready.threads].append(probe.measure(each.worker.ready.threads))
                each.passes[test] = each.worker.operators(test)
    for threads, found in limits.items():
        found.append(probe.measure(threads))
    return limits


def work(cost: NetworkCost, case: Case, batch: int) -> tuple[float, float, float, float]:
    """(weight bytes, KV bytes, multiply-adds in matrices, in attention) of a whole test."""
    test, tokens, depth, streams = case
    attention = cost.attention_pairs(tokens, depth) * streams
    if test == "prefill":
        total = cost.prefill_bytes(tokens, depth, batch)
        weights = cost.streamed * -(-tokens // batch)
        return weights, total - weights, cost.body * tokens + cost.head, attention
    linear = (cost.body + cost.head) * case.total
    if test == "verify":
        return cost.streamed, cost.kv_row * (depth + tokens), linear, attention
    positions = cost.positions_read(tokens, depth) * streams
    return cost.streamed * tokens, cost.kv_row * positions, linear, attention


def _row(each: _Configuration, case: Case, options: ProfileOptions, roofline: Roofline) -> Row:
    ready, measured, total = each.worker.ready, each.measured[case], case.total
    weights, rows, linear, attention = work(each.cost, case, ready.max_batch)
    single = [seconds for one in measured for seconds in one.token_seconds]
    in_pass = case.tokens if case.test == "verify" else case.streams
    samples = [total / one.seconds for one in measured]
    joules = [one.joules for one in measured if one.joules is not None]
    seconds = median(one.seconds for one in measured)
    return Row(
        model=each.model,
        executor=each.executor,
        quantize=str(quantization(each.files)),
        threads=ready.threads,
        attention=each.attention,
        kv_type=each.kv_type,
        activations=ready.activations,
        tier=ready.tier,
        fill=options.fill,
        test=case.test,
        tokens=case.tokens,
        depth=case.depth,
        streams=case.streams,
        rows=case.tokens if case.test == "verify" else None,
        seconds=seconds if case.test == "verify" else None,
        ttft_seconds=seconds if case.test == "prefill" else None,
        tokens_per_second=rate(samples, [in_pass / seconds for seconds in single] or samples),
        samples=tuple(samples),
        latency_percentiles=tuple(float(p) for p in np.percentile(single, range(101))) if single else (),
        weight_bytes_per_token=weights / total,
        kv_bytes_per_token=rows / total,
        operations_per_token=(linear + attention) / total,
        bandwidth_share=round((weights + rows) / roofline.read_bytes / seconds, 6),
        compute_share=round(each.cost.seconds_at_peak(linear, attention, roofline) / seconds, 6),
        load_seconds=ready.load_seconds,
        peak_memory_bytes=max(one.peak_memory_bytes for one in measured),
        memory=Memory(
            each.cost.resident,
            (case.depth + case.tokens) * case.streams * each.cost.kv_row,
            ready.workspace_bytes,
        ),
        joules_per_token=median(joules) / total if joules else None,
        operators=summarise(each.passes.get(case, []), each.kv_type, roofline),
    )


def rate(repeats: list[float], tokens: list[float]) -> Rate:
    """repeats: tokens per second of every repeat. tokens: of every single token."""
    p50, p90, p99 = (float(value) for value in np.percentile(tokens, (50, 10, 1)))
    return Rate(median(repeats), min(repeats), max(repeats), p50, p90, p99)


def quantization(files: ModelFiles) -> QuantScheme:
    """That of most of the weights in the layers."""
    sizes: dict[QuantScheme, int] = defaultdict(int)
    for name, tensor in files.tensors.items():
        if len(tensor.shape) == 2 and name not in (EMBEDDING, HEAD):
            sizes[tensor.scheme] += tensor.bytes
    return max(sizes, key=lambda scheme: sizes[scheme])


def default_threads() -> int:
    """Threads that a configuration uses when none are named."""
    return native.default_threads()
