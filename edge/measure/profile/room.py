"""Whether a run fits into memory: all its configurations are open at once, so that repeats can take turns."""

from __future__ import annotations

from collections.abc import Iterable

from edge.config import KVType
from edge.config.attention import AttentionMode
from edge.executors.memory import MemoryPlan, memory_plan
from edge.executors.registry import ExecutorSpec
from edge.formats.model_files import ModelFiles
from edge.measure.profile.options import ProfileOptions
from edge.measure.profile.schema import ProfileError
from edge.system.memory import available_memory
from edge.system.units import format_bytes

Opened = tuple[ModelFiles, ExecutorSpec, AttentionMode, KVType]


def kv_rows(options: ProfileOptions) -> int:
    """Rows that the caches of one configuration reach together.

    There is one at every depth for each stream; it grows by the longest of its tests.
    """
    found = 0
    for depth in set(options.depth):
        tests = [case for case in options.tests if case.depth == depth]
        for stream in range(max(case.streams for case in tests)):
            found += depth + max(case.tokens for case in tests if stream < case.streams)
    return found


def check_room(configurations: Iterable[Opened], options: ProfileOptions) -> None:
    """Raise ProfileError, with the numbers, for more memory than there is."""
    plans = [_plan(each, options) for each in configurations]
    needed, free = sum(plan.total for plan in plans), available_memory()
    if free is None or needed <= free:
        return
    weights = format_bytes(sum(plan.weights for plan in plans))
    caches = format_bytes(sum(plan.kv_cache for plan in plans))
    raise ProfileError(
        f"The {len(plans)} configurations need {format_bytes(needed)} together (weights {weights}, KV caches "
        f"{caches} with {kv_rows(options)} tokens in each), but {format_bytes(free)} are free: measure fewer "
        "quantizations, thread counts, depths or streams at a time."
    )


def _plan(opened: Opened, options: ProfileOptions) -> MemoryPlan:
    files, spec, attention, kv_type = opened
    fixed = spec.fixed(files)
    return memory_plan(
        files,
        kv_rows(options),
        kv_type,
        sparse=spec.sparse(files, attention, options.context),
        weights=None if fixed is None else fixed.scheme,
    )
