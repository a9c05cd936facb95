"""Facts about the machine and its state, read from the system; what it does not tell is None or empty."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")
_CPUS = Path("/sys/devices/system/cpu")
_THROTTLE_COUNT = "cpu[0-9]*/thermal_throttle/core_throttle_count"
_NOISY_LOAD = 0.5  # running processes per core before the start
_NOISY_SHARE = 0.1  # of all CPU time, used by others during the run
_THROTTLED_CLOCK = 0.9  # of the clock at the start


def cpu_name() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def core_count() -> int:
    """Logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Installed memory."""
    return _told(lambda psutil: int(psutil.virtual_memory().total))


def huge_pages() -> str | None:
    """How the system hands out transparent huge pages: `always`, `madvise` or `never`."""
    text = _text(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    return text.partition("[")[2].partition("]")[0] or None if text else None


def load() -> float | None:
    """Running processes, averaged over the last minute."""
    return _told(lambda psutil: round(float(psutil.getloadavg()[0]), 2))


def clock_mhz() -> float | None:
    """Mean clock of the CPUs now."""
    clock = _told(lambda psutil: psutil.cpu_freq())
    return round(clock.current, 1) if clock is not None and clock.current else None


def temperature_celsius() -> float | None:
    """The hottest of the system's sensors."""
    sensors = _told(lambda psutil: psutil.sensors_temperatures()) or {}
    return max((sensor.current for found in sensors.values() for sensor in found), default=None)


def _throttle_events() -> int | None:
    counts = [_text(path) for path in _CPUS.glob(_THROTTLE_COUNT)]
    known = [int(count) for count in counts if count]
    return sum(known) if known else None


def _busy_seconds() -> float | None:
    """CPU time that the whole machine has used, and that a hypervisor has taken."""
    times = _told(lambda psutil: psutil.cpu_times())
    if times is None:
        return None
    # The guests' time is in `user` and `nice` already.
    return sum(times) - sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))


@dataclass(frozen=True)
class Watched:
    """How the machine was during a run; see `edge.measure.profile.schema.MachineFacts`."""

    load: float | None
    other_cpu_share: float | None
    clock_mhz: tuple[float, ...]
    temperature_celsius: tuple[float, ...]
    noisy: bool
    throttled: bool
    remarks: tuple[str, ...]


class Watch:
    """Watches the machine from its construction until `result`."""

    def __init__(self) -> None:
        self._load, self._clock, self._heat = load(), clock_mhz(), temperature_celsius()
        self._throttle = _throttle_events()
        self.start(0.0)

    def start(self, own_seconds: float) -> None:
        """From here on others' CPU time counts; own_seconds: that of our own processes so far."""
        self._busy, self._own, self._since = _busy_seconds(), own_seconds, time.monotonic()

    def result(self, own_seconds: float) -> Watched:
        """What happened since the start; own_seconds: CPU time of our own processes so far."""
        busy, elapsed = _busy_seconds(), time.monotonic() - self._since
        other = None
        if busy is not None and self._busy is not None and elapsed > 0:
            others = busy - self._busy - (own_seconds - self._own)
            other = round(max(0.0, others / elapsed / (os.cpu_count() or 1)), 3)
        clock, events = (self._clock, clock_mhz()), (self._throttle, _throttle_events())
        noise = noise_remarks(self._load, other, core_count())
        heat = throttle_remarks(clock, events)
        return Watched(
            load=self._load,
            other_cpu_share=other,
            clock_mhz=tuple(value for value in clock if value is not None),
            temperature_celsius=tuple(
                value for value in (self._heat, temperature_celsius()) if value is not None
            ),
            noisy=bool(noise),
            throttled=bool(heat),
            remarks=(*noise, *heat),
        )


def noise_remarks(load_before: float | None, other_share: float | None, cores: int) -> tuple[str, ...]:
    """Why a run is noisy; nothing if it is not."""
    found = []
    if load_before is not None and load_before > _NOISY_LOAD * cores:
        found.append(f"Noisy: {load_before} processes were running in the minute before, on {cores} cores.")
    if other_share is not None and other_share > _NOISY_SHARE:
        found.append(f"Noisy: other processes used {other_share:.0%} of the CPU time during the run.")
    return tuple(found)


def throttle_remarks(
    clock: tuple[float | None, float | None], events: tuple[int | None, int | None]
) -> tuple[str, ...]:
    """Why a run counts as throttled; nothing if it does not."""
    found = []
    before, after = clock
    if before and after and after < _THROTTLED_CLOCK * before:
        found.append(f"Throttled: the clock fell from {before:.0f} to {after:.0f} MHz.")
    if None not in events and events[1] > events[0]:  # type: ignore[operator]
        found.append("Throttled: the processor reports that it became too hot.")
    return tuple(found)


def _told(fact: Callable[[ModuleType], T]) -> T | None:
    """What psutil tells; None where this system or its sandbox does not, or psutil is missing (doctor)."""
    try:
        import psutil

        return fact(psutil)
    except (ImportError, OSError, AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
