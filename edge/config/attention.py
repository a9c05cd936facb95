"""Dense, sparse or auto: which attention a run uses, decided in one place for every executor and trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from edge.config import ModelConfig, SparseConfig
from edge.errors import ConfigError

AttentionMode = Literal["dense", "sparse", "auto"]
"""Values of `--attention`.

dense: every query reads the whole cache. sparse: InfLLM-V2 with the model's `sparse_config`, or with the
published constants if it has none; an error where it can't run. auto: sparse if the model has a
`sparse_config` and this can run it, otherwise dense.
"""

Selection = Literal["paper", "minicpm4", "infllmv2"]
"""Values of `--selection`, which asks for sparse attention and says whose choice of blocks, where public code
differs.

paper: scores are normalised over the coarse kernels, and `window_size` counts the query's own block, as in
CPM.cu. minicpm4: over the fine kernels, and one local block more stands for one scored block less, as in the
modelling code that MiniCPM4 was published with. infllmv2: those blocks with the first normaliser, as in later
code (MiniCPM-SALA's in SGLang).
"""


def with_selection(config: ModelConfig, selection: Selection | None) -> ModelConfig:
    """The config with the constants of somebody's choice of blocks; None keeps the model's own."""
    if selection is None:
        return config
    own = config.sparse or SparseConfig()
    sparse = replace(own, exact_lse=selection == "minicpm4")
    if selection != "paper":
        sparse = replace(sparse, window_size=own.window_size + own.block_size, topk=own.topk - 1)
    return replace(config, sparse=sparse)


def asked_attention(mode: AttentionMode, selection: Selection | None) -> AttentionMode:
    """What `--attention` and `--selection` ask for together; ConfigError where they contradict each other."""
    if selection is None:
        return mode
    if mode == "dense":
        raise ConfigError(
            f"The selection '{selection}' chooses blocks of sparse attention, but dense attention was asked "
            "for; leave one of them out."
        )
    return "sparse"


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
