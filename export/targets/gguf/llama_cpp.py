"""Runs tokens through llama.cpp in a process of its own, which a library built for another processor can end.

`main(JOB, OUT)`: JOB is a JSON object with `model` (a GGUF file), `context`, `prompt` (token ids to prefill),
`answer` (ids to decode one by one) and `greedy` (how many to choose after it). OUT gets an .npz with `logits`
[1 + answers, vocabulary], the `tokens` chosen, and the library's `version`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def main(job_text: str, out: str) -> None:
    """See the head of this file."""
    import llama_cpp

    job = json.loads(job_text)
    model = llama_cpp.Llama(
        job["model"], n_ctx=job["context"], n_gpu_layers=0, logits_all=True, verbose=False
    )
    rows, chosen = [], []
    for given in (job["prompt"], *([token] for token in job["answer"])):
        model.eval(given)
        rows.append(model.scores[model.n_tokens - 1].astype(np.float32))
    best = int(rows[-1].argmax())
    for _ in range(job["greedy"]):
        chosen.append(best)
        model.eval([best])
        best = int(model.scores[model.n_tokens - 1].argmax())
    with Path(out).open("wb") as file:
        np.savez(
            file, logits=np.stack(rows), tokens=np.array(chosen), version=np.array(llama_cpp.__version__)
        )
