"""Runs a saved ML Program in NumPy: the check of a Core ML artifact where there is no Core ML.

Operators follow the MIL documentation of iOS 18; arithmetic is float32, so what it tests is the program and
its weights, not how a device rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ArtifactError

Array = npt.NDArray[Any]
_DTYPES = {"fp32": np.float32, "fp16": np.float32, "int32": np.int32, "bool": np.bool_}


class MilProgram:
    """A program loaded from an .mlpackage, with its states; ArtifactError for one that can't be read."""

    def __init__(self, package: Path) -> None:
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto import load as milproto

        try:
            model = ct.models.MLModel(str(package), skip_model_load=True)
            spec = model.get_spec()
            program = milproto.load(
                spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ArtifactError(f"'{package}' is not a readable ML Program ({error}).") from None
        self.function = program.functions["main"]
        self.states: dict[str, Array] = {
            name: np.zeros(variable.shape, np.float32)
            for name, variable in self.function.inputs.items()
            if name not in ("tokens", "position")
        }
        self._constants: dict[str, Array] = {}

    def constant(self, name: str) -> Array:
        """The expanded value of a weight, in the program's own type."""
        for operation in self.function.operations:
            if operation.outputs[0].name == name:
                return _expand(operation)
        raise ArtifactError(f"The ML Program has no weight '{name}'.")

    def predict(self, tokens: Array, position: int) -> npt.NDArray[np.float32]:
        """`logits` [vocab_size] of the last of `tokens`; the states keep what was appended."""
        values: dict[str, Any] = {
            "tokens": np.asarray(tokens, np.int32)[None],
            "position": np.array([position], np.int32),
            **{name: name for name in self.states},  # a state stands for itself
        }
        for operation in self.function.operations:
            results = self._run(operation, values)
            for variable, result in zip(operation.outputs, results, strict=True):
                values[variable.name] = result
        logits: npt.NDArray[np.float32] = values[self.function.outputs[0].name][-1]
        return logits

    def _run(self, operation: Any, values: Mapping[str, Any]) -> list[Any]:
        kind = operation.op_type
        if kind == "const" or kind.startswith("constexpr_"):
            name = operation.outputs[0].name
            if name not in self._constants:
                value = _expand(operation)
                is_half = isinstance(value, np.ndarray) and value.dtype == np.float16
                self._constants[name] = value.astype(np.float32) if is_half else value
            return [self._constants[name]]
        given = {name: _value(variable, values) for name, variable in operation.inputs.items()}
        if kind == "read_state":
            return [self.states[given["input"]]]
        if kind == "coreml_update_state":
            self.states[given["state"]] = given["value"]
            return [given["value"]]
        if kind not in _OPERATORS:
            raise ArtifactError(f"The check does not know the operator '{kind}'; update minicpm-edge.")
        result = _OPERATORS[kind](given)
        return result if isinstance(result, list) else [result]


def _expand(operation: Any) -> Any:
    if operation.op_type == "const":
        return operation.outputs[0].val
    if operation.op_type == "constexpr_lut_to_dense" and operation.lut.val is None:
        # The converter moves a ternary weight's scales into its table, which is then expanded first.
        return operation.decompress(operation.indices.val, _expand(operation.lut.op), None)
    return operation.materialized_val_inference()


def _value(variable: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(variable, (list, tuple)):
        return [_value(each, values) for each in variable]
    return values.get(variable.name, variable.val)


def _slice(given: Mapping[str, Any]) -> Array:
    x = given["x"]
    masks = [given.get(name) for name in ("begin_mask", "end_mask")]
    begins, ends = (np.zeros(x.ndim, bool) if mask is None else np.asarray(mask) for mask in masks)
    bounds = zip(given["begin"], given["end"], begins, ends, strict=True)
    found: Array = x[tuple(slice(None if b else i, None if e else j) for i, j, b, e in bounds)]
    return found


def _slice_update(given: Mapping[str, Any]) -> Array:
    out: Array = given["x"].copy()
    out[tuple(slice(i, j) for i, j in zip(given["begin"], given["end"], strict=True))] = given["update"]
    return out


def _matmul(given: Mapping[str, Any]) -> Array:
    x, y = (
        given[name].swapaxes(-1, -2) if given.get(f"transpose_{name}") else given[name] for name in ("x", "y")
    )
    found: Array = x @ y
    return found


def _softmax(given: Mapping[str, Any]) -> Array:
    x, axis = given["x"], int(given["axis"])
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    found: Array = powers / powers.sum(axis=axis, keepdims=True)
    return found


def _linear(given: Mapping[str, Any]) -> Array:
    bias = given.get("bias")
    found: Array = given["x"] @ given["weight"].T + (0 if bias is None else bias)
    return found


def _reduce_mean(given: Mapping[str, Any]) -> Array:
    found: Array = given["x"].mean(axis=tuple(given["axes"]), keepdims=bool(given["keep_dims"]))
    return found


_OPERATORS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "add": lambda given: given["x"] + given["y"],
    "cast": lambda given: np.asarray(given["x"]).astype(_DTYPES[given["dtype"]]),
    "concat": lambda given: np.concatenate(given["values"], axis=given["axis"]),
    "expand_dims": lambda given: np.expand_dims(given["x"], tuple(given["axes"])),
    "gather": lambda given: np.take(given["x"], given["indices"], axis=int(given["axis"])),
    "greater_equal": lambda given: given["x"] >= given["y"],
    "less_equal": lambda given: given["x"] <= given["y"],
    "linear": _linear,
    "matmul": _matmul,
    "mul": lambda given: given["x"] * given["y"],
    "range_1d": lambda given: np.arange(given["start"], given["end"], given["step"], dtype=np.int32),
    "reduce_mean": _reduce_mean,
    "reshape": lambda given: given["x"].reshape(tuple(given["shape"])),
    "rsqrt": lambda given: 1 / np.sqrt(given["x"] + given["epsilon"]),
    "select": lambda given: np.where(given["cond"], given["a"], given["b"]),
    "shape": lambda given: np.array(given["x"].shape, np.int32),
    "silu": lambda given: given["x"] / (1 + np.exp(-given["x"])),
    "slice_by_index": _slice,
    "slice_update": _slice_update,
    "softmax": _softmax,
    "split": lambda given: np.split(given["x"], int(given["num_splits"]), axis=int(given["axis"])),
    "squeeze": lambda given: np.squeeze(given["x"], tuple(given["axes"])),
    "sub": lambda given: given["x"] - given["y"],
    "transpose": lambda given: given["x"].transpose(tuple(given["perm"])),
}
