"""The KV cache on a device: pages of rows that sequences share, and the kernels that copy and move rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge.errors import ConfigError
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.tables import PAGE

FINE, COARSE = PAGE // 16, PAGE // 64
"""Summaries of each kind that end in a page, one at every 16th row and at every 64th."""

HEAD_DIMS = (64, 128)


@dataclass(frozen=True)
class CacheShape:
    """int8: codes with a float16 scale for each row and head, else float16. summaries: of sparse layers."""

    layers: int
    kv_heads: int
    head_dim: int
    int8: bool = False
    summaries: bool = False

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS:
            raise ConfigError(
                f"The CUDA kernels take a head_dim of {' or '.join(map(str, HEAD_DIMS))}, not "
                f"{self.head_dim}: run this model on the CPU."
            )

    @property
    def variant(self) -> str:
        """As the ids of kernels name it."""
        return f"{'i8' if self.int8 else 'f16'}.d{self.head_dim}"

    @property
    def pool_bytes(self) -> dict[str, int]:
        """Bytes of one page of one layer in each pool, 0 in those that this shape lacks."""
        rows = self.kv_heads * PAGE
        codes = rows * self.head_dim * (1 if self.int8 else 2)
        scales = 2 * rows if self.int8 else 0
        window = 2 * self.kv_heads * self.head_dim if self.summaries else 0
        return {
            "keys": codes,
            "values": codes,
            "key_scales": scales,
            "value_scales": scales,
            "fine": FINE * window,
            "coarse": COARSE * window,
        }

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all pools and layers."""
        return self.layers * sum(self.pool_bytes.values())


@dataclass(frozen=True)
class CachePools:
    """Addresses of the pools, each [layers, pages, kv_heads, ...]; 0 is a pool that the shape lacks.

    keys, values: [256, head_dim], float16 or int8; keys after RoPE. key_scales, value_scales: float16 [256].
    fine [16, head_dim] and coarse [4, head_dim]: float16, key summaries of sparse attention: means over 32
    and 128 rows, each in the page that holds its last row r, at r % 256 // 16 and r % 256 // 64.
    """

    shape: CacheShape
    pages: int
    keys: Address
    values: Address
    key_scales: Address
    value_scales: Address
    fine: Address
    coarse: Address

    @classmethod
    def allocate(cls, device: Device, shape: CacheShape, pages: int) -> CachePools:
        """Pools of zeros. Raises ContextError if there is no room."""
        taken: dict[str, Address] = {}
        try:
            for name, size in shape.pool_bytes.items():
                taken[name] = device.allocate(shape.layers * pages * size) if size else 0
        except BaseException:
            for address in taken.values():
                device.free(address)
            raise
        return cls(shape, pages, **taken)

    def free(self, device: Device) -> None:
        """Give the memory back."""
        for address in self.addresses.values():
            device.free(address)

    @property
    def addresses(self) -> dict[str, Address]:
        """Of all pools, by name."""
        return {name: getattr(self, name) for name in self.shape.pool_bytes}

    def layer(self, index: int) -> CachePools:
        """The pools of one layer; they are not for `free`."""
        sizes = self.shape.pool_bytes
        moved = {
            name: address and address + index * self.pages * sizes[name]
            for name, address in self.addresses.items()
        }
        return replace(self, shape=replace(self.shape, layers=1), **moved)

    @property
    def rows(self) -> tuple[Address, Address, Address, Address]:
        """Keys, values and their scales, as kernels take them."""
        return self.keys, self.values, self.key_scales, self.value_scales


def copy_page(device: Device, pools: CachePools, source: int, target: int) -> None:
    """All that one page holds, in every pool and layer, to another."""
    for name, size in pools.shape.pool_bytes.items():
        if size:
            words = size // 4
            grid = (-(-words // _COPIED), pools.shape.layers, 1)
            device.launch("pages.copy", grid, (pools.addresses[name], source, target, pools.pages, words))


_COPIED = 4096  # words by one program of `pages.copy`


def move(
    device: Device,
    pools: CachePools,
    page_table: Address,
    sequences: Address,
    before: Address,
    kept: Address,
    counts: Address,
    *,
    moves: int,
    max_pages: int,
) -> None:
    """After a tree's step, cache rows that are kept move to the rows before, before + 1 ...; in all layers.

    Of `moves` sequences, int32 each: sequences [moves], rows of page_table, -1 is none; before [moves], rows
    that stay as they are; kept [moves, 64], cache rows, ascending; counts [moves], how many of them.
    """
    shape = pools.shape
    arguments = (*pools.rows, page_table, sequences, before, kept, counts, max_pages, pools.pages)
    grid = (moves, shape.kv_heads, shape.layers)
    device.launch(f"pages.move.{shape.variant}", grid, (*arguments, shape.kv_heads))
