"""Logits, and the token with the largest. Reference: `torch.argmax`, the lower id of equal ones."""

import triton
import triton.language as tl

from edge.executors.cuda.operators.head import COMPARED, MOST_BLOCKS, SUMMED
from edge.kernels.entry import Entry
from edge.kernels.linear import summed


@triton.jit
def logits(partials, out, slices, rows, vocabulary, BLOCK: tl.constexpr):
    """out = sum of the slices, one program for BLOCK tokens of a row. partials float32 [slices, rows,
    vocabulary].
    """
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocabulary
    at = row * vocabulary + token
    tl.store(out + at, summed(partials, slices, rows * vocabulary, at, inside), mask=inside)


@triton.jit
def largest_of_block(logits, values, tokens, vocabulary, BLOCK: tl.constexpr):
    """values, tokens [rows, blocks]: the largest logit of each BLOCK tokens and its token. logits float32
    [rows, vocabulary].
    """
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocabulary
    value = tl.load(logits + row * vocabulary + token, mask=inside, other=float("-inf"))
    place = row * tl.num_programs(0) + block
    largest, first = _largest(value, token, inside, vocabulary)
    tl.store(values + place, largest)
    tl.store(tokens + place, first)


@triton.jit
def largest_of_blocks(values, tokens, best, blocks, vocabulary, BLOCK: tl.constexpr):
    """best int32 [rows] = the token of the largest of values float32 [rows, blocks]; blocks <= BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    inside = block < blocks
    value = tl.load(values + row * blocks + block, mask=inside, other=float("-inf"))
    token = tl.load(tokens + row * blocks + block, mask=inside, other=0)
    _, first = _largest(value, token, inside, vocabulary)
    tl.store(best + row, first)


@triton.jit
def _largest(value, token, inside, vocabulary):
    """(the largest value, the lowest token that has it); some token even where nothing is a number."""
    largest = tl.max(value, 0)
    return largest, tl.min(tl.where(inside & (value == largest), token, vocabulary - 1), 0)


_NUMBERS = {"slices": "i32", "rows": "i32", "vocabulary": "i32"}
ENTRIES = [
    Entry("logits", logits, {"partials": "*fp32", "out": "*fp32", **_NUMBERS}, {"BLOCK": SUMMED}),
    Entry(
        "argmax.tokens",
        largest_of_block,
        {"logits": "*fp32", "values": "*fp32", "tokens": "*i32", "vocabulary": "i32"},
        {"BLOCK": COMPARED},
        warps=8,
    ),
    Entry(
        "argmax.blocks",
        largest_of_blocks,
        {"values": "*fp32", "tokens": "*i32", "best": "*i32", "blocks": "i32", "vocabulary": "i32"},
        {"BLOCK": MOST_BLOCKS},
    ),
]
