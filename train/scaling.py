"""How many tokens a step should have (MiniCPM, arXiv 2404.06395, section 3.3).

Fitted by its authors on networks of 9 M to 200 M parameters on C4: the lower the loss, the larger the best
batch.
"""

from __future__ import annotations

from math import inf

from edge.errors import TrainingError

_FACTOR, _EXPONENT = 1.21e9, 6.24


def best_batch(loss: float) -> float:
    """Tokens of a step at which a loss, in nats per token, is reached with the fewest tokens."""
    if not 0 < loss < inf:
        raise TrainingError(f"A loss is a positive number, not {loss:g}.")
    return float(_FACTOR / loss**_EXPONENT)


def loss_of_batch(tokens: float) -> float:
    """The loss whose best batch has so many tokens."""
    return float((_FACTOR / tokens) ** (1 / _EXPONENT))
