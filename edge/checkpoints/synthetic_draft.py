"""Random drafts of a target's shape, for tests and the cost model: no weights that guess well are needed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.frequency_list import TokenIds
from edge.checkpoints.synthetic import random_matrix
from edge.config import ModelConfig
from edge.config.draft import FC, DraftConfig, DraftKind, block_taps, draft_tensors, usual_taps
from edge.quant.scheme import PackedMatrix, QuantScheme

VERSION = 1
"""Changes when the same arguments would give other bytes."""


_USUAL_ROWS = 32000  # of the heads of public EAGLE-3 drafts
_USUAL_LAYERS, _USUAL_BLOCK, _USUAL_RANK = 5, 7, 256  # of public DSpark drafts


def draft_shape(target: ModelConfig, kind: DraftKind = "eagle2", **changes: Any) -> DraftConfig:
    """The usual shape of a draft of some kind for a target. changes: fields of `DraftConfig` to be others.

    eagle2: what CPM.cu would run, one of the target's layers, with input norms and the scales of a MiniCPM
    draft if the target has them. eagle3: one such layer without scales, over a head of 32,000 rows. mtp: what
    `train` leaves beside a model that has learned to tell the token after next. dspark: five layers that
    guess a block of seven, as OpenBMB's and LiquidAI's.
    """
    depth, layers = target.scale_depth, target.num_hidden_layers
    residual_scale = 1.0 if depth is None else depth / (layers + 1) ** 0.5
    fields = {
        "kind": kind,
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "intermediate_size": target.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": target.num_attention_heads,
        "num_key_value_heads": target.num_key_value_heads,
        "head_dim": target.head_dim,
        "rms_norm_eps": target.rms_norm_eps,
        "max_position_embeddings": target.max_position_embeddings,
        "rope": target.rope,
        "embedding_scale": target.embedding_scale,
    }
    own: Mapping[str, Mapping[str, Any]] = {
        "eagle2": {
            "residual_scale": residual_scale,
            "logit_scale": target.logit_scale,
            "input_norms": target.has_mup_scales,
            "attention_norm": target.has_mup_scales,
            "fc_bias": not target.has_mup_scales,
        },
        "eagle3": {
            "input_norms": True,
            "output_norm": True,
            "taps": usual_taps(layers),
            "head_rows": min(_USUAL_ROWS, target.vocab_size),
        },
        "mtp": {
            "residual_scale": residual_scale,
            "logit_scale": target.logit_scale,
            "input_norms": True,
            "attention_norm": True,
            "output_norm": True,
            "taps": (layers - 1,),
            "rope": None if 0 in target.layers_without_rope else target.rope,  # its layer is like the first
        },
        "dspark": {
            "num_hidden_layers": _USUAL_LAYERS,
            "logit_scale": target.logit_scale,
            "attention_norm": True,
            "output_norm": True,
            "taps": block_taps(layers),
            "block_size": _USUAL_BLOCK,
            "mask_token": target.vocab_size - 1,
            "anchor_tells": True,
            "markov_rank": _USUAL_RANK,
            "confidence": True,
        },
    }
    return DraftConfig(**{**fields, **own[kind], **changes})


class RandomDraft:
    """A draft of random weights; the same arguments give the same bytes. Its head is the target's, unless it
    is of a kind with a head of its own, whose rows are those of the first tokens.

    scheme: of every matrix.
    """

    def __init__(self, config: DraftConfig, scheme: QuantScheme, seed: int = 0) -> None:
        self.config = config if config.trained_head else config.with_head(None)
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

    @property
    def token_ids(self) -> TokenIds | None:
        """The tokens of its own head's rows."""
        rows = self.config.head_rows
        return None if rows is None else np.arange(rows, dtype=np.int32)

    def read(self, name: str) -> npt.NDArray[np.float32] | PackedMatrix:
        """One tensor: norms are ones, the bias zeros, matrices random, so that outputs are as large as
        inputs.
        """
        info = self._infos[name]
        if len(info.shape) == 1:
            return np.full(info.shape, 0 if name.endswith(".bias") else 1, np.float32)
        rows, columns = info.shape
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        # An fc of two adds what comes from the embedding to what comes from the hidden state.
        adds = name == FC and not (self.config.joins_in_attention or self.config.is_block)
        std = (columns // 2 if adds else columns) ** -0.5
        return random_matrix(rng, rows, columns, info.scheme, std)
