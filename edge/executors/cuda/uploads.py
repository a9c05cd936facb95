"""Where the tables of a pass stand in device memory, and how they get there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge.executors.cuda.cache import CudaCache
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.tables import PAGE, TREE, StepTables
from edge.executors.cuda.passes import Int32, PassRows

_COLUMNS = ("tokens", "positions", "sequences", "slots", "before", "path", "is_tree")
_DEAD = {"sequences": -1}  # other columns are 0 in rows that nothing is written for
_ALIGNED = 64  # numbers


class PassTables:
    """Room for the tables of passes of up to `rows` rows and as many sequences, always at the same addresses.

    One upload carries what every pass has: columns, wanted rows, tiles, and the page table; another one the
    ancestors, if there are trees.
    """

    def __init__(self, device: Device, rows: int, context: int) -> None:
        self._device, self._rows = device, -(-rows // _ALIGNED) * _ALIGNED
        self._max_pages = -(-context // PAGE)
        self._wanted = len(_COLUMNS) * self._rows
        self._tiles = self._wanted + self._rows
        self._pages = self._tiles + 2 * self._rows + _ALIGNED
        self._ancestors = self._pages + -(-self._rows * self._max_pages // _ALIGNED) * _ALIGNED
        self._size = self._ancestors + self._rows * TREE
        self._host = np.zeros(self._size, np.int32)
        self._start = device.allocate(4 * self._size)
        at = {name: self._address(index * self._rows) for index, name in enumerate(_COLUMNS)}
        self.tokens = at.pop("tokens")
        self._tables = StepTables(
            rows=self._rows,
            **at,
            ancestors=self._address(self._ancestors),
            page_table=self._address(self._pages),
            max_pages=self._max_pages,
        )

    @staticmethod
    def size(rows: int, context: int) -> int:
        """Bytes for so many rows."""
        return 4 * (rows + _ALIGNED) * (len(_COLUMNS) + 4 + -(-context // PAGE) + TREE)

    @property
    def wanted(self) -> Address:
        """Of rows that go through the head or whose hidden states are wanted, int32."""
        return self._address(self._wanted)

    @property
    def tiles(self) -> Address:
        """See `edge.executors.cuda.operators.attention.tiles`, one for each row at most, of all lists."""
        return self._address(self._tiles)

    def tables(self, rows: int) -> StepTables:
        """Of a pass of so many rows."""
        return replace(self._tables, rows=rows)

    def fill(self, rows: PassRows, padded: int, wanted: Sequence[int], *tiles: Int32) -> None:
        """Upload a pass, with dead rows up to `padded`. tiles: one list behind another, see `tile_place`."""
        for index, name in enumerate(_COLUMNS):
            column = self._host[index * self._rows :][:padded]
            column[: rows.rows] = getattr(rows, name)
            column[rows.rows :] = _DEAD.get(name, 0)
        self._host[self._wanted :][: self._rows] = 0
        self._host[self._wanted :][: len(wanted)] = wanted
        place = self._tiles
        for each in tiles:
            self._host[place:][: each.size] = each.reshape(-1)
            place += 2 * tile_place(len(each))
        self._put_pages(rows.caches)
        used = self._pages + len(rows.caches) * self._max_pages
        self._device.upload(self._start, self._host[:used])
        if rows.trees:
            self._device.upload(self._tables.ancestors, rows.ancestors)

    def fill_kept(self, cache: CudaCache, first: int, count: int) -> None:
        """Upload rows `first` to `first + count` of one cache, which are there already, as a causal step."""
        places = np.arange(first, first + count, dtype=np.int32)
        zeros = np.zeros_like(places)
        columns = (zeros, places, zeros, places, zeros + first, places, zeros)
        for index, column in enumerate(columns):
            self._host[index * self._rows :][:count] = column
        self._put_pages((cache,))
        self._device.upload(self._start, self._host[: self._pages + self._max_pages])

    def _put_pages(self, caches: Sequence[CudaCache]) -> None:
        table: npt.NDArray[np.int32] = self._host[self._pages : self._ancestors]
        for index, cache in enumerate(caches):
            row = table[index * self._max_pages :][: self._max_pages]
            row[: len(cache.pages)] = cache.pages[: self._max_pages]

    def _address(self, number: int) -> Address:
        return self._start + 4 * number

    def free(self) -> None:
        """Give the memory back."""
        self._device.free(self._start)


def tile_place(tiles: int) -> int:
    """Where the next list begins behind one of so many tiles of 8 bytes, whose address must be aligned."""
    return -(-tiles // 2) * 2
