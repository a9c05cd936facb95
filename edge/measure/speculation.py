"""What guesses are worth on this machine: the same prompts with and without them, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edge.engine.completion import Completion
from edge.engine.speculative.opening import OFF
from edge.engine.speculative.sequence import SpeculationStatistics
from edge.errors import EdgeError
from edge.runtime import Model, load

SCHEMA = 1
PROMPTS = (
    "Copy this text word by word:\n\nThe harbour opens at six. Boats with fresh fish come first, then the "
    "ferry to the island, then everybody else. The keeper writes each name into a long blue book, and rings "
    "a small bell when the tide turns.",
    'Write this record as JSON with the keys "name", "town", "born" and "trade", and nothing else:\n\n'
    "name: Maria Keller\ntown: Lindenau\nborn: 1968\ntrade: bookbinder",
    "Rename the variable `total` to `price` in this code, and write all of it again:\n\n```python\n"
    "total = 0\nfor item in basket:\n    total = total + item.cost * item.count\n    if item.is_gift:\n"
    "        total = total + 2\nprint(total)\n```",
    "Why is the sky blue? Answer in a few sentences.",
)
"""To copy, to transform, to edit, and to answer freely."""


@dataclass(frozen=True)
class SpeculationRow:
    """One prompt. tokens: of the answer. tokens_per_second, plain_tokens_per_second: medians of decoding with
    guesses and without. same: whether both answers are the same, token by token. speculation: of the last
    answer with guesses.
    """

    prompt: str
    prompt_tokens: int
    tokens: int
    tokens_per_second: float
    plain_tokens_per_second: float
    same: bool
    speculation: SpeculationStatistics

    @property
    def speedup(self) -> float:
        """Over plain decoding; 0 for an answer too short to tell."""
        return self.tokens_per_second / self.plain_tokens_per_second if self.plain_tokens_per_second else 0.0


@dataclass(frozen=True)
class SpeculationProfile:
    """How a model was measured, and what came of it."""

    model: str
    speculate: str
    executor: str
    tier: str
    threads: int
    rows: tuple[SpeculationRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        document = {"schema": SCHEMA, **asdict(self)}
        for row, values in zip(self.rows, document["rows"], strict=True):
            found = row.speculation
            values["speedup"] = row.speedup
            values["speculation"] |= {
                "mean_accepted_length": found.mean_accepted_length,
                "draft_share": found.draft_share,
            }
        return document


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, or its paragraphs if it has lines of three dashes between them."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeError(f"The prompts '{path}' can't be read as text: {error}.") from None
    lines = text.splitlines()
    parts = text.split("\n---\n") if "---" in lines else lines
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise EdgeError(f"The file '{path}' has no prompts: write one on every line.")
    return found


def profile_speculation(
    name: str,
    speculate: str,
    prompts: Sequence[str] = PROMPTS,
    *,
    max_new_tokens: int = 128,
    repeat: int = 3,
    settings: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    **options: Any,
) -> SpeculationProfile:
    """Answer every prompt with guesses and without, `repeat` times each, in turn.

    settings: of the answers, by default greedy. options: of `edge.load`. What one answer has taught, the next
    does not know: each begins with drafters that have seen nothing.
    """
    if speculate == OFF:
        raise EdgeError("Guesses are compared with decoding without them: name what guesses, not 'off'.")
    chosen = {"temperature": 0.0, "max_new_tokens": max_new_tokens, **(settings or {})}
    rows = []
    with load(name, speculate=speculate, prefix_memory=0, **options) as model:
        if model.scheduler.speculation is None:
            raise EdgeError(
                f"The {model.executor.info.name} executor computes several rows in another way than one, so "
                "it does not guess by itself: name what guesses."
            )
        _answer(model, prompts[0], guesses=True, **{**chosen, "max_new_tokens": 8})  # warms up
        for at, prompt in enumerate(prompts):
            progress(at, len(prompts), _short(prompt))
            rows.append(_row(model, prompt, repeat, chosen))
        info, found = model.executor.info, model.scheduler.speculation
        return SpeculationProfile(name, found.name, info.name, info.tier, info.threads, tuple(rows))


def _row(model: Model, prompt: str, repeat: int, chosen: dict[str, Any]) -> SpeculationRow:
    plain, guessed = list[Completion](), list[Completion]()
    for turn in range(repeat):
        for guesses in (False, True) if turn % 2 == 0 else (True, False):
            done = _answer(model, prompt, guesses=guesses, **chosen)
            (guessed if guesses else plain).append(done)
    last = guessed[-1]
    assert last.speculation is not None
    return SpeculationRow(
        prompt=_short(prompt),
        prompt_tokens=last.prompt_tokens,
        tokens=len(last.tokens),
        tokens_per_second=median(done.tokens_per_second for done in guessed),
        plain_tokens_per_second=median(done.tokens_per_second for done in plain),
        same=all(done.tokens == plain[0].tokens for done in (*plain, *guessed)),
        speculation=last.speculation,
    )


def _answer(model: Model, prompt: str, *, guesses: bool, **settings: Any) -> Completion:
    speculation = model.scheduler.speculation
    assert speculation is not None
    model.scheduler.speculation = speculation.forgetful()
    try:
        session = model.session(speculate=guesses)
        if model.files.chat_template is None:
            return model.complete(prompt, session=session, **settings)
        chat = model.chat(**settings)
        chat.session = session
        return chat.send(prompt)
    finally:
        model.scheduler.speculation = speculation


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 40 else f"{line[:37]}..."
