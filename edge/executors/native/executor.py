"""The native executor: the whole transformer in one call of libedge per step."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig, SparseConfig
from edge.config.attention import AttentionMode, resolve_attention
from edge.config.rope import rope_parameters
from edge.errors import EdgeError, NativeError, TokenizerError
from edge.executors.native import library as native
from edge.executors.native.cache import NativeCache, handle_of
from edge.executors.native.pool import ThreadPool
from edge.executors.protocol import Capabilities, ExecutorFacts, ForwardResult, KVCache, Logits
from edge.executors.weights import WeightMemory, open_weights
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle

TIER_VARIABLE = "EDGE_CPU"
"""Environment variable that forces a kernel tier, for example `avx2`."""

_ROLES = {
    "model.embed_tokens.weight": 0,
    "lm_head.weight": 1,
    "model.norm.weight": 2,
    "input_layernorm.weight": 3,
    "self_attn.q_proj.weight": 4,
    "self_attn.k_proj.weight": 5,
    "self_attn.v_proj.weight": 6,
    "self_attn.o_proj.weight": 7,
    "post_attention_layernorm.weight": 8,
    "mlp.gate_proj.weight": 9,
    "mlp.up_proj.weight": 10,
    "mlp.down_proj.weight": 11,
}
_BLOCK_SIZE, _KEY_GROUP, _MOST_GROUP = 64, 16, 64  # what the sparse kernels are built for
_LAYER_PREFIX = "model.layers."


class NativeExecutor(ExecutorFacts):
    """Runs a bundle on the CPU. Safe to call from several threads: calls are taken one at a time.

    tier: the kernels in use, for example `avx512vnni`. sparse: the constants of sparse attention, None if
    every query is dense. workspace_bytes: scratch memory, KV caches and weights not counted.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        context: int | None = None,
        threads: int | None = None,
        activations: str = "int8",
        kv_type: str = "float16",
        tier: str | None = None,
        max_batch: int = 256,
        mmap: bool | None = None,
        attention: AttentionMode = "auto",
    ) -> None:
        """An executor for `bundle`.

        context: longest sequence in tokens, by default and at most the config's max_position_embeddings.
        threads: by default the performance cores. activations: `int8` (quantized on the fly) or `float32`
        (exact). kv_type: `float16`, `float32` or `int8`. tier: a kernel tier of this CPU, by default
        $EDGE_CPU or the best. max_batch: most tokens of one forward call. mmap: True maps the weights' file
        and reads it when it is used, False copies it into huge pages; by default whichever is at once and
        fast (`edge.executors.weights`). attention: see `edge.config.attention`.
        """
        config = bundle.config
        if config.num_experts:
            raise NativeError(
                "num_experts: the native executor runs dense models only, not mixtures of experts."
            )
        self._config = config
        self._context = config.max_position_embeddings if context is None else context
        config.check_context(self._context)
        self.sparse = choose_attention(config, attention, self._context)
        self._max_batch = min(max_batch, self._context)
        self._lock = threading.Lock()
        self._pool = ThreadPool(threads)
        self.activations, self.kv_type = activations, kv_type
        # The model borrows this memory.
        weight_memory = open_weights(bundle, mmap)
        self._weights: WeightMemory | None = weight_memory
        frequency, rope_scale = rope_parameters(
            config.rope, config.head_dim, self._context, config.max_position_embeddings
        )
        frequency = np.ascontiguousarray(frequency, np.float32)
        self._cache_identity = {
            "model": bundle.manifest.content_hash,
            "layout": f"native {native.CACHE_LAYOUT}",
            "kv_type": kv_type,
            "activations": activations,
            "rope": hashlib.sha256(frequency.tobytes() + np.float32(rope_scale).tobytes()).hexdigest(),
            "attention": "dense" if self.sparse is None else repr(self.sparse),
        }
        c_config = native.Config(
            size=ctypes.sizeof(native.Config),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            context=self._context,
            max_batch=self._max_batch,
            activations=_choice(native.ACTIVATIONS, activations, "activations"),
            kv_type=_choice(native.KV_TYPE, kv_type, "KV type"),
            rms_norm_eps=config.rms_norm_eps,
            embedding_scale=config.embedding_scale,
            residual_scale=config.residual_scale,
            logit_scale=config.logit_scale,
            rope_scale=rope_scale,
            inverse_frequency=frequency.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            sparse=sparse_constants(self.sparse),
        )
        weights = (native.Weight * len(bundle.tensors))(
            *(_weight(info, weight_memory.address(name)) for name, info in bundle.tensors.items())
        )
        lib, handle = native.library(), ctypes.c_void_p()
        tier = tier or os.environ.get(TIER_VARIABLE) or None
        native.check(
            lib.edge_model_create(
                ctypes.byref(c_config),
                weights,
                len(weights),
                ctypes.byref(self._pool.parallel),
                tier.encode() if tier else None,
                ctypes.byref(handle),
            )
        )
        self.handle = handle
        self.tier = str(lib.edge_model_tier(handle).decode())
        self.workspace_bytes = int(lib.edge_model_workspace_bytes(handle))
        self._finalizer = native.finalize(self, lib.edge_model_destroy, handle)

    @property
    def threads(self) -> int:
        """Threads that work on a step."""
        return self._pool.threads

    @property
    def weights(self) -> WeightMemory:
        """Where the weights lie, and how much of them in huge pages."""
        self._check_open()
        assert self._weights is not None
        return self._weights

    @property
    def capabilities(self) -> Capabilities:
        """Dense and sparse attention, and trees."""
        return Capabilities(
            trees=True,
            max_tree=native.MAX_TREE,
            hidden_states=True,
            sparse_attention=sparse_obstacle(self._config) is None,
            cache_files=True,
            kv_types=tuple(native.KV_TYPE),
        )

    def new_cache(self) -> NativeCache:
        """An empty cache; memory is committed as it fills."""
        with self._lock:
            self._check_open()
            return NativeCache(self.handle, self._context)

    def forward(
        self,
        cache: KVCache,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        *,
        positions: npt.NDArray[np.int32] | None = None,
        tree: npt.NDArray[np.uint64] | None = None,
        want_logits: Logits = "last",
        want_hidden: bool = False,
        taps: Sequence[int] = (),
    ) -> ForwardResult:
        """See `edge.executors.protocol.Executor.forward`."""
        ids = _token_ids(tokens)
        n = ids.size
        places = _per_token(positions, np.int32, n, "positions")
        masks = _per_token(tree, np.uint64, n, "tree")
        rows = _choice({"none": 0, "last": 1, "all": n}, want_logits, "choice of logits")
        logits = np.empty((rows, self._config.vocab_size), np.float32) if rows else None
        hidden = np.empty((n, self._config.hidden_size), np.float32) if want_hidden else None
        tap_layers = np.ascontiguousarray(taps, np.int32)
        tapped = (
            np.empty((len(tap_layers), n, self._config.hidden_size), np.float32) if len(tap_layers) else None
        )
        batch = native.Batch(
            size=ctypes.sizeof(native.Batch),
            n=n,
            tokens=ids.ctypes.data,
            positions=_address(places),
            tree=_address(masks),
            logits_rows=rows,
            taps=tap_layers.size,
            tap_layers=tap_layers.ctypes.data,
            logits=_address(logits),
            hidden=_address(hidden),
            tap_outputs=_address(tapped),
        )
        with self._lock:
            self._check_open()
            native.check(native.library().edge_forward(self.handle, handle_of(cache), ctypes.byref(batch)))
        return ForwardResult(logits, hidden, () if tapped is None else tuple(tapped))

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        kept = np.ascontiguousarray(rows, np.int32)
        with self._lock:
            native.check(native.library().edge_cache_keep(handle_of(cache), n, kept.ctypes.data, kept.size))

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        with self._lock:
            native.check(native.library().edge_cache_truncate(handle_of(cache), n))

    @property
    def cache_identity(self) -> Mapping[str, str]:
        """The model's contents, the layout and every setting that changes keys and values."""
        return self._cache_identity

    def cache_memory(self, cache: KVCache) -> npt.NDArray[np.uint8]:
        """The rows in use as they stand in memory; borrowed until the cache changes."""
        memory, size = ctypes.c_void_p(), ctypes.c_uint64()
        with self._lock:
            native.check(
                native.library().edge_cache_memory(handle_of(cache), ctypes.byref(memory), ctypes.byref(size))
            )
        return np.ctypeslib.as_array((ctypes.c_uint8 * size.value).from_address(memory.value or 0))

    def restore(self, cache: KVCache, n: int, memory: npt.NDArray[np.uint8]) -> None:
        """Make n rows that `cache_memory` gave the content of the cache."""
        with self._lock:
            native.check(
                native.library().edge_cache_restore(handle_of(cache), n, memory.ctypes.data, memory.nbytes)
            )

    def repeat(self, cache: KVCache, n: int) -> None:
        """Grow the cache to n rows by repeating those it has: plausible values without a prefill."""
        with self._lock:
            native.check(native.library().edge_cache_repeat(handle_of(cache), n))

    def observe(self, observer: Callable[[bytes], None] | None) -> None:
        """Call `observer` with the bytes of a `native.Event` after every operator; None ends it.

        The output that an event points to is valid during the call only. The observer may not call the
        executor, and what it raises is lost.
        """
        size = ctypes.sizeof(native.Event)
        # Bytes are cheap to keep: a slow observer would let the threads fall asleep between operators.
        hook = (
            native.Observer()
            if observer is None
            else native.Observer(lambda _, event: observer(ctypes.string_at(event, size)))
        )
        with self._lock:
            self._check_open()
            native.check(native.library().edge_model_observe(self.handle, hook, None))
            self._observer = hook  # the library holds its address

    def close(self) -> None:
        """Free the native model; later calls raise NativeError."""
        with self._lock:
            self._finalizer()
            self._weights = None

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise NativeError("The model is closed; load it again.")


def choose_attention(config: ModelConfig, mode: AttentionMode, context: int) -> SparseConfig | None:
    """`edge.config.attention.resolve_attention` for this executor."""
    return resolve_attention(config, mode, context=context, obstacle=sparse_obstacle(config))


def sparse_constants(sparse: SparseConfig | None) -> native.Sparse:
    """The constants as libedge takes them; None is dense attention."""
    if sparse is None:
        return native.Sparse(enabled=0)
    return native.Sparse(
        enabled=1,
        kernel_size=sparse.kernel_size,
        kernel_stride=sparse.kernel_stride,
        block_size=sparse.block_size,
        init_blocks=sparse.init_blocks,
        window_size=sparse.window_size,
        topk=sparse.topk,
        dense_len=sparse.dense_len,
        exact_lse=int(sparse.exact_lse),
    )


def sparse_obstacle(config: ModelConfig) -> str | None:
    """Why the kernels can't run this network's sparse attention; None if they can."""
    sparse = config.sparse or SparseConfig()
    group = config.num_attention_heads // config.num_key_value_heads
    if sparse.block_size != _BLOCK_SIZE:
        return f"the native kernels need a block_size of {_BLOCK_SIZE}, not {sparse.block_size}"
    if sparse.kernel_size % _KEY_GROUP or sparse.kernel_stride % _KEY_GROUP:
        return f"the native kernels need a kernel_size and kernel_stride that are multiples of {_KEY_GROUP}"
    if group > _MOST_GROUP:
        return f"the native kernels take up to {_MOST_GROUP} query heads per KV head, not {group}"
    return None


def _weight(info: BundleTensor, address: int) -> native.Weight:
    layer, role = 0, info.name
    if role.startswith(_LAYER_PREFIX):
        number, role = role[len(_LAYER_PREFIX) :].split(".", 1)
        layer = int(number)
    if role not in _ROLES:
        raise NativeError(f"The native executor has no place for the tensor '{info.name}'.")
    matrix = native.matrix(info.scheme.packing, info.rows, info.columns, address)
    return native.Weight(role=_ROLES[role], layer=layer, matrix=matrix)


def _choice(table: dict[str, int], name: str, what: str) -> int:
    if name not in table:
        raise NativeError(f"Unknown {what} '{name}'; choose one of {', '.join(table)}.")
    return table[name]


def _token_ids(tokens: Sequence[int] | npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    try:
        return np.ascontiguousarray(tokens, np.int32)
    except OverflowError:
        raise TokenizerError(
            "A token id is far outside the vocabulary: it does not even fit 32 bits."
        ) from None


def _address(array: npt.NDArray[np.generic] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _per_token(
    array: npt.NDArray[np.generic] | None, dtype: type[np.generic], n: int, what: str
) -> npt.NDArray[np.generic] | None:
    if array is None:
        return None
    if np.shape(array) != (n,):
        raise EdgeError(f"{what} must have one entry per token ({n}), got shape {np.shape(array)}.")
    return np.ascontiguousarray(array, dtype)
