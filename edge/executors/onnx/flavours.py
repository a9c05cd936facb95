"""What the two flavours of exported ONNX models take and give: names, shapes and caches.

`edge.executors.onnx.executor` runs either. Arrays are NumPy's; those of a cache are read and written in
place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig, SparseConfig
from edge.errors import EdgeError
from edge.executors.checks import MAX_TREE
from edge.executors.native.operators import EXPORTED_KV, LayerOperators
from edge.executors.native.pool import ScratchBuffer, ThreadPool
from edge.executors.native.shapes import layer_cache
from edge.executors.protocol import Capabilities
from edge.formats.artifact.manifest import ArtifactManifest

Array = npt.NDArray[Any]
CacheArrays = dict[tuple[str, str], Array]
"""(name of the input, name of the output) -> the memory that both are bound to."""

SESSION_ENTRIES = {"session.intra_op.spin_duration_us": "50"}
"""Entries of a session's configuration that are good for decoding.

Threads of ONNX Runtime wait busily for their next work, by default for so long that they never sleep while
tokens are made: beside other programs that costs more than half of the speed. 50 us bridge the gaps between
operators.
"""


class Portable:
    """Operators of ONNX Runtime alone: float32 caches [1, KV heads, context, head_dim], no trees.

    capabilities: what the graph can do.
    least_logits: of how many tokens logits are computed at least.
    """

    needs_operators = False
    least_logits = 0
    capabilities = Capabilities(kv_types=("float32",))

    def __init__(self, manifest: ArtifactManifest, context: int, sparse: SparseConfig | None) -> None:
        """sparse: the constants of sparse attention, which this flavour does not have."""
        self._config, self._context = manifest.config, context

    def new_cache(self) -> CacheArrays:
        """Zeros, which take no memory until they are written."""
        shape = (1, self._config.num_key_value_heads, self._context, self._config.head_dim)
        return {
            (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"): np.zeros(shape, np.float32)
            for layer in range(self._config.num_hidden_layers)
            for part in ("key", "value")
        }

    def inputs(
        self, ids: npt.NDArray[np.int64], length: int, positions: Array | None, tree: Array | None
    ) -> dict[str, Array]:
        """The feeds of a pass over n ids after `length` rows, without caches and choice of logits."""
        for name, asked in {"positions": positions, "a tree": tree}.items():
            if asked is not None:
                raise EdgeError(f"The portable flavour can't run with {name}: export the full one.")
        mask = np.ones((1, length + ids.size), np.int64)
        return {"input_ids": ids[None], "attention_mask": mask}

    def outputs(self, n: int, logits: int, hidden: bool, layers: Sequence[int]) -> dict[str, Array]:
        """Room for `row_logits` of the last `logits` tokens, `hidden` and the streams after `layers`."""
        if hidden or len(layers):
            raise EdgeError("The portable flavour gives no hidden states: export the full one.")
        return {"row_logits": np.empty((1, logits, self._config.vocab_size), np.float32)}

    def keep(self, cache: CacheArrays, n: int, rows: list[int]) -> None:
        """After the first n rows keep the given ones, which follow at once."""
        if rows != list(range(n, n + len(rows))):
            raise EdgeError("The portable flavour has no trees, so rows can be kept from the start only.")


class Full:
    """Our own operators: one opaque uint8 cache per layer, in the native kernels' order."""

    needs_operators = True
    least_logits = 1  # the operators take no empty tensors

    def __init__(self, manifest: ArtifactManifest, context: int, sparse: SparseConfig | None) -> None:
        """sparse: the constants of sparse attention, None for dense."""
        self._config: ModelConfig = manifest.config
        kv_type = manifest.kv_type or EXPORTED_KV
        self.capabilities = Capabilities(
            trees=True,
            max_tree=MAX_TREE,
            hidden_states=True,
            sparse_attention=sparse is not None,
            kv_types=(kv_type,),
        )
        # The graph was made for that capacity, whatever part of it is used.
        self._layer = layer_cache(self._config, manifest.context, sparse, kv_type)

    def new_cache(self) -> CacheArrays:
        """See `Portable`."""
        size = self._layer.size()
        layers = range(self._config.num_hidden_layers)
        return {(f"cache.{layer}", f"cache_out.{layer}"): np.zeros(size, np.uint8) for layer in layers}

    def inputs(
        self, ids: npt.NDArray[np.int64], length: int, positions: Array | None, tree: Array | None
    ) -> dict[str, Array]:
        """See `Portable`."""
        if positions is None:
            positions = np.arange(length, length + ids.size)
        return {
            "input_ids": ids,
            "positions": positions.astype(np.int64),
            "start": np.array([length], np.int64),
            "tree": np.empty(0, np.int64) if tree is None else tree.view(np.int64),
        }

    def outputs(self, n: int, logits: int, hidden: bool, layers: Sequence[int]) -> dict[str, Array]:
        """See `Portable`."""
        wanted = [("row_logits", logits, self._config.vocab_size)] if logits else []
        names = [*(["hidden"] if hidden else []), *(f"layers.{layer}.stream" for layer in layers)]
        wanted += [(name, n, self._config.hidden_size) for name in names]
        return {name: np.empty((height, width), np.float32) for name, height, width in wanted}

    def keep(self, cache: CacheArrays, n: int, rows: list[int]) -> None:
        """After the first n rows keep the given ones."""
        pool, scratch = ThreadPool(1), ScratchBuffer()
        operators = LayerOperators(pool.parallel, scratch.scratch)
        for memory in cache.values():
            operators.kv_keep(self._layer, memory, rows, n)


FLAVOURS: dict[str, type[Portable] | type[Full]] = {"portable": Portable, "full": Full}
"""By the flavour's name in the manifest."""
