"""Seconds of launches on a GPU: the longest of what each of its parts takes, and the gaps between kernels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .code import Code, code_of
from .gpus import ISSUED, REACHED, Gpu
from .passes import Launch, Rows
from .work import Model, Work, work_of


@dataclass
class Time:
    """Of launches of one kernel. limit: what takes longest, over all of them: `memory`, `in flight` (bytes
    that programs ask for at a time, by Little's law), `L2`, `tensor cores`, `issue` or `latency`. moved:
    bytes of memory. multiply_adds, slots: of tensor cores, and instructions of warps. waiting: seconds that
    no kernel runs.
    """

    launches: int = 0
    seconds: float = 0
    waiting: float = 0
    moved: float = 0
    multiply_adds: float = 0
    slots: float = 0
    limits: dict[str, float] = field(default_factory=dict)

    def add(self, other: Time) -> None:
        """Both, one after the other."""
        for name in ("launches", "seconds", "waiting", "moved", "multiply_adds", "slots"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, seconds in other.limits.items():
            self.limits[name] = self.limits.get(name, 0) + seconds

    @property
    def limit(self) -> str:
        """The one that most seconds go to."""
        return max(self.limits, key=self.limits.__getitem__)


def moved(work: Work, beside: int, gpu: Gpu) -> float:
    """Bytes between memory and L2. beside: programs at a time."""
    room = gpu.cache / 2
    total = work.memory + sum(size for size in work.buffers if size > room)
    return total + sum(size * (times if size > room else 1) for size, times in work.again(beside))


def time_of(work: Work, code: Code, gpu: Gpu) -> Time:
    """Of one launch."""
    held = code.programs(gpu.registers, gpu.shared, gpu.warps, gpu.blocks)
    beside = max(1, min(work.programs, held * gpu.multiprocessors))
    size = moved(work, beside, gpu)
    a_warp = code.rest.instructions + work.steps * code.loop.instructions
    adds = code.warps * work.programs * (code.rest.multiply_adds + work.steps * code.loop.multiply_adds)
    # The multiprocessor that has most programs is the last one to end.
    uneven = -(-work.programs // gpu.multiprocessors) * gpu.multiprocessors / max(1, work.programs)
    slots = a_warp * code.warps * work.programs
    waits = (gpu.latency + (work.chain - 1) * gpu.l2_latency) / gpu.clock
    parts = {
        "memory": size / (gpu.bandwidth * REACHED),
        "in flight": size / (beside * code.in_flight * gpu.clock / gpu.latency) if code.in_flight else 0.0,
        "L2": work.asked / (gpu.l2_bandwidth * REACHED),
        "tensor cores": uneven * adds / (gpu.tensor_rate * ISSUED),
        "issue": uneven * slots / (gpu.issue_rate * ISSUED),
        # A warp's instructions depend on each other: one in two clocks is what it issues at best.
        "latency": 2 * a_warp / gpu.clock * -(-work.programs // beside),
    }
    limit = max(parts, key=parts.__getitem__)
    seconds = waits + parts[limit]
    return Time(1, seconds, gpu.gap, size, adds, slots, {limit: seconds})


def times_of(launches: Counter[Launch], model: Model, rows: Rows, gpu: Gpu) -> dict[str, Time]:
    """Of all launches of a pass, by kernel."""
    found: dict[str, Time] = {}
    for launch, number in launches.items():
        one = time_of(work_of(launch, model, rows), code_of(launch.kernel), gpu)
        of_kernel = found.setdefault(launch.kernel, Time())
        for _ in range(number):
            of_kernel.add(one)
    return found


def seconds_of(times: dict[str, Time]) -> float:
    """All kernels and the gaps between them."""
    return sum(each.seconds + each.waiting for each in times.values())
