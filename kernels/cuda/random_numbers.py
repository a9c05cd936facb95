"""Numbers that are a function of a seed and of what they are for: Philox4x32-10 (Salmon et al. 2011).
Reference: kernels/src/sampler/philox.h.
"""

import triton
import triton.language as tl


@triton.jit
def uniform(seed, index, choice):
    """uint64: the random number in [0, 1) of one token of one answer, times 2^64, a multiple of 2^11."""
    word = 0xFFFFFFFF
    a, b = index & word, index >> 32
    c, d = choice & word, choice >> 32
    first, second = seed & word, seed >> 32
    for _ in tl.static_range(10):
        x, y = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (y >> 32) ^ b ^ first, y & word, (x >> 32) ^ d ^ second, x & word
        first, second = (first + 0x9E3779B9) & word, (second + 0xBB67AE85) & word
    return ((a << 32) | b) & 0xFFFFFFFFFFFFF800
