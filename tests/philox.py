"""The random numbers of the sampler written down a second time, and backwards: which token gets a wanted
number.
"""

from __future__ import annotations

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_INVERSES = tuple(pow(multiplier, -1, 2**32) for multiplier in _MULTIPLIERS)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_WORD = 2**32 - 1

Words = tuple[int, int, int, int]


def _keys(key: tuple[int, int]) -> list[tuple[int, int]]:
    return [((key[0] + r * _WEYL[0]) & _WORD, (key[1] + r * _WEYL[1]) & _WORD) for r in range(_ROUNDS)]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 (Salmon et al. 2011)."""
    a, b, c, d = counter
    for first, second in _keys(key):
        x, y = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (y >> 32) ^ b ^ first, y & _WORD, (x >> 32) ^ d ^ second, x & _WORD
    return a, b, c, d


def counter_of(out: Words, key: tuple[int, int]) -> Words:
    """The counter for which `philox` gives `out`."""
    a, b, c, d = out
    for first, second in reversed(_keys(key)):
        before_c, before_a = b * _INVERSES[1] & _WORD, d * _INVERSES[0] & _WORD
        b = a ^ (_MULTIPLIERS[1] * before_c >> 32) ^ first
        d = c ^ (_MULTIPLIERS[0] * before_a >> 32) ^ second
        a, c = before_a, before_c
    return a, b, c, d


def place_of(random: float, seed: int) -> tuple[int, int]:
    """index and choice for which the sampler's random number is the largest 53-bit one up to `random`."""
    bits = int(random * 2**53) << 11
    low, high, choice_low, choice_high = counter_of(
        (bits >> 32, bits & _WORD, 0, 0), (seed & _WORD, seed >> 32)
    )
    return low | high << 32, choice_low | choice_high << 32
