"""Answers prompts with this project: `python run_edge.py`, a job as JSON on its input, see `comparison`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from forced import trees_of

import edge

WARM_UP = 16  # tokens that do not count


def answers(job: dict[str, Any]) -> list[dict[str, Any]]:
    """One for each prompt: tokens, seconds of those after the first, and what guesses did."""
    found = []
    options = {"threads": job["threads"], "context": job["context"], **job["options"]}
    with trees_of(job.get("nodes")), edge.load(job["model"], prefix_memory=0, **options) as model:
        model.complete(list(range(3, 3 + WARM_UP)), temperature=0, max_new_tokens=WARM_UP)
        for prompt in job["prompts"]:
            done = model.complete(prompt, max_new_tokens=job["max_new_tokens"], **job["sampling"])
            steps = len(done.tokens) - (done.stop_reason != "eos")  # the end token is a step as well
            found.append(
                {
                    "text": done.text,
                    "tokens": done.tokens,
                    "steps": steps,
                    "seconds": steps / done.tokens_per_second if done.tokens_per_second else 0.0,
                    "speculation": done.speculation and asdict(done.speculation),
                }
            )
    return found


if __name__ == "__main__":
    print(json.dumps(answers(json.load(sys.stdin))))
