"""How much memory this process can still use: what the system has, within the limits of its cgroups."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that this process can still use: free and reclaimable memory within the cgroup's limits.

    None where the system does not tell.
    """
    found = [value for value in (_system_available(), *_cgroup_available()) if value is not None]
    return min(found, default=None)


def _system_available() -> int | None:
    try:
        import psutil  # not needed to import `edge`

        return int(psutil.virtual_memory().available)
    except (ImportError, OSError, ValueError, RuntimeError):  # a sandbox without /proc
        return None


def _cgroup_available(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What the limits of this process's cgroup (v2 or v1) and of those above it leave."""
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    left: list[int] = []
    for entry in entries:
        if len(entry) != 3 or (entry[1] and "memory" not in entry[1].split(",")):
            continue
        version_2 = entry[1] == ""
        base = root if version_2 else root / "memory"
        limit, used = (
            ("memory.max", "memory.current")
            if version_2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = base / entry[2].strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(base):
                break
            room = _room(place / limit, place / used, place / "memory.stat")
            if room is not None:
                left.append(room)
    return left


def _room(limit: Path, used: Path, stat: Path) -> int | None:
    """The limit less what is in use and can't be reclaimed; None where there is no limit."""
    try:
        text = limit.read_text().strip()
        if text == "max":
            return None
        in_use = int(used.read_text())
        files = {line.split()[0]: int(line.split()[1]) for line in stat.read_text().splitlines()}
    except (OSError, ValueError, IndexError):
        return None
    cached = files.get("inactive_file", 0) + files.get("active_file", 0)
    return max(0, int(text) - max(0, in_use - cached))
