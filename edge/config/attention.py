"""Dense, sparse or auto: which attention a run uses, decided in one place for every executor and trainer."""

from __future__ import annotations

from typing import Literal, get_args

from edge.config import ModelConfig, SparseConfig
from edge.errors import ConfigError

AttentionMode = Literal["dense", "sparse", "auto"]
"""Values of `--attention`.

dense: every query reads the whole cache. sparse: InfLLM-V2 with the model's `sparse_config`, or with the
published constants if it has none; an error where it can't run. auto: sparse if the model has a
`sparse_config` and this can run it, otherwise dense.
"""


def resolve_attention(
    config: ModelConfig, mode: AttentionMode = "auto", *, context: int, obstacle: str | None = None
) -> SparseConfig | None:
    """The sparse constants of a run, or None for dense attention.

    Sparse still means dense for queries within `dense_len` (a rule per query, so that the pieces in which
    a prompt is processed never change its result). context: the longest sequence of the run, in tokens.
    obstacle: why the executor can't run the model's sparse attention, if it can't. Raises ConfigError when
    sparse was asked for and no query could be sparse, and for an unknown mode.
    """
    if mode not in get_args(AttentionMode):
        raise ConfigError(f"Unknown attention '{mode}'; choose one of {', '.join(get_args(AttentionMode))}.")
    if mode == "dense":
        return None
    obstacle = _obstacle(config.sparse or SparseConfig(), context) or obstacle
    if mode == "sparse":
        if obstacle:
            raise ConfigError(
                f"Sparse attention was asked for but can't run: {obstacle}; use --attention dense."
            )
        return config.sparse or SparseConfig()
    return None if obstacle else config.sparse


def describe_attention(sparse: SparseConfig | None) -> str:
    """The active mode in words, for people: what `resolve_attention` has decided."""
    if sparse is None:
        return "dense"
    visible = (sparse.topk + sparse.local_blocks) * sparse.block_size
    since = f" beyond {sparse.dense_len} tokens" if sparse.dense_len > 0 else ""
    return f"sparse{since} (up to {visible} tokens visible)"


def _obstacle(sparse: SparseConfig, context: int) -> str | None:
    if sparse.use_nope:
        return "the model's sparse_config sets use_nope, which is not supported"
    if context <= sparse.dense_len:
        return f"a context of {context} tokens does not go beyond dense_len ({sparse.dense_len})"
    return None
