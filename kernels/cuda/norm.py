"""The residual stream and its norms. Reference: `RMSNorm` and `Layer` in `edge.model.network.decoder`."""

import triton
import triton.language as tl

from edge.kernels.entry import Entry


@triton.jit
def joined(stream, partial, row, at, inside, rows, columns, slices, scale):
    """stream + scale * (p0 + p1 + ...) of some columns of a row, float32; partial [slices, rows, columns]."""
    place = row.to(tl.int64) * columns + at
    values = tl.load(stream + place, mask=inside, other=0.0)
    if slices > 0:
        total = tl.load(partial + place, mask=inside, other=0.0)
        for part in range(1, slices):
            more = partial + (part * rows + row).to(tl.int64) * columns + at
            total += tl.load(more, mask=inside, other=0.0)
        values += scale * total
    return values


@triton.jit
def add_norm(stream, partial, weight, x, rows, columns, slices, scale, eps, BLOCK: tl.constexpr):
    """stream += scale * sum of partial; x = stream / rms(stream) * weight, float16. A program a row."""
    row = tl.program_id(0)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        values = joined(stream, partial, row, at, inside, rows, columns, slices, scale)
        tl.store(stream + row.to(tl.int64) * columns + at, values, mask=inside)
        squares += values * values
    inverse = tl.rsqrt(tl.sum(squares, 0) / columns + eps)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        place = row.to(tl.int64) * columns + at
        values = tl.load(stream + place, mask=inside, other=0.0)
        factors = tl.load(weight + at, mask=inside, other=0.0)
        tl.store(x + place, (values * inverse * factors).to(tl.float16), mask=inside)


@triton.jit
def final_norm(
    stream,
    partial,
    weight,
    wanted,
    x,
    hidden,
    rows,
    columns,
    slices,
    scale,
    eps,
    logit_scale,
    BLOCK: tl.constexpr,
):
    """The same of rows `wanted`, one a program, with the stream left as it is: hidden float32, and
    x = logit_scale * hidden, float16.
    """
    index = tl.program_id(0)
    row = tl.load(wanted + index)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = joined(stream, partial, row, at, at < columns, rows, columns, slices, scale)
        squares += values * values
    inverse = tl.rsqrt(tl.sum(squares, 0) / columns + eps)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        values = joined(stream, partial, row, at, inside, rows, columns, slices, scale)
        normed = values * inverse * tl.load(weight + at, mask=inside, other=0.0)
        place = index.to(tl.int64) * columns + at
        tl.store(hidden + place, normed, mask=inside)
        tl.store(x + place, (normed * logit_scale).to(tl.float16), mask=inside)


_SIZES = {"rows": "i32", "columns": "i32", "slices": "i32", "scale": "fp32", "eps": "fp32"}
_BLOCK = {"BLOCK": 1024}

ENTRIES = [
    Entry(
        "norm.add",
        add_norm,
        {"stream": "*fp32", "partial": "*fp32", "weight": "*fp32", "x": "*fp16", **_SIZES},
        _BLOCK,
    ),
    Entry(
        "norm.final",
        final_norm,
        {
            "stream": "*fp32",
            "partial": "*fp32",
            "weight": "*fp32",
            "wanted": "*i32",
            "x": "*fp16",
            "hidden": "*fp32",
            **_SIZES,
            "logit_scale": "fp32",
        },
        _BLOCK,
    ),
]
