"""Who answers which prompts, in turn, and the rows of what came of it.

A worker gets a job on its input: model, threads, context, max_new_tokens, sampling (settings of ours;
llama.cpp's is greedy), prompts (token ids), and fields of its own. It prints a list with an answer each:
text, tokens, steps (after the first token) and their seconds.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edge.hub.resolve import open_model
from edge.text.chat_template import ChatTemplate
from edge.text.prompts import PromptEncoder
from edge.text.tokenizer.load import open_tokenizer

from .prompts import Prompt, loops

Answer = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Way:
    """A way to answer. program, setting: in tables; a program's first way is its plain one. worker: a file
    beside this one. fields: of its job.
    """

    program: str
    setting: str
    worker: str
    fields: dict[str, Any]


def ours(settings: Sequence[str], program: str = "edge", **options: Any) -> list[Way]:
    """Our program with these values of `speculate`. options: of `edge.load`."""
    return [
        Way(program, name, "run_edge.py", {"options": {"speculate": name, **options}}) for name in settings
    ]


LOOKUPS = {
    "ngram-cache": ["--spec-type", "ngram-cache", "--spec-draft-n-max", "8"],
    "ngram-simple": ["--spec-type", "ngram-simple"],
    "ngram-simple, 3 and 8": [
        *("--spec-type", "ngram-simple"),
        *("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8"),
    ],
    "ngram-map-k": ["--spec-type", "ngram-map-k"],
    "ngram-map-k, 3 and 8": [
        *("--spec-type", "ngram-map-k"),
        *("--spec-ngram-map-k-size-n", "3", "--spec-ngram-map-k-size-m", "8"),
    ],
    "ngram-mod": ["--spec-type", "ngram-mod"],
    "ngram-mod, 4 and 1 to 8": [
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "4"),
        *("--spec-ngram-mod-n-min", "1", "--spec-ngram-mod-n-max", "8"),
    ],
}
"""Ways of llama.cpp to look up, with its defaults and with shorter matches and guesses for short answers."""


_ALONE = ["-np", "1", "--cache-ram", "0"]
"""One answer at a time, and none that it has seen before."""


def llama(server: str, settings: dict[str, list[str]]) -> list[Way]:
    """llama.cpp's server, plain and with these arguments."""
    ways = {"plain": list[str](), **settings}
    return [
        Way("llama.cpp", name, "run_llama.py", {"server": server, "arguments": [*_ALONE, *arguments]})
        for name, arguments in ways.items()
    ]


class Comparison:
    """Answers of all ways, each round of each way in a process of its own.

    keep: a folder for the answers of processes that have ended; what is found there is not measured again.
    """

    def __init__(self, model: str, prompts: Sequence[Prompt], job: dict[str, Any], keep: Path | None) -> None:
        files = open_model(model)
        tokenizer = open_tokenizer(files)
        if files.chat_template is None:
            raise SystemExit(f"{model} has no chat template: name a model that is tuned for conversations.")
        encoder = PromptEncoder(ChatTemplate(files.chat_template, tokenizer.named_tokens), tokenizer)
        self.prompts = prompts
        self.tokens = [encoder.encode(prompt.messages) for prompt in prompts]
        self._job = {**job, "model": model, "prompts": self.tokens}
        self._keep = keep

    def rounds(self, ways: Sequence[Way], count: int) -> dict[Way, list[list[Answer]]]:
        """By way and round the answers; every second round goes backwards."""
        found: dict[str, list[list[Answer]]] = {}
        for turn in range(count):
            for way in ways[:: -1 if turn % 2 else 1]:
                print(f"round {turn + 1}: {way.program}, {way.setting}", file=sys.stderr, flush=True)
                found.setdefault(_name(way), []).append(self._answers(way, turn))
        return {way: found[_name(way)] for way in ways}

    def _answers(self, way: Way, turn: int) -> list[Answer]:
        text = json.dumps({**self._job, **way.fields})
        if self._keep is None:
            return _run(way, text)
        key = hashlib.sha256(f"{_name(way)} {turn} {text}".encode()).hexdigest()[:16]
        file = self._keep / f"answers-{key}.json"
        if not file.exists():
            self._keep.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(_run(way, text)), encoding="utf-8")
            partial.rename(file)
        kept: list[Answer] = json.loads(file.read_text(encoding="utf-8"))
        return kept


def _name(way: Way) -> str:
    return f"{way.program}, {way.setting}"


def _run(way: Way, text: str) -> list[Answer]:
    worker = Path(__file__).with_name(way.worker)
    done = subprocess.run(
        [sys.executable, str(worker)], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stderr[-3000:]}\n{_name(way)} failed.")
    answers: list[Answer] = json.loads(done.stdout.splitlines()[-1])
    return answers


def rows_of(comparison: Comparison, found: dict[Way, list[list[Answer]]]) -> Iterator[dict[str, Any]]:
    """For every way and kind of prompts, and for all kinds together: a row.

    tokens_per_second: over all answers, with the median of the rounds of each. ratio: to the plain way of the
    same program, the median over prompts; total_ratio: of the sums. least_ratio: of a prompt. same: answers
    that are those of the plain way, token for token. loops: answers of the plain way that are left out, see
    `prompts.loops`. right: answers, also of those, that are the expected ones. accepted_length: tokens per
    pass, where it is known.
    """
    plain = {way.program: way for way in reversed(found)}
    kinds = list(dict.fromkeys(prompt.kind for prompt in comparison.prompts))
    for way, rounds in found.items():
        base = found[plain[way.program]]
        for kind in (*kinds, "all"):
            chosen = [at for at, each in enumerate(comparison.prompts) if kind in (each.kind, "all")]
            left = [
                at
                for at in chosen
                if base[0][at]["steps"] > 0 and not loops(comparison.tokens[at], base[0][at]["tokens"])
            ]
            row: dict[str, Any] = {
                "program": way.program,
                "setting": way.setting,
                "kind": kind,
                "prompts": len(chosen),
                "loops": len(chosen) - len(left),
                "same": sum(rounds[0][at]["tokens"] == base[0][at]["tokens"] for at in chosen),
                "right": sum(comparison.prompts[at].is_right(rounds[0][at]["text"]) for at in chosen),
            }
            yield {**row, **_speeds(rounds, base, left)} if left else row


def _speeds(rounds: list[list[Answer]], base: list[list[Answer]], left: list[int]) -> dict[str, Any]:
    seconds = {at: median(each[at]["seconds"] / each[at]["steps"] for each in rounds) for at in left}
    plain = {at: median(each[at]["seconds"] / each[at]["steps"] for each in base) for at in left}
    steps = {at: rounds[0][at]["steps"] for at in left}
    total = sum(steps.values())
    ratios = [plain[at] / seconds[at] for at in left]
    found = {
        "tokens_per_second": round(total / sum(seconds[at] * steps[at] for at in left), 1),
        "ratio": round(median(ratios), 3),
        "least_ratio": round(min(ratios), 3),
        "total_ratio": round(
            sum(plain[at] * steps[at] for at in left) / sum(seconds[at] * steps[at] for at in left), 3
        ),
    }
    told = [rounds[0][at].get("speculation") for at in left]
    if passes := sum(each["passes"] for each in told if each):
        found["accepted_length"] = round(sum(each["tokens"] for each in told if each) / passes, 2)
        found["draft_share"] = round(
            sum(each["draft_seconds"] for each in told if each)
            / sum(each["seconds"] for each in told if each),
            4,
        )
    drafted = sum(rounds[0][at].get("drafted", 0) for at in left)
    if drafted:
        found["acceptance"] = round(sum(rounds[0][at]["accepted"] for at in left) / drafted, 3)
    return found


def compare(
    comparison: Comparison, ways: Sequence[Way], rounds: int, tell: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measure, and tell every row."""
    rows = list(rows_of(comparison, comparison.rounds(ways, rounds)))
    for row in rows:
        tell(row)
    return rows
