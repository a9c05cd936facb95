"""Prompts for a draft's training: what people ask a chat model, and tasks about texts of Debian packages.

What a draft learns from are the model's own answers, so the prompts need no answers, only variety.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from chat_prompts import chat_prompt

Passages = dict[str, list[str]]

_ASKED = (
    *("What is {}?", "What does the word '{}' mean?", "Explain {} to a child of ten.", "Tell me about {}."),
    *("Write a short story in which {} matters.", "List five facts about {}.", "Write a poem about {}."),
    *("What are the advantages and disadvantages of {}?", "How is {} used in daily life?", "Who needs {}?"),
    *("Write an email to a colleague about {}.", "Compose a blog post about {} with three headings."),
    *("Pretend that you are a teacher and explain {}.", "Give three reasons why {} is important."),
    *("What is the history of {}?", "How does {} work?", "Compare {} with something similar."),
    *("Write a dialogue between two friends about {}.", "What should a beginner know about {}?"),
    *("Give step-by-step instructions that have to do with {}.", "Is {} good or bad? Discuss."),
)
_READ = (
    *("Summarize: {}", "Summarize the following text in two sentences.\n\n{}", "{}\n\nWhat is this about?"),
    *("Rewrite the text in simple words:\n\n{}", "Which names and places occur in this text?\n\n{}"),
    *("{}\n\nList the main points.", "Find a title for this text:\n\n{}", "Continue this text:\n\n{}"),
    *("Answer with the help of this text: what happens, and why?\n\n{}", "Translate into German: {}"),
)
_CODED = (
    *("Write a Python function that {}.", "Write a program in C that {}.", "How do I write code that {}?"),
    "Write a shell script that {}, and explain it.",
)
_TASKS = (
    *("reverses a list", "counts the words of a file", "finds the largest number", "sorts names by length"),
    *(
        "checks whether a word is a palindrome",
        "reads a CSV file and prints its columns",
        "adds two matrices",
    ),
    *(
        "finds all prime numbers below n",
        "computes the n-th Fibonacci number",
        "removes duplicates from a list",
    ),
    *(
        "converts Celsius to Fahrenheit",
        "merges two sorted lists",
        "searches a sorted list",
        "draws a square",
    ),
    *("renames all files of a folder", "downloads a page and saves it", "parses a date", "rolls two dice"),
    *("counts how often each letter occurs", "finds files that are larger than a limit", "solves a sudoku"),
)
_NUMBERS = (
    *(
        "A shop sells pens at {} cents. How much do {} pens cost?",
        "What is {} plus {}?",
        "What is {} times {}?",
    ),
    *("What is {} times {}?", "How many hours are {} days and {} hours?"),
    "A train goes {} kilometres in an hour. How far does it go in {} hours?",
    "Anna has {} apples and gives away {} of them. How many are left?",
    "A book has {} pages and Tom reads {} pages a day. How many days does he need?",
    "A rectangle is {} metres long and {} metres wide. What is its area?",
)


def prompts(passages: Passages, seed: int) -> Iterator[str]:
    """Without end. passages: texts by source; the dictionaries' begin with the word that they explain."""
    draw = random.Random(seed)
    lines = [line for name in ("jargon", "wordnet") for text in passages[name] for line in text.split("\n")]
    words = [line.split(":")[0].split(",")[0] for line in lines if ": " in line[:40]]
    read = [text for name in ("austen", "foldoc", "descriptions", "python") for text in passages[name]]

    def passage() -> str:
        text = draw.choice(read).strip()
        start = draw.randrange(max(1, len(text) - 900))
        return text[start : start + draw.randint(200, 900)].strip()

    kinds: list[tuple[int, Callable[[], str]]] = [
        (30, lambda: chat_prompt(draw)),
        (11, lambda: draw.choice(_ASKED).format(draw.choice(words))),
        (6, lambda: draw.choice(_READ).format(passage())),
        (2, lambda: draw.choice(_CODED).format(draw.choice(_TASKS))),
        (1, lambda: draw.choice(_NUMBERS).format(draw.randint(2, 99), draw.randint(2, 30))),
    ]
    while True:
        (kind,) = draw.choices([each for _, each in kinds], [weight for weight, _ in kinds])
        yield kind()


def main() -> None:
    """Write prompts as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "files", type=Path, nargs="*", help="JSON lines with question, or instruction and input"
    )
    parser.add_argument(
        "--without", type=Path, help="prompts that were written before, of which none is taken"
    )
    options = parser.parse_args()
    texts = Path("build/texts")
    passages = {
        name: [each["text"] for each in read_lines(texts / f"{name}.jsonl")]
        for name in ("jargon", "wordnet", "austen", "foldoc", "descriptions", "python")
    }
    found = [*islice(prompts(passages, options.seed), options.count)]
    for file in options.files:
        for each in read_lines(file):
            parts = (each.get(name) for name in ("question", "instruction", "input"))
            found.append("\n\n".join(part for part in parts if part))
    taken = {each["prompt"] for each in read_lines(options.without)} if options.without else set[str]()
    found = [prompt for prompt in dict.fromkeys(found) if prompt not in taken]
    random.Random(options.seed).shuffle(found)
    lines = "".join(json.dumps({"prompt": each}) + "\n" for each in found)
    options.out.write_text(lines, encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, str]]:
    """Objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
