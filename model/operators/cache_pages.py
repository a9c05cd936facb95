"""One layer's KV cache as the native kernels lay it out (`kernels/src/attention/cache.h`), read and written
by PyTorch.

A uint8 tensor: pages of 256 positions, each [KV head][keys, values][4 blocks of 64 positions]; for sparse
attention the summaries of the keys follow. After the codes of a block, of integers, stand its 64 scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge.config import SparseConfig
from edge.model.attention.key_summaries import KeySummaries, complete_windows
from edge.model.operators import int4_rows
from edge.model.operators.arguments import KV_TYPES, KvType, cache_numbers

_BLOCK, _PAGE, _LANES = 64, 256, 16
_COARSENING = 4
_SCALE_BYTES = 4


@dataclass(frozen=True)
class LayerCache:
    """Shape of a layer's cache for `capacity` positions; sparse: None for dense attention."""

    heads: int
    kv_heads: int
    head_dim: int
    kv_type: KvType
    capacity: int
    sparse: SparseConfig | None = None

    @classmethod
    def of(
        cls, heads: int, kv_heads: int, head_dim: int, kv_type: int, capacity: int, sparse: Sequence[int]
    ) -> LayerCache:
        """From the arguments of an operator."""
        if not 0 <= kv_type < len(KV_TYPES):
            raise ValueError(f"KV type {kv_type} is none of 0 to {len(KV_TYPES) - 1}.")
        return cls(heads, kv_heads, head_dim, KV_TYPES[kv_type], capacity, _sparse_config(sparse))

    @property
    def arguments(self) -> tuple[int, int, int, int, int, list[int]]:
        """heads, kv_heads, head_dim, kv_type, capacity and sparse, as operators take them."""
        heads, kv_heads, head_dim = self.heads, self.kv_heads, self.head_dim
        return cache_numbers(heads, kv_heads, head_dim, self.kv_type, self.capacity, self.sparse)

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return self._rows_bytes + self._summary_pages * self.kv_heads * self._summary_head * self._float_bytes

    def empty(self) -> Tensor:
        """A cache without rows: zeros."""
        return torch.zeros(self.bytes, dtype=torch.uint8)

    def read(self, cache: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `rows` positions, float32 [KV heads, rows, head_dim]."""
        positions = torch.arange(rows)
        parts = []
        for which in (0, 1):
            values = self._get(cache, self._index(which, positions))
            if self._has_scales:
                scales = self._scales(cache)[self._scale_index(which, positions)]
                is_int4 = self.kv_type == "int4"
                values = int4_rows.values_of(values, scales) if is_int4 else values.float() * scales
            parts.append(values.float())
        return parts[0], parts[1]

    def write(self, cache: Tensor, keys: Tensor, values: Tensor, start: int) -> None:
        """Store keys and values [KV heads, n, head_dim] at the positions from `start` on."""
        positions = torch.arange(start, start + keys.shape[1])
        for which, x in enumerate((keys, values)):
            index = self._index(which, positions)
            if not self._has_scales:
                limit = torch.finfo(self._dtype).max
                self._put(cache, index, x.clamp(-limit, limit))
                continue
            codes, scale = self._codes(x, is_key=which == 0)
            self._put(cache, index, codes)
            self._scales(cache)[self._scale_index(which, positions)] = scale

    def move(self, cache: Tensor, rows: Tensor, start: int) -> None:
        """Copy the given rows to `start`, `start` + 1, ..."""
        positions = torch.arange(start, start + rows.numel())
        for which in (0, 1):
            self._put(cache, self._index(which, positions), self._get(cache, self._index(which, rows)))
            if self._has_scales:
                scales = self._scales(cache)
                at, source = self._scale_index(which, positions), self._scale_index(which, rows)
                scales[at] = scales[source]

    def summaries(self, cache: Tensor, rows: int) -> KeySummaries:
        """Those of the first `rows` rows, as they stand in the cache."""
        assert self.sparse is not None
        parts = []
        for level, (size, stride) in enumerate(self._grids):
            windows = torch.arange(complete_windows(rows, size, stride))
            parts.append(self._floats(cache)[self._summary_index(level, windows)].float())
        return KeySummaries(parts[0], parts[1], rows, self.sparse)

    def extend_summaries(self, cache: Tensor, before: int, rows: int) -> None:
        """Write the summaries that the rows `before` .. `rows` complete."""
        if self.sparse is None:
            return
        keys, _ = self.read(cache, rows)
        for level, (size, stride) in enumerate(self._grids):
            first, last = (complete_windows(count, size, stride) for count in (before, rows))
            windows = torch.arange(first, last)
            if windows.numel() == 0:
                continue
            means = keys.unfold(1, size, stride)[:, first:last].mean(-1)
            floats = self._floats(cache)
            floats[self._summary_index(level, windows)] = means.to(floats.dtype)

    @property
    def _grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        assert self.sparse is not None
        size, stride = self.sparse.kernel_size, self.sparse.kernel_stride
        return (size, stride), (_COARSENING * size, _COARSENING * stride)

    @property
    def _has_scales(self) -> bool:
        return self.kv_type.startswith("int")

    def _codes(self, x: Tensor, is_key: bool) -> tuple[Tensor, Tensor]:
        """Rows as codes, and their scales. Keys of 16 bits have a fixed Euclidean length, so that
        sums of their products with queries fit into 32 bits.
        """
        if self.kv_type == "int4":
            return int4_rows.quantize(x)
        if self.kv_type == "int16" and is_key:
            scale = x.norm(dim=-1, keepdim=True) / 32000
        else:
            scale = x.abs().amax(-1, keepdim=True) / torch.iinfo(self._dtype).max
        return torch.where(scale > 0, (x / scale).round(), 0), scale

    @property
    def _dtype(self) -> torch.dtype:
        """Of an element, or of two that share a byte."""
        dtype: torch.dtype = getattr(torch, "uint8" if self.kv_type == "int4" else self.kv_type)
        return dtype

    @property
    def _codes_bytes(self) -> int:
        """Of a block, without its scales."""
        return _BLOCK * self.head_dim * self._dtype.itemsize // (2 if self.kv_type == "int4" else 1)

    @property
    def _float_bytes(self) -> int:
        return 4 if self.kv_type == "float32" else 2

    @property
    def _block_bytes(self) -> int:
        scales = _BLOCK * _SCALE_BYTES if self._has_scales else 0
        return self._codes_bytes + scales

    @property
    def _rows_bytes(self) -> int:
        return -(-self.capacity // _PAGE) * self.kv_heads * 2 * (_PAGE // _BLOCK) * self._block_bytes

    @property
    def _summary_pages(self) -> int:
        if self.sparse is None:
            return 0
        return -(-self.capacity // (_BLOCK * _COARSENING * self.sparse.kernel_stride))

    @property
    def _summary_head(self) -> int:
        """Elements of one KV head in a page: 4 blocks of fine windows and one of coarse ones."""
        return (_COARSENING + 1) * _BLOCK * self.head_dim

    def _get(self, cache: Tensor, index: Tensor) -> Tensor:
        elements = cache[: self._rows_bytes].view(self._dtype)
        return elements[_byte(index)] >> _shift(index) & 15 if self.kv_type == "int4" else elements[index]

    def _put(self, cache: Tensor, index: Tensor, values: Tensor) -> None:
        elements = cache[: self._rows_bytes].view(self._dtype)
        if self.kv_type != "int4":
            elements[index] = values.to(self._dtype)
            return
        values = values.to(self._dtype)
        for shift in (0, 4):  # one after the other: they share bytes
            chosen = _shift(index) == shift
            at = _byte(index[chosen])
            elements[at] = elements[at] & (0xF0 >> shift) | values[chosen] << shift

    def _scales(self, cache: Tensor) -> Tensor:
        return cache[: self._rows_bytes].view(torch.float32)

    def _floats(self, cache: Tensor) -> Tensor:
        return cache[self._rows_bytes :].view(torch.float32 if self._float_bytes == 4 else torch.float16)

    def _block_start(self, which: int, positions: Tensor) -> Tensor:
        """First byte of the block of each position, [KV heads, positions]."""
        blocks = _PAGE // _BLOCK
        page, block = positions // _PAGE, positions % _PAGE // _BLOCK
        head = torch.arange(self.kv_heads).unsqueeze(-1)
        index = ((page * self.kv_heads + head) * 2 + which) * blocks + block
        return index * self._block_bytes

    def _index(self, which: int, positions: Tensor) -> Tensor:
        """Where the elements of keys (0) or values (1) stand, [KV heads, positions, head_dim]."""
        place, run = (positions % _BLOCK).unsqueeze(-1), 4 // self._dtype.itemsize if self._has_scales else 1
        element = torch.arange(self.head_dim)
        if which == 0:
            within = _key_place(place, element, self.head_dim, run)
        else:
            within = (place - place % run) * self.head_dim + element * run + place % run
        start = self._block_start(which, positions).unsqueeze(-1)
        return start * (_BLOCK * self.head_dim) // self._codes_bytes + within

    def _scale_index(self, which: int, positions: Tensor) -> Tensor:
        codes = self._block_start(which, positions) + self._codes_bytes
        return (codes // _SCALE_BYTES + positions % _BLOCK).unsqueeze(-1)

    def _summary_index(self, level: int, windows: Tensor) -> Tensor:
        blocks = _COARSENING if level == 0 else 1
        block = windows // _BLOCK
        piece = block % blocks if level == 0 else torch.full_like(block, _COARSENING)
        head = torch.arange(self.kv_heads).unsqueeze(-1)
        start = (block // blocks * self.kv_heads + head) * self._summary_head + piece * _BLOCK * self.head_dim
        within = _key_place((windows % _BLOCK).unsqueeze(-1), torch.arange(self.head_dim), self.head_dim, 1)
        return start.unsqueeze(-1) + within


def _key_place(place: Tensor, element: Tensor, head_dim: int, run: int) -> Tensor:
    """Within a block: 16 positions side by side, `run` elements of each."""
    lane = place % _LANES
    return (place - lane) * head_dim + element // run * (run * _LANES) + lane * run + element % run


def _byte(index: Tensor) -> Tensor:
    """Where a code of 4 bits stands: two that are 64 apart in one byte, the earlier one in its lower half."""
    return index // 128 * 64 + index % 64


def _shift(index: Tensor) -> Tensor:
    return index // 64 % 2 * 4


def _sparse_config(numbers: Sequence[int]) -> SparseConfig | None:
    if not numbers:
        return None
    if len(numbers) != 8:
        raise ValueError(f"Sparse attention is described by 8 numbers or none, not {len(numbers)}.")
    size, stride, block, init, window, topk, dense_len, exact = numbers
    return SparseConfig(
        kernel_size=size,
        kernel_stride=stride,
        block_size=block,
        init_blocks=init,
        window_size=window,
        topk=topk,
        dense_len=dense_len,
        exact_lse=bool(exact),
    )
