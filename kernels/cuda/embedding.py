"""Rows of the embedding as the residual stream of a pass, as `edge.model.network.decoder.Backbone` has it."""

import triton
import triton.language as tl

from edge.kernels.entry import Entry


@triton.jit
def embed(tokens, table, stream, columns, scale, BLOCK: tl.constexpr):
    """stream[i] = scale * table[tokens[i]]; one program a row. tokens int32 [rows], table [vocabulary,
    columns], stream float32 [rows, columns].
    """
    row = tl.program_id(0)
    token = tl.load(tokens + row).to(tl.int64)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        values = tl.load(table + token * columns + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(stream + row.to(tl.int64) * columns + at, values * scale, mask=inside)


ENTRIES = [
    Entry(
        "embed.f16",
        embed,
        {"tokens": "*i32", "table": "*fp16", "stream": "*fp32", "columns": "i32", "scale": "fp32"},
        {"BLOCK": 1024},
    )
]
