"""Answers prompts with this project: `python run_edge.py`, a worker as `comparison` has them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from forced import trees_of

import edge

WARM_UP = 16  # tokens that do not count


def answers(job: dict[str, Any], prompts: Iterable[list[int]]) -> Iterator[dict[str, Any]]:
    """One for each prompt: tokens, seconds of those after the first, and what guesses did."""
    options = {"threads": job["threads"], "context": job["context"], **job["options"]}
    with trees_of(job.get("nodes")), edge.load(job["model"], prefix_memory=0, **options) as model:
        model.complete(list(range(3, 3 + WARM_UP)), temperature=0, max_new_tokens=WARM_UP)
        print("ready", flush=True)
        for prompt in prompts:
            done = model.complete(prompt, max_new_tokens=job["max_new_tokens"], **job["sampling"])
            steps = len(done.tokens) - (done.stop_reason != "eos")  # the end token is a step as well
            yield {
                "text": done.text,
                "tokens": done.tokens,
                "steps": steps,
                "seconds": steps / done.tokens_per_second if done.tokens_per_second else 0.0,
                "speculation": done.speculation and asdict(done.speculation),
            }


if __name__ == "__main__":
    for answer in answers(json.loads(sys.stdin.readline()), map(json.loads, sys.stdin)):
        print(json.dumps(answer), flush=True)
