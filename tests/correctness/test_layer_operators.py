"""A decoder made of the operators for host runtimes computes what edge_forward computes, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.config.rope import rope_parameters
from edge.executors.native import library as native
from edge.executors.native.executor import NativeExecutor
from edge.executors.native.operators import LayerCache, LayerOperators
from edge.executors.native.pool import ScratchBuffer, ThreadPool
from edge.executors.native.shapes import sparse_constants
from edge.formats.bundle.reader import Bundle
from edge.quant.scheme import QuantScheme
from tests.steps import forward

SCHEMES = [
    QuantScheme("f16"),
    QuantScheme("int8", 128),
    QuantScheme("int4", 32),
    QuantScheme("int4", 128, minimum=True),
    QuantScheme("ternary", 128),
]
SPARSE = SparseConfig(
    kernel_size=32, kernel_stride=16, init_blocks=1, block_size=64, window_size=128, topk=2, dense_len=200
)
INT4 = QuantScheme("int4", 32)
CHUNKS = (70, 1, 9, 1, 1, 118, 1, 11, 3, 64, 1)  # the 201st row is the first that is sparse


class OperatorDecoder:
    """The network of an executor as calls of operators; memory: one cache per layer."""

    def __init__(self, bundle: Bundle, executor: NativeExecutor, threads: int) -> None:
        config = bundle.config
        self.config, self.bundle, self.activations = config, bundle, executor.info.activations
        self.pool, self.buffer = ThreadPool(threads), ScratchBuffer()
        self.operators = LayerOperators(self.pool.parallel, self.buffer.scratch, executor.info.tier)
        self.cache = LayerCache(
            kv_type=native.KV_TYPE[executor.info.kv_type],
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            capacity=executor.context,
            sparse=sparse_constants(executor.info.sparse),
        )
        self.memory = [np.zeros(self.cache.size(), np.uint8) for _ in range(config.num_hidden_layers)]
        self.frequencies, self.rope_scale = rope_parameters(
            config.rope, config.head_dim, executor.context, config.max_position_embeddings
        )
        self.length = 0

    def matrix(self, name: str) -> native.Matrix:
        info, data = self.bundle.tensors[name], self.bundle.data(name)
        return native.matrix(info.scheme.packing, info.rows, info.columns, data.ctypes.data)

    def norm(self, name: str) -> np.ndarray:
        return self.bundle.data(name).view(np.float32)[: self.config.hidden_size]

    def forward(self, tokens, positions=None, tree=None) -> tuple[np.ndarray, np.ndarray]:
        """(logits, hidden states before the final norm)"""
        run, config, start = self.operators, self.config, self.length
        if positions is None:
            positions = np.arange(start, start + len(tokens))
        rope = run.rope_table(positions, self.frequencies, self.rope_scale)
        x = run.embedding(self.matrix("model.embed_tokens.weight"), tokens, config.embedding_scale)
        for index, memory in enumerate(self.memory):

            def named(part: str, index: int = index) -> str:
                return f"model.layers.{index}.{part}.weight"

            projections = [self.matrix(named(f"self_attn.{part}_proj")) for part in "qkv"]
            norm = self.norm(named("input_layernorm"))
            qkv = run.rms_norm_linear(x, norm, config.rms_norm_eps, 1.0, projections, self.activations)
            queries = run.kv_append(self.cache, memory, qkv, rope, start, tree)
            y = run.paged_attention(self.cache, memory, queries, start, tree)
            scale, o = config.residual_scale, self.matrix(named("self_attn.o_proj"))
            x = run.linear(y, o, self.activations, x, scale)
            gate, up, down = (self.matrix(named(f"mlp.{part}_proj")) for part in ("gate", "up", "down"))
            norm = self.norm(named("post_attention_layernorm"))
            h = run.rms_norm_swiglu(x, norm, config.rms_norm_eps, gate, up, self.activations)
            x = run.linear(h, down, self.activations, x, scale)
        head = "lm_head.weight" if "lm_head.weight" in self.bundle.tensors else "model.embed_tokens.weight"
        logits = run.rms_norm_linear(
            *(x, self.norm("model.norm.weight"), config.rms_norm_eps, config.logit_scale),
            *([self.matrix(head)], self.activations),
        )
        self.length += len(tokens)
        return logits, x

    def keep(self, n: int, rows: list[int]) -> None:
        for memory in self.memory:
            self.operators.kv_keep(self.cache, memory, rows, n)
        self.length = n + len(rows)


@pytest.fixture
def open_both(open_native, make_bundle, minicpm):
    """(native executor, operators' decoder) of a random network; options: of its config and the executor."""

    def open_one(scheme: QuantScheme, head: QuantScheme | None = None, threads: int = 2, **options):
        own = ("activations", "kv_type", "tier")
        fields = {name: value for name, value in options.items() if name not in own}
        bundle = make_bundle(minicpm(**fields), scheme, head)
        executor = open_native(bundle, **{name: options[name] for name in own if name in options})
        return executor, OperatorDecoder(bundle, executor, threads)

    return open_one


def assert_equal_forwards(executor, decoder, tokens, chunks=CHUNKS) -> None:
    cache, at = executor.new_cache(), 0
    last = decoder.config.num_hidden_layers - 1
    for size in chunks:
        piece = tokens[at : at + size]
        wanted = forward(executor, cache, piece, logits="all", layers=[last], hidden=True)
        logits, x = decoder.forward(piece)
        np.testing.assert_array_equal(x, wanted.layers[0])
        norm = decoder.norm("model.norm.weight")
        hidden = decoder.operators.rms_norm(x, norm, decoder.config.rms_norm_eps, 1.0)
        np.testing.assert_array_equal(hidden, wanted.hidden)
        np.testing.assert_array_equal(logits, wanted.logits)
        at += size


@pytest.mark.parametrize("activations", native.ACTIVATIONS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_whole_network(open_both, tokens_of, scheme, activations: str):
    executor, decoder = open_both(scheme, activations=activations, kv_type="float16")
    assert_equal_forwards(executor, decoder, tokens_of(decoder.config, sum(CHUNKS)))


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("kv_type", ["float16", "float32", "int8", "int16", "int4"])
def test_caches(open_both, tokens_of, kv_type: str, sparse: SparseConfig | None):
    executor, decoder = open_both(INT4, sparse=sparse, kv_type=kv_type)
    assert (executor.info.sparse is None) == (sparse is None)
    assert_equal_forwards(executor, decoder, tokens_of(decoder.config, sum(CHUNKS)))


@pytest.mark.parametrize("hidden, inner, heads", [(200, 344, 6), (36, 31, 3), (256, 512, 2)])
def test_odd_sizes(open_both, tokens_of, hidden: int, inner: int, heads: int):
    """Rows that are no multiple of a vector are padded, rows of large powers of two are not."""
    fields = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": 37, "head_dim": 16}
    shape = {"num_attention_heads": heads, "num_key_value_heads": 1}
    for scheme in (QuantScheme("f16"), QuantScheme("int4", 32, minimum=True)):
        for activations in native.ACTIVATIONS:
            executor, decoder = open_both(scheme, activations=activations, **fields, **shape)
            assert_equal_forwards(executor, decoder, tokens_of(decoder.config, 40), (1, 5, 33, 1))


@pytest.mark.parametrize("tier", native.cpu_tiers())
def test_tiers(open_both, tokens_of, tier: str):
    executor, decoder = open_both(INT4, QuantScheme("int8", 128), tier=tier)
    assert_equal_forwards(executor, decoder, tokens_of(decoder.config, 80), (70, 1, 9))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads(open_both, tokens_of, threads: int):
    executor, decoder = open_both(INT4, threads=threads, sparse=SPARSE)
    assert_equal_forwards(executor, decoder, tokens_of(decoder.config, sum(CHUNKS)))


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("kv_type", ["float16", "int8", "int16", "int4"])
def test_trees(open_both, tokens_of, kv_type: str, sparse: SparseConfig | None):
    """A tree, one of its paths kept, and what follows; the kept rows complete summaries."""
    executor, decoder = open_both(INT4, sparse=sparse, kv_type=kv_type)
    cache, tokens = executor.new_cache(), tokens_of(decoder.config, 400)
    forward(executor, cache, tokens[:250])
    decoder.forward(tokens[:250])
    parents = [-1, *(i // 2 for i in range(39))]
    tree, depth = np.zeros(40, np.uint64), np.zeros(40, np.int32)
    for row, parent in enumerate(parents[1:], 1):
        depth[row] = depth[parent] + 1
    for row, parent in enumerate(parents):
        tree[row] = (int(tree[parent]) if parent >= 0 else 0) | 1 << row
    for _ in range(6):
        n = decoder.length
        wanted = forward(executor, cache, tokens[:40], positions=n + depth, tree=tree, logits="all")
        logits, _ = decoder.forward(tokens[:40], n + depth, tree)
        np.testing.assert_array_equal(logits, wanted.logits)
        path = [n + row for row in range(40) if int(tree[37]) >> row & 1]
        executor.keep(cache, n, path)
        decoder.keep(n, path)
    wanted = forward(executor, cache, tokens[300:], logits="all")
    np.testing.assert_array_equal(decoder.forward(tokens[300:])[0], wanted.logits)
