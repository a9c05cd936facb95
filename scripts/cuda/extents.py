"""How much the parts do: on a GPU, and in a rehearsal, which Triton's interpreter must get through."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge.config import ModelConfig, SparseConfig
from edge.config.presets import preset


@dataclass(frozen=True)
class Shape:
    """A network by name. prompt: tokens whose logits are compared with the native executor's."""

    name: str
    config: ModelConfig
    prompt: int

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns by name, as the executor stacks them."""
        config = self.config
        queries = config.num_attention_heads * config.head_dim
        both = queries + 2 * config.num_key_value_heads * config.head_dim
        return {
            "qkv": (both, config.hidden_size),
            "out": (config.hidden_size, queries),
            "gate_up": (2 * config.intermediate_size, config.hidden_size),
            "down": (config.hidden_size, config.intermediate_size),
            "head": (config.vocab_size, config.hidden_size),
        }


@dataclass(frozen=True)
class Extent:
    """shapes: networks. scheme: of all matrices; others: of one matrix of each shape.

    rows: of products, up to 64. between: more rows that still go through `linear`; many: through `dense`, and
    of a pass over a long prompt. lengths: of sequences that attention is over. sparse: constants of kernels
    and of the longest prompt. sparse_model: of whole models, with less than a shape's prompt in dense_len.
    kinds: of whole models. context: of them. decoded: tokens after a prompt. tree: nodes. cut: tokens of a
    prompt that comes in pieces. long: of the longest prompt. measured: rows of timed passes; short: the
    context before them; deep: contexts of sparse decoding; repeats: how often all these are launched.
    """

    shapes: tuple[Shape, ...]
    scheme: str
    others: tuple[str, ...]
    rows: tuple[int, ...]
    between: int
    many: int
    lengths: tuple[int, ...]
    sparse: SparseConfig
    sparse_model: SparseConfig
    kinds: tuple[str, ...]
    context: int
    decoded: int
    tree: int
    cut: int
    long: int
    measured: tuple[int, ...]
    short: int
    deep: tuple[int, int]
    repeats: int

    def shape(self, name: str) -> Shape:
        """One of them."""
        return next(shape for shape in self.shapes if shape.name == name)


REAL = Extent(
    shapes=(Shape("0.5b", preset("minicpm4-0.5b"), 700), Shape("8b", preset("minicpm4-8b"), 200)),
    scheme="int4",
    others=("int4-g128", "int4-min", "int8", "ternary", "f16"),
    rows=(1, 2, 4, 8, 16, 32, 64),
    between=200,
    many=2048,
    lengths=(1, 65, 1000, 4133, 33_000, 131_072),
    sparse=SparseConfig(),
    sparse_model=SparseConfig(dense_len=128, window_size=64, topk=2),
    kinds=("dense", "sparse", "int8"),
    context=4096,
    decoded=16,
    tree=64,
    cut=700,
    long=131_072,
    measured=(1, 2, 4, 8, 16),
    short=512,
    deep=(4096, 131_072),
    repeats=20,
)

_TINY = replace(
    preset("minicpm4-0.5b"),
    vocab_size=288,
    eos_token_ids=(2,),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
)
REHEARSED = Extent(
    shapes=(Shape("tiny", _TINY, 5),),
    scheme="int4",
    others=(),
    rows=(1, 2),
    between=3,
    many=3,
    lengths=(1, 130, 325),
    sparse=SparseConfig(dense_len=128, window_size=64, topk=2),
    sparse_model=SparseConfig(dense_len=2, window_size=64, topk=2),
    kinds=("sparse",),
    context=768,
    decoded=1,
    tree=4,
    cut=4,
    long=5,
    measured=(1,),
    short=3,
    deep=(130, 300),
    repeats=1,
)
