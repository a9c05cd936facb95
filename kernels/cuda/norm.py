"""Additions to the residual stream, and RMSNorm. Reference: `edge.model.network.decoder.RMSNorm`."""

import triton
import triton.language as tl

from edge.executors.cuda.operators.norm import SIZES
from edge.kernels.entry import Entry
from edge.kernels.linear import summed


@triton.jit
def norm(
    stream,
    partials,
    weights,
    x,
    slices,
    rows,
    columns,
    scale,
    epsilon,
    ADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """stream[row] += scale * sum of the slices of partials[:, row] where ADDED; x[row] = norm of stream[row].

    One program for a row. stream float32 [rows, columns], partials float32 [slices, rows, columns], weights
    float32 [columns], x float16 [rows, columns].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    at = row * columns + column
    values = tl.load(stream + at, mask=inside, other=0.0)
    if ADDED:
        values = tl.fma(summed(partials, slices, rows * columns, at, inside), scale, values)
        tl.store(stream + at, values, mask=inside)
    normed = _normed(values, weights, column, columns, epsilon)
    tl.store(x + at, normed.to(tl.float16), mask=inside)


@triton.jit
def last_norm(
    stream,
    partials,
    weights,
    wanted,
    x,
    hidden,
    slices,
    rows,
    columns,
    scale,
    epsilon,
    logit_scale,
    BLOCK: tl.constexpr,
):
    """hidden[i] = norm of row wanted[i] of the stream after the last product, x[i] = the same times
    logit_scale.

    One program for each of `wanted`, int32, where -1 is a row that nobody looks at. hidden float32, x float16
    [their number, columns]; the others as in `norm`.
    """
    place = tl.program_id(0).to(tl.int64)
    row = tl.maximum(tl.load(wanted + place), 0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    at = row * columns + column
    values = tl.load(stream + at, mask=inside, other=0.0)
    values = tl.fma(summed(partials, slices, rows * columns, at, inside), scale, values)
    normed = _normed(values, weights, column, columns, epsilon)
    to = place * columns + column
    tl.store(hidden + to, normed, mask=inside)
    tl.store(x + to, (normed * logit_scale).to(tl.float16), mask=inside)


@triton.jit
def _normed(values, weights, column, columns, epsilon):
    """values / sqrt(mean of their squares + epsilon) * weights; those beyond `columns` are zero."""
    factor = tl.rsqrt(tl.sum(values * values, 0) / columns + epsilon)
    return values * factor * tl.load(weights + column, mask=column < columns, other=0.0)


def _entry(name, function, pointers, scalars, constants, block):
    signature = {
        **pointers,
        **dict.fromkeys(("slices", "rows", "columns"), "i32"),
        **dict.fromkeys(scalars, "fp32"),
    }
    constants = {**constants, "BLOCK": block}
    return Entry(
        f"{name}.{block}", function, signature, constants, aligned=("columns",), warps=min(block // 256, 16)
    )


_STREAM = {"stream": "*fp32", "partials": "*fp32", "weights": "*fp32"}
_SCALARS = ("scale", "epsilon")
ENTRIES = [
    *(
        _entry("norm.plain", norm, {**_STREAM, "x": "*fp16"}, _SCALARS, {"ADDED": False}, size)
        for size in SIZES
    ),
    *(
        _entry("norm.added", norm, {**_STREAM, "x": "*fp16"}, _SCALARS, {"ADDED": True}, size)
        for size in SIZES
    ),
    *(
        _entry(
            "norm.last",
            last_norm,
            {**_STREAM, "wanted": "*i32", "x": "*fp16", "hidden": "*fp32"},
            (*_SCALARS, "logit_scale"),
            {},
            size,
        )
        for size in SIZES
    ),
]
