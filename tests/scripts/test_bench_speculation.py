"""What scripts/bench_speculation.py does without llama.cpp: prompts, rows, cost model, one answer."""

from __future__ import annotations

import json
import subprocess
import sys
from math import log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge.checkpoints.synthetic_draft import draft_shape
from edge.engine.speculative.drafter import Budget
from edge.engine.speculative.eagle import Eagle
from edge.engine.speculative.tree import DraftTree
from edge.executors.drafts import Tried
from edge.text.prompts import Message
from scripts.speculation.comparison import Comparison, Worker, ours, rows_of
from scripts.speculation.forced import trees_of
from scripts.speculation.planted import Planted, PlantedDrafter, predicted
from scripts.speculation.prompts import KINDS, Prompt, chat, jobs, loops
from tests.tiny_checkpoint import write_checkpoint

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_there_are_20_prompts_of_each_kind_and_no_two_alike():
    found = jobs()
    assert [sum(prompt.kind == kind for prompt in found) for kind in KINDS] == [20, 20, 20]
    assert len({prompt.name for prompt in found}) == 60
    assert len({prompt.expected for prompt in found}) == 60
    assert {message.role for prompt in found for message in prompt.messages} == {"user", "assistant"}
    assert all(prompt.messages[-1].role == "user" for prompt in found)


@pytest.mark.parametrize("prompt", jobs(), ids=lambda prompt: prompt.name)
def test_the_expected_answer_is_right_and_a_changed_one_is_not(prompt: Prompt):
    assert prompt.is_right(prompt.expected)
    assert prompt.is_right(f"\n{prompt.expected}\n")
    words = prompt.expected.split()
    middle = len(words) // 2
    assert not prompt.is_right(" ".join([*words[:middle], "wrong", *words[middle:]]))
    assert not prompt.is_right(" ".join(words[:middle]))
    # The answer is not simply what the user said last.
    assert prompt.kind == "copy" or not prompt.is_right(prompt.messages[-1].content)


def test_code_and_json_are_compared_by_what_they_are():
    said = (Message("user", "?"),)
    record = Prompt("a", "json", said, "json", '{"name": "Old Mill", "rooms": 14}')
    assert record.is_right('```json\n{"rooms": "14",\n "name": "Old Mill"}\n```')
    assert not record.is_right('{"rooms": 15, "name": "Old Mill"}')
    assert not record.is_right('{"rooms": 14, "name": "Old Mill"')
    code = Prompt("b", "edit", said, "code", "```python\nreturn amount\n```")
    assert code.is_right("Here it is:\n\n```\nreturn   amount\n```\nIt returns the amount.")
    assert not code.is_right("```python\nreturn total\n```")
    assert not Prompt("c", "chat", said).is_right("")


def test_loops_are_found_unless_the_prompt_has_them():
    row = [*range(8)]
    assert loops([50, 51], [*row, 9, *row, 10, *row])
    assert not loops([50, 51], [*row, 9, *row])
    assert not loops([50, *row, 51], [*row, 9, *row, 10, *row])
    assert loops([], [7] * 10)
    assert not loops([], [7] * 9)


def test_questions_are_the_first_of_each_category(tmp_path: Path):
    rows = [
        {"question_id": n, "category": f"kind{n % 2}", "turns": [f"first {n}", f"second {n}"]}
        for n in range(9)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = chat(tmp_path / "questions.jsonl", 2)
    assert [prompt.name for prompt in found] == [f"question-{n}" for n in range(4)]
    assert found[1].kind == "kind1" and found[1].messages == (Message("user", "first 1"),)


def answer(tokens: list[int], seconds: float, text: str = "") -> dict:
    return {"text": text, "tokens": tokens, "steps": len(tokens) - 1, "seconds": seconds}


def test_rows_are_medians_without_loops():
    comparison = Comparison.__new__(Comparison)
    said = (Message("user", "?"),)
    comparison.prompts = [
        Prompt("a", "copy", said, "text", "yes"),
        Prompt("b", "copy", said, "text", "yes"),
        Prompt("c", "json", said, "json", "[1]"),
    ]
    comparison.tokens = [[1], [2], [3]]
    plain, lookup = ours(["off", "lookup"])
    first, second, third = [*range(11)], [7] * 11, [*range(21)]
    found = {
        plain: [[answer(first, 1.0), answer(second, 1.0), answer(third, 4.0)] for _ in range(3)],
        lookup: [
            [answer(first, s, "yes"), answer(second, s), answer([*third[:-1], 50], 4.0, "[1]")]
            for s in (0.5, 0.25, 9.0)
        ],
    }
    rows = {(row["setting"], row["kind"]): row for row in rows_of(comparison, found)}
    copied = rows["lookup", "copy"]
    assert (copied["prompts"], copied["loops"], copied["same"], copied["right"]) == (2, 1, 2, 1)
    assert copied["ratio"] == copied["total_ratio"] == 2.0
    everything = rows["lookup", "all"]
    assert (everything["same"], everything["right"], everything["loops"]) == (2, 2, 1)
    assert everything["ratio"] == 1.5 and everything["least_ratio"] == 1.0
    assert everything["total_ratio"] == round(5.0 / 4.5, 3)
    assert everything["tokens_per_second"] == round(30 / 4.5, 1)
    assert rows["off", "all"]["ratio"] == 1.0


def test_trees_are_forced_whatever_they_lose(tiny_config):
    """A network whose guesses are never right and take ten tokens' time is asked for every pass."""
    network = SimpleNamespace(config=draft_shape(tiny_config()))
    guess = DraftTree([1], [-1], [0.001])

    def asked(passes: int) -> int:
        eagle = Eagle(network)  # type: ignore[arg-type]
        for n in range(passes):
            if eagle.rests() or eagle.plan(Budget(6, 4, 0.01, 0.2)) is None:
                return n
            tried = Tried([1], [-1], [log(0.001)], [0.1])
            eagle.record(tried, 1, guess, Budget(6, 4, 0.01, 0.2))
            eagle.settled(-10.0)
        return passes

    with trees_of(3):
        assert asked(500) == 500
    assert asked(500) < 20


def test_answers_are_kept(tmp_path: Path):
    """Nothing is run again, and nothing is taken for another job's."""
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    job = {"threads": 1, "context": 256, "max_new_tokens": 6, "sampling": {"temperature": 0}}
    way = ours(["lookup"])[0]
    prompts = [Prompt("a", "copy", (Message("user", "abc abc abc"),))]

    def measured(job: dict) -> list[dict]:
        return Comparison(str(tmp_path / "model"), prompts, job, tmp_path / "kept").rounds([way], 1)[way][0]

    first = measured(job)
    assert first[0]["steps"] > 0 and first[0]["speculation"]["drafter"] == "lookup"
    assert measured(job) == first
    assert len(measured({**job, "max_new_tokens": 4})[0]["tokens"]) < len(first[0]["tokens"])
    assert len([*(tmp_path / "kept").iterdir()]) == 2


def test_ways_take_turns_and_one_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    job = {"threads": 1, "context": 256, "max_new_tokens": 6, "sampling": {"temperature": 0}}
    prompts = [Prompt(name, "copy", (Message("user", name * 9),)) for name in ("abc ", "de ", "f ")]
    comparison = Comparison(str(tmp_path / "model"), prompts, job, None)
    off, lookup = ours(["off", "lookup"])
    asked: list[str] = []
    answer = Worker.answer
    monkeypatch.setattr(
        Worker, "answer", lambda self, tokens: asked.append(self.name) or answer(self, tokens)
    )
    found = comparison.rounds([off, lookup], 2)
    assert asked == [
        way.name for way in (off, lookup, lookup, off, off, lookup, lookup, off, off, lookup, lookup, off)
    ]
    assert [len(answers) for rounds in found.values() for answers in rounds] == [3] * 4
    assert [each["tokens"] for each in found[off][0]] == [each["tokens"] for each in found[lookup][1]]
    assert found[lookup][0][0]["speculation"] and not found[off][0][0]["speculation"]
    with pytest.raises(SystemExit, match=r"(?s)can't be opened: Unknown model 'nobody'.*edge, nobody failed"):
        comparison.rounds([off, *ours(["nobody"])], 1)


def test_planted_guesses_are_as_often_right_as_they_shall_be():
    sequence = np.arange(3000)
    for right in (0.5, 0.9):
        drafter, lengths = PlantedDrafter(Planted(sequence, right, 5000)), []
        for n in range(500):
            tree = drafter.propose(sequence[: n + 1].astype(np.int32), Budget(8, 8, 1e-2, 0.01))
            hits = np.array(tree.tokens) == sequence[n + 1 : n + 1 + len(tree)]
            lengths.append(len(tree) if hits.all() else int(np.argmin(hits)))
        for depth in range(1, min(6, int(log(0.01) / log(right)))):
            assert np.mean(np.array(lengths) >= depth) == pytest.approx(right**depth, abs=0.02)
        assert tree.chances[2] == pytest.approx(right**3)


def test_predictions_are_of_the_best_chain():
    free = {1: 1.0, 16: 1.0}
    ratio, guesses = predicted(0.5, free)
    assert ratio == pytest.approx(2, abs=0.01) and guesses >= 10
    assert predicted(0.9, {1: 1.0, 2: 3.0, 16: 40.0}) == (1.0, 0)
    ratio, guesses = predicted(0.8, {1: 1.0, 2: 1.18, 4: 1.35, 8: 3.0, 16: 6.0})
    assert guesses == 3 and ratio == pytest.approx((1 + 0.8 + 0.64 + 0.512) / 1.35)
    first = {1: 0.2, 3: 1.2}  # by the rows that it appends, as many as the tokens of a pass
    ratio, guesses = predicted(0.8, {1: 1.0, 2: 1.0, 3: 1.0, 4: 9.0}, first, 0.1)
    assert guesses == 2 and ratio == pytest.approx(2.44 / (1 + 0.2 + 0.5 * 1.44 + 0.1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--parts", "jobs,fly"], "there is no part 'fly'; choose of jobs, chat, draft, planted"),
        (["--rounds", "0"], "'0' is no number of 1 or more"),
    ],
)
def test_a_bad_option_is_a_sentence(arguments: list[str], sentence: str):
    command = [sys.executable, str(SCRIPTS / "bench_speculation.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and sentence in done.stderr
