"""A small writer of ONNX files: nodes by name, and tensors that stream into a file beside the model.

It knows no network, only the names that all decoders share. The model file holds the graph, so that it stays
far below protobuf's limit of 2 GB; the tensors' bytes pass through memory one piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge.export.targets import need

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
IR_VERSION = 10
OPSET = 21
MICROSOFT = "com.microsoft"
LOGITS_FROM = "logits_from"
"""Input of a decoder: the first token of a pass whose logits are wanted; by default -1, the last alone."""
ROW_LOGITS = "row_logits"
"""Output of a decoder: the logits of those tokens."""

_PAGE, _LINE, _LARGE = 4096, 64, 1 << 16  # large tensors start at a page, so that a runtime can map them
_TYPES = {
    "float32": 1,
    "float16": 10,
    "uint8": 2,
    "int32": 6,
    "int64": 7,
}
"""Numbers of ONNX's TensorProto.DataType."""
Dimension = int | str


class GraphBuilder:
    """Builds one graph and its data file; use it in a `with` block, and `save` at its end.

    Without a folder it writes nothing and only tells what it would write, for a plan.
    """

    def __init__(self, folder: Path | None = None, domains: dict[str, int] | None = None) -> None:
        """domains: custom operator domains with their versions, beside ONNX's own and com.microsoft."""
        self._onnx = need("onnx", "The ONNX target")
        self._helper = self._onnx.helper
        self._folder = folder
        self._domains = {"": OPSET, MICROSOFT: 1, **(domains or {})}
        self.data_bytes = 0
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._data: BinaryIO | None = None  # made for the first tensor

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._data is not None:
            self._data.close()

    def input(self, name: str, kind: str, shape: Sequence[Dimension]) -> str:
        """A graph input; `kind` is a NumPy type name. Returns its name."""
        self._inputs.append(self._helper.make_tensor_value_info(name, _TYPES[kind], list(shape)))
        return name

    def optional_input(self, name: str, value: npt.NDArray[Any]) -> str:
        """An input that has this value unless the caller feeds another."""
        self.input(name, str(value.dtype), value.shape)
        return self.constant(name, value)

    def output(self, name: str, kind: str, shape: Sequence[Dimension]) -> str:
        """Declare the value `name` as a graph output."""
        self._outputs.append(self._helper.make_tensor_value_info(name, _TYPES[kind], list(shape)))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | str,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node, named after its first output, which is returned. An input of "" is left out."""
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        self._nodes.append(
            self._helper.make_node(
                operator, list(inputs), outputs, name=outputs[0], domain=domain, **attributes
            )
        )
        return outputs[0]

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """A small tensor inside the model file; the same name again is the same tensor."""
        if name not in self._initializers:
            self._initializers[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def tensor(self, name: str, kind: str, shape: Sequence[int], pieces: Iterable[npt.NDArray[Any]]) -> str:
        """A tensor in the data file, whose bytes are those of `pieces` one after the other."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        padding = -self.data_bytes % (_PAGE if size >= _LARGE else _LINE)
        start = self.data_bytes + padding
        self.data_bytes = start + size
        self.refer(name, kind, shape, DATA_FILE, start)
        if self._folder is not None:
            if self._data is None:
                self._data = (self._folder / DATA_FILE).open("wb")
            self._data.write(bytes(padding))
            for piece in pieces:
                self._data.write(np.ascontiguousarray(piece).data)
            assert self._data.tell() == self.data_bytes, f"{name} has not the size of its shape"
        return name

    def same_bytes(self, name: str, other: str, shape: Sequence[int]) -> str:
        """A tensor that shares the bytes of `other`, which is in the data file, under another shape."""
        twin = self._initializers[other]
        start = next(int(entry.value) for entry in twin.external_data if entry.key == "offset")
        kind = next(kind for kind, number in _TYPES.items() if number == twin.data_type)
        return self.refer(name, kind, shape, DATA_FILE, start)

    def refer(self, name: str, kind: str, shape: Sequence[int], file: str, offset: int) -> str:
        """A tensor whose bytes lie in a file beside the model; the same name again is the same tensor."""
        length = int(np.prod(shape)) * np.dtype(kind).itemsize
        tensor = self._onnx.TensorProto(
            name=name,
            data_type=_TYPES[kind],
            dims=list(shape),
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self._initializers[name] = tensor
        return name

    @property
    def operators(self) -> dict[str, int]:
        """Every operator in use, as `domain::name`, with the version of its domain."""
        return _versioned({(node.domain, node.op_type) for node in self._nodes}, self._domains)

    def save(self, metadata: dict[str, str]) -> int:
        """Write the model file, with metadata in its properties; returns its size in bytes."""
        graph = self._helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, list(self._initializers.values())
        )
        model = self._helper.make_model(
            graph,
            opset_imports=[
                self._helper.make_opsetid(name, version) for name, version in self._domains.items()
            ],
            ir_version=IR_VERSION,
            producer_name="minicpm-edge",
        )
        self._helper.set_model_props(model, metadata)
        if self._folder is not None:
            (self._folder / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
        return int(model.ByteSize())


class GraphSketch(GraphBuilder):
    """For a plan without the package onnx: knows the operators, and estimates the size of the model file."""

    def __init__(self, domains: dict[str, int] | None = None) -> None:
        self._folder = None
        self._domains = {"": OPSET, MICROSOFT: 1, **(domains or {})}
        self.data_bytes = 0
        self._bytes = 200  # of the model around its graph
        self._operators: set[tuple[str, str]] = set()
        self._known: set[str] = set()

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""

    def input(self, name: str, kind: str, shape: Sequence[Dimension]) -> str:
        """See `GraphBuilder`."""
        self._bytes += len(name) + 14 + sum(6 if isinstance(each, int) else 4 + len(each) for each in shape)
        return name

    output = input

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | str,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """See `GraphBuilder`."""
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        self._operators.add((domain, operator))
        names = [*inputs, *outputs, outputs[0], operator, domain]
        values = sum(3 * len(each) if isinstance(each, list) else 4 for each in attributes.values())
        self._bytes += 4 + sum(2 + len(name) for name in (*names, *attributes)) + values + 5 * len(attributes)
        return outputs[0]

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """See `GraphBuilder`."""
        return self._initializer(name, value.nbytes + 6)

    def same_bytes(self, name: str, other: str, shape: Sequence[int]) -> str:
        """See `GraphBuilder`."""
        return self._initializer(name, 70)

    def refer(self, name: str, kind: str, shape: Sequence[int], file: str, offset: int) -> str:
        """See `GraphBuilder`."""
        return self._initializer(name, 54 + 4 * len(shape) + len(file) + len(str(offset)))

    def _initializer(self, name: str, size: int) -> str:
        if name not in self._known:
            self._known.add(name)
            self._bytes += len(name) + 6 + size
        return name

    @property
    def operators(self) -> dict[str, int]:
        """See `GraphBuilder`."""
        return _versioned(self._operators, self._domains)

    def save(self, metadata: dict[str, str]) -> int:
        """The estimate."""
        return self._bytes + sum(len(name) + len(value) + 6 for name, value in metadata.items())


def _versioned(used: set[tuple[str, str]], domains: dict[str, int]) -> dict[str, int]:
    return {f"{domain or 'ai.onnx'}::{name}": domains[domain] for domain, name in sorted(used)}
