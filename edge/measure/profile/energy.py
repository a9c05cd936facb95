"""Energy counters of the processor packages (RAPL), where the system lets them be read."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/class/powercap")


class EnergyMeter:
    """Reads the package counters; `joules()` is None where there are none, as in most virtual machines and
    for users without the right to read them.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._domains = [path for path in sorted(root.glob("intel-rapl:*")) if path.name.count(":") == 1]
        if self._read() is None:
            self._domains = []

    def start(self) -> None:
        """Remember the counters."""
        self._before = self._read()

    def joules(self) -> float | None:
        """Energy of all packages since `start`."""
        before, after = self._before, self._read()
        if not before or not after:
            return None
        return (
            sum((now - then) % (limit + 1) for (then, _), (now, limit) in zip(before, after, strict=True))
            / 1e6
        )

    def _read(self) -> list[tuple[int, int]] | None:
        """(microjoules, largest count before it starts again) of every package."""
        try:
            return [
                (int((path / "energy_uj").read_text()), int((path / "max_energy_range_uj").read_text()))
                for path in self._domains
            ]
        except (OSError, ValueError):
            return None
