"""What a step costs in floating-point operations, and the share of the device's peak that a run
reaches.

Operations are those of the model, not of its program: what gradient checkpointing computes again doesn't
count (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import math
import time
from functools import cache

import torch

from edge.config import ModelConfig
from edge.config.tensors import expected_tensors

_PEAK_SIZE = 1024
_PEAK_SECONDS = 0.2
_PEAK_SAMPLES = 3


def active_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied by: all but an embedding that is no head, too."""
    everything = sum(math.prod(shape) for shape in expected_tensors(config).values())
    return everything - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)


def flops_per_token(
    config: ModelConfig, length: int, *, multi_token: bool = False, is_sparse: bool = False
) -> float:
    """Operations of a forward and a backward pass per token, in rows of so many tokens.

    6 for every weight that a token is multiplied by, and attention's two products: a query reads half the
    row on average, as if the row were one document, and no more than its blocks if attention is sparse;
    forward 4 operations for each value that it reads, backward twice that.
    """
    reads = length / 2
    if is_sparse and config.sparse is not None and length > config.sparse.dense_len:
        blocks = config.sparse.topk + config.sparse.local_blocks
        reads = min(reads, blocks * config.sparse.block_size)
    active = active_parameters(config)
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * reads
    total = 6.0 * active + 12.0 * attention
    if multi_token:  # one more layer, its projection of two to one, and the head again
        layer = (active - config.vocab_size * config.hidden_size) / config.num_hidden_layers
        head = config.vocab_size * config.hidden_size
        total += (
            6.0 * (layer + 2 * config.hidden_size**2 + head) + 12.0 * attention / config.num_hidden_layers
        )
    return total


@cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a product of two square matrices, the best of some: the peak that runs are
    held to.
    """
    size = _PEAK_SIZE if device.type == "cpu" else 8 * _PEAK_SIZE
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds: list[float] = []
    ends = time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < ends or len(seconds) < _PEAK_SAMPLES:  # the first makes the kernel, for long
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
