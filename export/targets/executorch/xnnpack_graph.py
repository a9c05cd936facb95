"""Builds one program of ExecuTorch's XNNPACK backend, node by node, and makes it a module to call in PyTorch.

ExecuTorch's own way from a network to such programs (its partitioner) runs some forty passes over the whole
graph for every matrix. Here the program is written down directly in the backend's own schema, which
`executorch.backends.xnnpack.serialization` defines and serializes. Values are numbers; a dimension that
differs from call to call is given by its largest size, and in shapes of reshapes and slices as 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    CONSTANT_TENSOR_ALIGNMENT,
    serialize_xnnpack_binary,
)
from executorch.backends.xnnpack.utils.xnnpack_constants import (
    UINT64_MAX,
    XNN_FLAG_TRANSPOSE_B,
    XNN_INVALID_VALUE_ID,
    XNN_VALUE_FLAG_EXTERNAL_INPUT,
    XNN_VALUE_FLAG_EXTERNAL_OUTPUT,
)
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.lowered_backend_module import LoweredBackendModule

from edge.export.targets.executorch.weights import PortableWeights, byte_rows
from edge.export.targets.executorch.xnnpack_shapes import Shape, largest, shape_program

BACKEND = "XnnpackBackend"
_TYPES = schema.XNNDatatype


class XnnpackGraph:
    """The nodes and constants of one program; see the head of this file."""

    def __init__(self) -> None:
        self._arguments: list[Shape] = []
        self._nodes: list[Any] = []
        self._values: list[Any] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._constants = [schema.ConstantDataOffset(0, 0)]
        self._data = NamedDataStore()
        self._made: dict[tuple[Any, ...], int] = {}

    def input(self, shape: Shape) -> int:
        """The next argument, float32."""
        self._arguments.append(shape)
        value = self._value(largest(shape), external=len(self._inputs), flags=XNN_VALUE_FLAG_EXTERNAL_INPUT)
        self._inputs.append(value)
        return value

    def constant(self, array: npt.NDArray[np.float32]) -> int:
        """A constant, float32."""
        return self._value(array.shape, buffer=self._store(array.astype(np.float32, copy=False)))

    def add(self, a: int, b: int) -> int:
        """a + b, broadcast."""
        return self._binary(schema.XNNAdd, a, b)

    def subtract(self, a: int, b: int) -> int:
        """a - b, broadcast."""
        return self._binary(schema.XNNSubtract, a, b)

    def multiply(self, a: int, b: int) -> int:
        """a * b, broadcast."""
        return self._binary(schema.XNNMultiply, a, b)

    def square(self, x: int) -> int:
        """x * x"""
        return self._unary(schema.XNNSquare, x)

    def rsqrt(self, x: int) -> int:
        """1 / sqrt(x)"""
        return self._unary(schema.XNNReciprocalSquareRoot, x)

    def sigmoid(self, x: int) -> int:
        """1 / (1 + exp(-x))"""
        return self._unary(schema.XNNSigmoid, x)

    def softmax(self, x: int) -> int:
        """Over the last dimension."""
        return self._unary(schema.XNNSoftmax, x)

    def reshape(self, x: int, shape: Sequence[int], most: Sequence[int]) -> int:
        """The same elements in another shape with at most one 0; most: the largest sizes."""
        out = self._value(most)
        self._node(schema.XNNStaticReshape(len(shape), list(shape), x, out, 0))
        return out

    def transpose(self, x: int, order: Sequence[int]) -> int:
        """Dimensions in another order."""
        shape = self._shape(x)
        out = self._value([shape[i] for i in order])
        self._node(schema.XNNStaticTranspose(len(order), list(order), x, out, 0))
        return out

    def slice(self, x: int, axis: int, start: int, stop: int) -> int:
        """x[..., start:stop, ...] along an axis; the other dimensions whole."""
        shape = self._shape(x)
        offsets, sizes = [0] * len(shape), [0] * len(shape)
        offsets[axis], sizes[axis] = start, stop - start
        out = self._value([*shape[:axis], stop - start, *shape[axis + 1 :]])
        self._node(schema.XNNStaticSlice(len(shape), offsets, sizes, x, out, 0))
        return out

    def concatenate(self, a: int, b: int) -> int:
        """Both along the last dimension."""
        shape = self._shape(a)
        out = self._value([*shape[:-1], shape[-1] + self._shape(b)[-1]])
        none = XNN_INVALID_VALUE_ID
        self._node(schema.XNNConcatenate2(len(shape) - 1, a, b, none, none, out, 0, none))
        return out

    def matmul(self, a: int, b: int, *, transposed: bool = False) -> int:
        """a [batch, m, k] times b [batch, k, n], or b [batch, n, k] if transposed."""
        out = self._value([*self._shape(a)[:-1], self._shape(b)[-2 if transposed else -1]])
        flags = XNN_FLAG_TRANSPOSE_B if transposed else 0
        self._node(schema.XNNBatchMatrixMultiply(a, b, out, flags))
        return out

    def linear(self, x: int, weights: npt.NDArray[np.float32]) -> int:
        """x [..., columns] times float32 weights [rows, columns], transposed."""
        return self._linear(x, self.constant(weights), weights.shape[0])

    def quantized_linear(self, x: int, weights: PortableWeights) -> int:
        """The same with packed weights: x is rounded to int8, with a scale and a zero point per row of x.

        Offsets are the sums of a group's columns of x, in float32, times one number each, which is rounded to
        int8 with a scale per row.
        """
        rows, columns = weights.codes.shape
        y = self._linear(self._quantized(x), self._packed(weights), rows)
        if weights.offsets is None:
            return y
        sums = self._group_sums(x, columns // weights.group)
        return self.add(y, self._linear(sums, self._packed(byte_rows(weights.offsets)), rows))

    def lowered(self, results: Mapping[int, Shape]) -> LoweredBackendModule:
        """The module, called with all arguments; results: values with their shapes, in order."""
        for value in results:
            tensor = self._values[value].xvalue_union
            external = len(self._inputs) + len(self._outputs)
            tensor.external_id, tensor.flags = external, XNN_VALUE_FLAG_EXTERNAL_OUTPUT
            self._outputs.append(value)
        graph = schema.XNNGraph(
            version="0",
            xnodes=self._nodes,
            xvalues=self._values,
            num_externs=len(self._inputs) + len(self._outputs),
            input_ids=self._inputs,
            output_ids=self._outputs,
            constant_data=self._constants,
        )
        payload = serialize_xnnpack_binary(graph, bytearray())
        program = shape_program(tuple(self._arguments), tuple(results.values()))
        return LoweredBackendModule(program, BACKEND, payload, [], self._data.get_named_data_store_output())

    def _linear(self, x: int, weights: int, rows: int) -> int:
        out = self._value([*self._shape(x)[:-1], rows])
        self._node(schema.XNNFullyConnected(x, weights, XNN_INVALID_VALUE_ID, out, 0))
        return out

    def _quantized(self, x: int) -> int:
        if (made := self._made.get((x,))) is not None:
            return made
        out = self._value(self._shape(x), _TYPES.xnn_datatype_qdint8, schema.PerTokenDynamicQuant(1))
        self._node(schema.XNNConvert(x, out, 0))
        return self._made.setdefault((x,), out)

    def _group_sums(self, x: int, groups: int) -> int:
        """[n, columns] -> [n, groups]"""
        if (made := self._made.get((x, groups))) is not None:
            return made
        n, columns = self._shape(x)
        size = columns // groups
        cut = self.reshape(x, (0, groups, size), (n, groups, size))
        sums = self.linear(cut, np.ones((1, size), np.float32))
        return self._made.setdefault((x, groups), self.reshape(sums, (0, groups), (n, groups)))

    def _packed(self, weights: PortableWeights) -> int:
        codes, scales = weights.codes, weights.scales
        if weights.bits == 4:
            stored = (codes + 8).astype(np.uint8)
            brief = (scales.view(np.uint32) >> 16).astype(np.uint16)  # exact: they are bfloat16 already
            data = self._store(stored[:, 1::2] << 4 | stored[:, ::2], beside=brief)
            quantized = schema.PerChannelGroupQuant(
                [], 0, weights.group, scale_buffer_idx=self._store(brief), num_scales=brief.size
            )
            return self._value(codes.shape, _TYPES.xnn_datatype_qbint4, quantized, buffer=data)
        data, wide = self._store(codes, beside=scales), self._store(scales)
        per_row = schema.PerChannelQuant([], 0, scale_buffer_idx=wide, num_scales=scales.size)
        return self._value(codes.shape, _TYPES.xnn_datatype_qcint8, per_row, buffer=data)

    def _store(self, array: npt.NDArray[Any], beside: npt.NDArray[Any] | None = None) -> int:
        """Keep a constant; beside: the scales that the runtime packs together with it."""
        data = np.ascontiguousarray(array).tobytes()
        # By content and shape: a runtime keeps packed weights of several models under these names alone.
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + data)
        if beside is not None:
            digest.update(f"{beside.shape}".encode() + beside.tobytes())
        key = digest.hexdigest()
        self._data.add_named_data(key, data, CONSTANT_TENSOR_ALIGNMENT)
        self._constants.append(schema.ConstantDataOffset(UINT64_MAX, len(data), key))
        return len(self._constants) - 1

    def _binary(self, kind: Any, a: int, b: int) -> int:
        out = self._value(np.broadcast_shapes(self._shape(a), self._shape(b)))
        self._node(kind(a, b, out, 0))
        return out

    def _unary(self, kind: Any, x: int) -> int:
        out = self._value(self._shape(x))
        self._node(kind(x, out, 0))
        return out

    def _node(self, node: Any) -> None:
        self._nodes.append(schema.XNode(node, debug_handle=len(self._nodes)))

    def _shape(self, value: int) -> list[int]:
        union = self._values[value].xvalue_union
        tensor = union.tensor_value if isinstance(union, schema.XNNQuantizedTensorValue) else union
        return list(tensor.dims)

    def _value(
        self,
        shape: Sequence[int],
        kind: Any = _TYPES.xnn_datatype_fp32,
        quantized: Any = None,
        *,
        buffer: int = 0,
        external: int = XNN_INVALID_VALUE_ID,
        flags: int = 0,
    ) -> int:
        number, dims = len(self._values), [int(size) for size in shape]
        tensor = schema.XNNTensorValue(kind, len(dims), dims, buffer, external, flags, number)
        union = tensor if quantized is None else schema.XNNQuantizedTensorValue(tensor, quantized)
        self._values.append(schema.XValue(union))
        return number
