"""Random drafts of a target's shape, for tests and the cost model: no weights that guess well are needed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.synthetic import random_matrix
from edge.config import ModelConfig
from edge.config.draft import FC, DraftConfig, draft_tensors
from edge.quant.scheme import PackedMatrix, QuantScheme

VERSION = 1
"""Changes when the same arguments would give other bytes."""


def draft_shape(target: ModelConfig, **changes: Any) -> DraftConfig:
    """The shape of the draft that CPM.cu would run for a target: one of the target's layers, with input norms
    and the scales of a MiniCPM draft if the target has them. changes: fields of `DraftConfig` to be others.
    """
    depth = target.scale_depth
    config = DraftConfig(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        head_dim=target.head_dim,
        rms_norm_eps=target.rms_norm_eps,
        max_position_embeddings=target.max_position_embeddings,
        rope=target.rope,
        embedding_scale=target.embedding_scale,
        residual_scale=1.0 if depth is None else depth / (target.num_hidden_layers + 1) ** 0.5,
        logit_scale=target.logit_scale,
        input_norms=target.has_mup_scales,
        attention_norm=target.has_mup_scales,
        fc_bias=not target.has_mup_scales,
    )
    return replace(config, **changes)


class RandomDraft:
    """A draft of random weights; the same arguments give the same bytes. Its head is the target's.

    scheme: of every matrix.
    """

    def __init__(self, config: DraftConfig, scheme: QuantScheme, seed: int = 0) -> None:
        self.config = replace(config, head_rows=None)
        self._seed = seed
        self._tensors = [
            TensorInfo(name, tensor.shape, "random", QuantScheme("f32") if len(tensor.shape) == 1 else scheme)
            for name, tensor in draft_tensors(self.config).items()
        ]
        self._infos = {info.name: info for info in self._tensors}

    @property
    def source(self) -> str:
        """`random:` and the kind of draft."""
        return f"random:{self.config.kind}"

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor of the draft."""
        return self._tensors

    def read(self, name: str) -> npt.NDArray[np.float32] | PackedMatrix:
        """One tensor: norms are ones, the bias zeros, matrices random, so that outputs are as large as
        inputs.
        """
        info = self._infos[name]
        if len(info.shape) == 1:
            return np.full(info.shape, 0 if name.endswith(".bias") else 1, np.float32)
        rows, columns = info.shape
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        # fc adds what comes from the embedding to what comes from the hidden state.
        std = (columns // 2 if name == FC else columns) ** -0.5
        return random_matrix(rng, rows, columns, info.scheme, std)
