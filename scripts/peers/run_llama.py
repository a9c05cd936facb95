"""Measures llama.cpp through the bindings of llama-cpp-python: `python run_llama.py JSON`, see `measuring`.

Further arguments: flash_attention, and kv, one of KV_TYPES. A deep context is not computed: the state of a
short one is saved, its keys and values are repeated, and loaded back. Time depends on how many cells there
are, not on what they hold.
"""

from __future__ import annotations

import ctypes
import json
import sys
from time import perf_counter
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
from llama_state import stretched

KV_TYPES = {"float16": 1, "q8_0": 8}
BATCH, ROOM, SEED_CELLS, WARM_UP = 2048, 256, 512, 4


class Context:
    """A model of llama.cpp and its sequences; all but `feed_all` is about the first."""

    def __init__(self, job: dict[str, Any]) -> None:
        quiet = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(quiet, None)
        self._quiet = quiet  # ctypes frees it otherwise
        llama.llama_backend_init()
        path = str(job["model"]).encode()
        self.model = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp can't load {job['model']}.")
        options = llama.llama_context_default_params()
        options.n_seq_max = max(streams for *_, streams in job["tests"])
        longest = max(tokens + depth for _, tokens, depth, _ in job["tests"])
        options.n_ctx = options.n_seq_max * (longest + ROOM)
        options.n_batch = BATCH
        options.n_threads = options.n_threads_batch = job["threads"]
        name = "flash_attn_type" if hasattr(options, "flash_attn_type") else "flash_attn"
        setattr(options, name, int(job["flash_attention"]))
        options.type_k = options.type_v = KV_TYPES[job.get("kv", "float16")]
        self.context = llama.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit("llama.cpp makes no context of that size.")
        self.memory = llama.llama_get_memory(self.context)
        count = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self._random, self._count = np.random.default_rng(0), count

    def feed(self, tokens: int, batch: int = BATCH) -> float:
        """Seconds of random tokens after those that are there, in batches; logits of each batch's last."""
        ids = self._random.integers(3, self._count, tokens)
        started = perf_counter()
        for start in range(0, tokens, batch):
            piece = [int(each) for each in ids[start : start + batch]]
            array = (llama.llama_token * len(piece))(*piece)  # a batch is a pointer to it
            if llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(piece))):
                raise SystemExit("llama.cpp could not decode.")
            llama.llama_get_logits(self.context)  # waits for them
        return perf_counter() - started

    def feed_all(self, tokens: int, depth: int, streams: int) -> float:
        """Seconds of so many random tokens for each sequence, one of each in a batch, from `depth` on."""
        batch = llama.llama_batch_init(streams, 0, 1)
        batch.n_tokens = streams
        started = perf_counter()
        for position in range(depth, depth + tokens):
            for at, token in enumerate(self._random.integers(3, self._count, streams)):
                batch.token[at], batch.pos[at] = int(token), position
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, at, 1
            if llama.llama_decode(self.context, batch):
                raise SystemExit("llama.cpp could not decode.")
            llama.llama_get_logits(self.context)
        seconds = perf_counter() - started
        llama.llama_batch_free(batch)
        return seconds

    def share(self, streams: int) -> None:
        """Let the sequences after the first be copies of it."""
        for other in range(1, streams):
            llama.llama_memory_seq_rm(self.memory, other, -1, -1)
            llama.llama_memory_seq_cp(self.memory, 0, other, -1, -1)

    def reach(self, depth: int) -> None:
        """Make the sequence so long."""
        self.cut(0)
        if not depth:
            return
        self.feed(min(depth, SEED_CELLS))
        if depth <= SEED_CELLS:
            return
        size = llama.llama_state_seq_get_size(self.context, 0)
        state = np.empty(size, np.uint8)
        pointer = ctypes.POINTER(ctypes.c_uint8)
        read = llama.llama_state_seq_get_data(self.context, state.ctypes.data_as(pointer), size, 0)
        long = stretched(state[:read].tobytes(), depth)
        self.cut(0)
        if (
            llama.llama_state_seq_set_data(self.context, long.ctypes.data_as(pointer), long.size, 0)
            != long.size
        ):
            raise SystemExit("llama.cpp does not take the state back.")

    def cut(self, depth: int) -> None:
        """Forget what lies behind."""
        llama.llama_memory_seq_rm(self.memory, 0, depth, -1)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of every test; nothing is sampled."""
    context, speeds = Context(job), []
    for test, tokens, depth, streams in job["tests"]:
        context.reach(depth)
        if streams > 1:
            context.share(streams)
            context.feed_all(WARM_UP, depth, streams)
            seconds = context.feed_all(tokens, depth + WARM_UP, streams)
            speeds.append(streams * tokens / seconds)
            continue
        batch = 1 if test == "decode" else BATCH
        context.feed(WARM_UP if test == "decode" else min(tokens, SEED_CELLS), batch)
        context.cut(depth)
        speeds.append(tokens / context.feed(tokens, batch))
    facts = {
        "read_bytes": llama.llama_model_size(context.model),
        "features": llama.llama_print_system_info().decode(),
    }
    return {"speeds": speeds, "facts": facts}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
