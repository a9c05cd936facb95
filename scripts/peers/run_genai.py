"""Measures onnxruntime-genai's generator: `python run_genai.py JSON`, see `measuring`."""

from __future__ import annotations

import json
import sys
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime_genai as genai

WARM_UP = 4


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of every test; the likeliest token is taken."""
    config = genai.Config(str(job["model"]))
    options = {"intra_op_num_threads": job["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model, random, speeds = genai.Model(config), np.random.default_rng(0), []

    def run(prompt: int, tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and of those after it."""
        parameters = genai.GeneratorParams(model)
        length = prompt + tokens + 1
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, parameters)
        ids = random.integers(3, job["vocabulary"], (1, prompt)).astype(np.int32)
        started = perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        return first - started, perf_counter() - first

    for test, tokens, depth, _ in job["tests"]:
        if test == "prefill":
            run(min(tokens, 512), 0)
            speeds.append(tokens / run(tokens, 0)[0])
        else:
            run(depth, WARM_UP)
            speeds.append(tokens / run(depth, tokens)[1])
    return {"speeds": speeds, "facts": {}}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
