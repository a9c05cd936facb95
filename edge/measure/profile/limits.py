"""The machine's limits over a whole run: the best of all measurements, and whether they vary too much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge.measure.profile.cost import Roofline
from edge.measure.profile.schema import Limits, LimitSamples

_NOISY_RANGE = 0.15  # from the lowest measurement to the highest, of the highest


def best_of(found: Sequence[Roofline]) -> Roofline:
    """Each limit where it was highest. What disturbs a measurement only makes it lower."""
    return Roofline(
        max(one.read_bytes for one in found),
        max(one.int8 for one in found),
        max(one.float32 for one in found),
    )


def limits_of(threads: int, found: Sequence[Roofline]) -> Limits:
    """The limits with so many threads and all that was measured, in the units of the document."""
    samples = LimitSamples(
        read_bandwidth_gb_s=tuple(round(one.read_bytes / 1e9, 3) for one in found),
        int8_tops=tuple(round(2 * one.int8 / 1e12, 4) for one in found),
        float_tflops=tuple(round(2 * one.float32 / 1e12, 4) for one in found),
    )
    return Limits(
        threads=threads,
        read_bandwidth_gb_s=max(samples.read_bandwidth_gb_s),
        int8_tops=max(samples.int8_tops),
        float_tflops=max(samples.float_tflops),
        samples=samples,
    )


def variation_remarks(limits: Iterable[Limits]) -> tuple[str, ...]:
    """Which limits varied by more than 15 % during the run, and from what to what; nothing if none did."""
    return tuple(
        f"Noisy: between the tests the {name} (threads: {each.threads}) was {min(found):.{digits}f} to "
        f"{max(found):.{digits}f} {unit}."
        for each in limits
        for name, unit, digits, found in (
            ("read bandwidth", "GB/s", 1, each.samples.read_bandwidth_gb_s),
            ("int8 peak", "TOPS", 2, each.samples.int8_tops),
            ("float peak", "TFLOPS", 2, each.samples.float_tflops),
        )
        if max(found) - min(found) > _NOISY_RANGE * max(found)
    )
