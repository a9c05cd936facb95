"""Measures OpenVINO GenAI's pipeline with its defaults: `python run_openvino.py JSON`, see `measuring`."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

WARM_UP = 512  # tokens of a prompt


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second by the pipeline's own metrics: time to the first token, and per token after it."""
    pipeline = genai.LLMPipeline(
        str(job["model"]), "CPU", INFERENCE_NUM_THREADS=job["threads"], PERFORMANCE_HINT="LATENCY"
    )
    random, speeds = np.random.default_rng(0), []

    def metrics(prompt: int, tokens: int) -> Any:
        ids = random.integers(3, job["vocabulary"], (1, prompt)).astype(
            np.int64
        )  # others every time: nothing is reused
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample = True, False
        return pipeline.generate(inputs, config).perf_metrics

    for test, tokens, depth, _ in job["tests"]:
        if test == "prefill":
            metrics(min(tokens, WARM_UP), 1)
            speeds.append(tokens / metrics(tokens, 1).get_ttft().mean * 1e3)
        else:
            metrics(depth, 4)
            speeds.append(1e3 / metrics(depth, tokens + 1).get_tpot().mean)
    return {"speeds": speeds, "facts": {}}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
