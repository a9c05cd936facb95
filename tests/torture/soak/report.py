"""What a soak has found so far: counts and findings, kept in a file after every life of the server."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from edge.formats.atomic import write_file

FLAT = 0.02
"""What memory may grow by in a life."""
EXPECTED = (503, 504)
"""Statuses from 500 on that say something true: the server ends, or a request took too long."""
_FEWEST = 6  # samples that say something about growth
_MOST_FINDINGS = 50


@dataclass
class Conversation:
    """saved: tokens that a file had when it was last looked at."""

    seed: int
    length: int
    saved: int = 0


@dataclass
class Report:
    """seconds: of traffic. quiet: texts of a server without other requests, by the request's name. memory:
    of each life, private bytes in the first and the last third of its samples.
    """

    seed: int
    seconds: float = 0.0
    lives: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    prefixes: int = 0
    memory: list[list[float]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    quiet: dict[str, list[str]] = field(default_factory=dict)
    conversations: list[Conversation] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @staticmethod
    def load(path: Path, seed: int) -> Report:
        """That of an earlier run with the same seed, or a new one."""
        if path.exists():
            kept = json.loads(path.read_bytes())
            if kept["seed"] == seed:
                kept["conversations"] = [Conversation(**each) for each in kept["conversations"]]
                return Report(**kept)
        return Report(seed)

    def save(self, path: Path) -> None:
        """Write it."""
        write_file(path, json.dumps(asdict(self)).encode())

    @property
    def is_full(self) -> bool:
        """Whether so much is wrong that it is time to stop."""
        return len(self.findings) >= _MOST_FINDINGS

    def finding(self, sentence: str) -> None:
        """Something that should not be; printed at once."""
        with self._lock:
            self.findings.append(sentence[:2000])
        print(f"FINDING: {sentence}", flush=True)

    def counted(self, kind: str, status: int | None) -> None:
        """A request and what came of it; status: None where nothing could come."""
        with self._lock:
            self.requests[kind] = self.requests.get(kind, 0) + 1
            name = str(status or "none")
            self.statuses[name] = self.statuses.get(name, 0) + 1
        if status is not None and status >= 500 and status not in EXPECTED:
            self.finding(f"{kind}: status {status}")

    def answered(self, name: str, texts: Sequence[str]) -> None:
        """A whole answer to a known request, which has to be that of the quiet server."""
        with self._lock:
            self.compared += 1
        if list(texts) != self.quiet[name]:
            self.finding(f"{name}: {texts} in place of {self.quiet[name]}")

    def found_again(self, conversation: Conversation, cached: int) -> None:
        """What was not computed of a conversation, of which a file has `saved` tokens."""
        with self._lock:
            self.prefixes += 1
        if cached < conversation.saved - 1:
            self.finding(f"{cached} tokens of {conversation.saved} were found in a file or in memory")

    def remembered(self, samples: Sequence[int]) -> None:
        """Private bytes of a life, one sample after the other."""
        if len(samples) < _FEWEST:
            return
        third = len(samples) // 3
        before, after = median(samples[:third]), median(samples[-third:])
        self.memory.append([before, after])
        if after > before * (1 + FLAT):
            self.finding(f"memory grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB: {list(samples)}")

    def document(self) -> Mapping[str, Any]:
        """What is worth keeping."""
        left = ("quiet", "conversations", "made")
        kept = {name: value for name, value in asdict(self).items() if name not in left}
        growth = max((after / before - 1 for before, after in self.memory), default=None)
        return {**kept, "most_growth": growth}
