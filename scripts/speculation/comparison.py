"""Who answers which prompts, in turn, and the rows of what came of it.

A worker gets a job as the first line of its input: model, threads, context, max_new_tokens, sampling
(settings of ours; llama.cpp's is greedy), and fields of its own, and prints a line when it is ready. Each
further line is a prompt, its token ids, for which it prints a line with the answer: text, tokens, steps
(after the first token) and their seconds.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

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

    @property
    def name(self) -> str:
        """Of program and setting."""
        return f"{self.program}, {self.setting}"


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


class Worker:
    """A process that answers in one way, and waits while others do."""

    def __init__(self, way: Way, job: dict[str, Any]) -> None:
        """Returns when it is ready to answer."""
        self.name = way.name
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see end
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(way.worker))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._asked({**job, **way.fields})

    def answer(self, prompt: list[int]) -> Answer:
        """To one prompt; SystemExit with what it said if it has failed."""
        found: Answer = json.loads(self._asked(prompt))
        return found

    def close(self) -> None:
        """Let it end; SystemExit if it fails."""
        self._input.close()
        if self._process.wait():
            self._fail()

    def end(self) -> None:
        """At once, whatever it does."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._input.close()
        self._output.close()
        self._said.close()

    def _asked(self, what: Any) -> str:
        """The line that it prints for a line of its input."""
        try:
            self._input.write(json.dumps(what) + "\n")
            self._input.flush()
            line = self._output.readline()
        except BrokenPipeError:
            line = ""
        return line or self._fail()

    def _fail(self) -> NoReturn:
        self._process.wait()
        self._said.seek(0)
        raise SystemExit(f"{self._said.read()[-3000:]}\n{self.name} failed.")


class Comparison:
    """Answers of all ways, which take turns at each prompt; every way has a process of its own in each round.

    keep: a folder for the answers of rounds that have ended; what is found there is not measured again.
    """

    def __init__(self, model: str, prompts: Sequence[Prompt], job: dict[str, Any], keep: Path | None) -> None:
        files = open_model(model)
        tokenizer = open_tokenizer(files)
        if files.chat_template is None:
            raise SystemExit(f"{model} has no chat template: name a model that is tuned for conversations.")
        encoder = PromptEncoder(ChatTemplate(files.chat_template, tokenizer.named_tokens), tokenizer)
        self.prompts = prompts
        self.tokens = [encoder.encode(prompt.messages) for prompt in prompts]
        self._job = {**job, "model": model}
        self._keep = keep

    def rounds(self, ways: Sequence[Way], count: int) -> dict[Way, list[list[Answer]]]:
        """By way and round the answers."""
        turns = [self._kept(ways, turn) for turn in range(count)]
        return {way: [answers[at] for answers in turns] for at, way in enumerate(ways)}

    def _kept(self, ways: Sequence[Way], turn: int) -> list[list[Answer]]:
        """The answers of a round, by way."""
        if self._keep is None:
            return self._answers(ways, turn)
        text = json.dumps([turn, self._job, self.tokens, [[way.name, way.fields] for way in ways]])
        file = self._keep / f"answers-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            self._keep.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(self._answers(ways, turn)), encoding="utf-8")
            partial.rename(file)
        kept: list[list[Answer]] = json.loads(file.read_text(encoding="utf-8"))
        return kept

    def _answers(self, ways: Sequence[Way], turn: int) -> list[list[Answer]]:
        """Each prompt by one way after another, every second time backwards: the machine's speed changes."""
        found: list[list[Answer]] = [[] for _ in ways]
        workers: list[Worker] = []
        try:
            for way in ways:
                workers.append(Worker(way, self._job))
            for at, tokens in enumerate(self.tokens):
                print(f"round {turn + 1}: prompt {at + 1} of {len(self.tokens)}", file=sys.stderr, flush=True)
                for index in range(len(ways))[:: -1 if (turn + at) % 2 else 1]:
                    found[index].append(workers[index].answer(tokens))
            for worker in workers:  # in order: what was learned of passes is kept as the last one has it
                worker.close()
        finally:
            for worker in workers:
                worker.end()
        return found


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
