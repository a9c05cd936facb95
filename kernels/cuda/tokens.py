"""What the kernels of sampling share: a row's settings, its peak, and how much a token weighs.

A weight is exp((logit - peak) / temperature), at most 1, by the polynomial of the host's sampler. Masses are
weights as whole numbers of 2^-44, so that sums of them are exact and have no order; a token of less has no
mass and is never drawn.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators.draws import SETTINGS


def _word(name: str) -> tl.constexpr:
    assert SETTINGS.fields is not None
    return tl.constexpr(SETTINGS.fields[name][1] // 4)


WORDS = tl.constexpr(SETTINGS.itemsize // 4)
INVERSE_TEMPERATURE = _word("inverse_temperature")
TOP_K = _word("top_k")
TOP_P = _word("top_p")
MIN_P = _word("min_p")
REPETITION = _word("repetition_penalty")
FREQUENCY = _word("frequency_penalty")
PRESENCE = _word("presence_penalty")
HISTORY_START = _word("history_start")
HISTORY_LENGTH = _word("history_length")
BIAS_START = _word("bias_start")
BIAS_LENGTH = _word("bias_length")
MASK = _word("mask")
LOGPROBS = _word("logprobs")
SEED = _word("seed")
INDEX = _word("index")
CHOICE = _word("choice")

ONE = tl.constexpr(0x3F800000)
"""The bits of the weight 1."""
LEAST_OCTAVE = tl.constexpr(44)
"""2^-44 is the least weight that has mass, and its mass is 1."""
LEAST = tl.constexpr((127 - 44) << 23)
"""Its bits."""
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it becomes a whole number


@triton.jit
def decimal(row, WORD: tl.constexpr):
    """A float32 among the settings of a row."""
    return tl.load(row + WORD).to(tl.float32, bitcast=True)


@triton.jit
def wide(row, WORD: tl.constexpr):
    """A uint64 among the settings of a row."""
    low = tl.load(row + WORD).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(row + WORD + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    return (high << 32) | low


@triton.jit
def peak_of(peaks, row, chunks, CHUNKS: tl.constexpr):
    """The largest of a row's chunks' peaks, float32 [rows, chunks]; infinity if a chunk has what is none."""
    at = tl.arange(0, CHUNKS)
    return tl.max(tl.load(peaks + row * chunks + at, mask=at < chunks, other=float("-inf")))


@triton.jit
def exponential(x):
    """exp of x <= 0, and 0 below -87 and for NaN; see `exp_negative` in kernels/src/sampler/passes_impl.h."""
    counts = (x >= -87.0) & (x <= 0.0)
    x = tl.where(counts, x, 0.0)
    shifted = x * 1.44269504 + _ROUND
    n = shifted - _ROUND
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    scale = ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(counts, p * scale, 0.0)


@triton.jit
def weight(x, peak, inverse_temperature):
    """The bits of the weight of a logit, int32, which have its order; 0 for one without mass."""
    bits = exponential((x - peak) * inverse_temperature).to(tl.int32, bitcast=True)
    return tl.where(bits >= LEAST, bits, 0)


@triton.jit
def mass(bits):
    """int64 from the bits of a weight."""
    mantissa = ((bits & 0x7FFFFF) | 0x800000).to(tl.int64) << 21
    return tl.where(bits > 0, mantissa >> tl.minimum(127 - (bits >> 23), 63).to(tl.int64), 0)


@triton.jit
def octave(bits, OCTAVES: tl.constexpr):
    """0 for weights of 1, 1 for those from 1/2 on, ...; OCTAVES for those without mass."""
    return tl.where(bits > 0, tl.minimum(127 - (bits >> 23), OCTAVES - 1), OCTAVES)


@triton.jit
def order(x):
    """A logit as an int32 of the same order; it may not be -0."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def share_of(total, share):
    """share / 2^64 of a mass, int64 and at least 1, so that a token is kept."""
    return tl.maximum(tl.umulhi(total.to(tl.uint64), share).to(tl.int64), 1)
