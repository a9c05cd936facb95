"""Products with matrices of real shapes: against exact ones of some rows, and in all ways to launch."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from edge.checkpoints.synthetic import random_matrix
from edge.executors.cuda.device import Address
from edge.executors.cuda.matrices import Matrix, variant_of
from edge.executors.cuda.operators.dense import dense, dequantize
from edge.executors.cuda.operators.embedding import embed
from edge.executors.cuda.operators.linear import linear
from edge.executors.cuda.operators.repack import repack
from edge.executors.cuda.trial import Trial
from edge.quant.packing import dequantize as unpacked
from edge.quant.scheme import QuantScheme

from .devices import Watched
from .extents import Extent
from .report import Report

LIMIT = 1e-5
"""Of a product's difference from the exact one, as a share of the sum of its terms' absolute values: sums are
float32, of up to some thousand terms."""

_BLOCK = 32  # rows: their packed bytes are a multiple of the alignment, so that blocks stand for themselves
_BLOCKS = 2  # that are compared with exact products

Floats = npt.NDArray[np.float64]


def check_matrices(device: Watched, report: Report, extent: Extent) -> None:
    """All matrices of all shapes, and the other schemes on one of each."""
    for shape in extent.shapes:
        for scheme in (extent.scheme, *extent.others):
            for name, (rows, columns) in shape.matrices.items():
                if scheme == extent.scheme or name == "out":
                    title = f"linear {shape.name} {name} {scheme}"
                    made = Made(device, QuantScheme.from_name(scheme), rows, columns)
                    report.run(title, partial(made.check, report, title, extent))


class Made:
    """A random matrix: as a bundle has it, and on the device while it is checked."""

    def __init__(self, device: Watched, scheme: QuantScheme, rows: int, columns: int) -> None:
        self._device, self._scheme, self._rows, self._columns = device, scheme, rows, columns

    def check(self, report: Report, title: str, extent: Extent) -> None:
        """Weights, products of few and of many rows, and that no row depends on the others."""
        random = np.random.Generator(np.random.SFC64([self._rows, self._columns]))
        data = random_matrix(random, self._rows, self._columns, self._scheme, self._columns**-0.5)
        x = random.standard_normal((extent.many, self._columns), np.float32).astype(np.float16)
        samples = random.choice(self._rows // _BLOCK, _BLOCKS, replace=False)
        with Trial(self._device) as trial:
            matrix = Matrix(variant_of(self._scheme.packing), self._rows, self._columns)
            matrix = matrix.at(trial.room(matrix.size))
            source = trial.sent(data.data)
            repack(self._device, self._scheme.packing, source, matrix, first=0, rows=self._rows)
            plain = trial.room(matrix.dense_bytes)
            given = trial.sent(x)
            few = max(extent.rows)
            widest = self._rows * max(extent.many, matrix.slices * max(few, extent.between))
            out = trial.room(4 * max(widest, _BLOCKS * _BLOCK * self._columns))

            exact_weights = self._sampled(data.data, samples)
            tokens = trial.sent(self._at(samples).astype(np.int32))
            embed(self._device, matrix, tokens, out, rows=exact_weights.shape[0], scale=1.0)
            embedded = np.empty_like(exact_weights)
            self._device.download(out, embedded)
            report.near(f"{title}, as an embedding", embedded, exact_weights, 1e-6)
            weights = exact_weights.astype(np.float16)
            dequantize(self._device, matrix, plain)
            report.same(f"{title}, weights", self._dense(matrix, plain, samples), weights)

            sums = self._sums(matrix, given, out, few)
            at = self._at(samples)
            exact = x[:few].astype(np.float64) @ weights.astype(np.float64).T
            size_of = np.abs(x[:few].astype(np.float64)) @ np.abs(weights.astype(np.float64)).T
            apart = float((np.abs(sums[:, at] - exact) / size_of).max())
            report.check(f"{title}, products", apart <= LIMIT, apart=apart, limit=LIMIT)
            for rows in (*extent.rows[:-1], extent.between):
                least = min(rows, few)
                found = self._sums(matrix, given, out, rows)
                report.same(f"{title}, {rows} rows as {few}", found[:least], sums[:least])
            last = given + 2 * (few - 1) * self._columns
            report.same(f"{title}, the last of {few} rows alone", self._sums(matrix, last, out, 1), sums[-1:])
            dense(self._device, matrix, given, out, plain, rows=extent.many)
            whole = np.empty((extent.many, self._rows), np.float32)
            self._device.download(out, whole)
            report.same(f"{title}, {extent.many} rows as {few}", whole[:few], sums)
            last = given + 2 * (extent.many - 1) * self._columns
            found = self._sums(matrix, last, out, 1)
            report.same(f"{title}, the last of {extent.many} rows alone", found, whole[-1:])

    def _sums(self, matrix: Matrix, x: Address, out: Address, rows: int) -> npt.NDArray[np.float32]:
        """Of all slices, added as kernels add them."""
        linear(self._device, matrix, x, out, rows=rows)
        slices = np.empty((matrix.slices, rows, self._rows), np.float32)
        self._device.download(out, slices)
        total = slices[0]
        for each in slices[1:]:
            total = total + each
        return total

    def _at(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).reshape(-1)

    def _sampled(self, data: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Weights of some blocks of rows."""
        size = self._scheme.packed_bytes(_BLOCK, self._columns)
        parts = [data[block * size : (block + 1) * size] for block in blocks]
        found = [unpacked(part, self._scheme, _BLOCK, self._columns) for part in parts]
        return np.concatenate(found)

    def _dense(
        self, matrix: Matrix, plain: Address, blocks: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float16]:
        """The same rows of the matrix that the device has dequantized."""
        found = np.empty((len(blocks), _BLOCK, matrix.padded_columns), np.float16)
        for into, block in zip(found, blocks, strict=True):
            self._device.download(plain + 2 * int(block) * _BLOCK * matrix.padded_columns, into)
        return found.reshape(-1, matrix.padded_columns)[:, : self._columns]
