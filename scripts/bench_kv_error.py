"""What an int16, float16, int8 or int4 KV cache costs attention in accuracy, beside attention over float32.

    python scripts/bench_kv_error.py

Random keys, queries and values. The last line is one JSON document: per shape and type the root mean square
of the error, of the output's.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from edge.executors.native import library as native
from edge.executors.native.operators import LayerCache, LayerOperators
from edge.executors.native.pool import ScratchBuffer, ThreadPool
from edge.executors.native.shapes import sparse_constants

SHAPES = (
    (16, 2, 64),
    (32, 2, 128),
    (9, 3, 64),
)  # heads, KV heads, head_dim: of the 0.5B, the 8B and SmolLM2-135M
POSITIONS = (256, 2048)


def attention(
    run: LayerOperators, kv_type: str, shape: tuple[int, int, int], rows: int
) -> npt.NDArray[np.float32]:
    """The output of the last of so many tokens."""
    heads, kv_heads, dim = shape
    cache = LayerCache(native.KV_TYPE[kv_type], heads, kv_heads, dim, rows, sparse_constants(None))
    memory = np.zeros(cache.size(), np.uint8)
    qkv = np.random.default_rng(0).standard_normal((rows, (heads + 2 * kv_heads) * dim), dtype=np.float32)
    frequencies = (10000.0 ** (-np.arange(dim // 2) / (dim // 2))).astype(np.float32)
    rope = run.rope_table(range(rows), frequencies, 1.0)
    run.kv_append(cache, memory, qkv[:-1], rope[:-1], 0, None)
    queries = run.kv_append(cache, memory, qkv[-1:], rope[-1:], rows - 1, None)
    return run.paged_attention(cache, memory, queries, rows - 1, None)


def main() -> None:
    pool, buffer = ThreadPool(), ScratchBuffer()
    run = LayerOperators(pool.parallel, buffer.scratch)
    found = []
    for shape in SHAPES:
        for rows in POSITIONS:
            exact = attention(run, "float32", shape, rows)
            errors = {}
            for kv_type in ("int16", "float16", "int8", "int4"):
                error = attention(run, kv_type, shape, rows) - exact
                errors[kv_type] = round(float(np.sqrt((error**2).mean() / (exact**2).mean())), 6)
            found.append({"shape": shape, "positions": rows, "errors": errors})
            print(f"heads {shape[0]}/{shape[1]} of {shape[2]}, {rows} positions: {errors}")
    print(json.dumps({"results": found}))


if __name__ == "__main__":
    main()
