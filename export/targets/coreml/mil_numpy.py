"""Runs a saved ML Program in NumPy: the check of a Core ML artifact where there is no Core ML.

Operators follow the MIL documentation of iOS 18. Arithmetic is float32, so what it tests is the program and
its weights; `rounded` rounds every float16 result, as a device that sums in float32 would.
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
    """A program loaded from an .mlpackage, with its states; ArtifactError for one that can't be read.

    rounded: whether results that the program declares as float16 are rounded to it.
    """

    def __init__(self, package: Path, rounded: bool = False) -> None:
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
        self.functions, self.rounded = program.functions, rounded
        self.states: dict[str, Array] = {  # which the functions share
            name: np.zeros(variable.shape, np.float32)
            for name, variable in self.functions["main"].inputs.items()
            if name not in ("tokens", "position")
        }
        self._constants: dict[tuple[str, str], Array] = {}  # by function and name

    def constant(self, name: str, function: str = "main") -> Array:
        """The expanded value of a weight, in the program's own type."""
        for operation in self.functions[function].operations:
            if operation.outputs[0].name == name:
                return _expand(operation)
        raise ArtifactError(f"The ML Program has no weight '{name}'.")

    def predict(self, tokens: Array, position: int, function: str = "main") -> npt.NDArray[np.float32]:
        """`logits` [vocab_size] of the last of `tokens`; the states keep what was appended."""
        body = self.functions[function]
        values: dict[str, Any] = {
            "tokens": np.asarray(tokens, np.int32)[None],
            "position": np.array([position], np.int32),
            **{name: name for name in self.states},  # a state stands for itself
        }
        last = _last_uses(body)
        for operation in body.operations:
            if operation.op_type == "const" or operation.op_type.startswith("constexpr_"):
                results = [self._constant(operation, function)]
            else:
                results = self._run(operation, values)
                if self.rounded:
                    results = [*map(_rounded, operation.outputs, results)]
            values.update(
                (variable.name, result) for variable, result in zip(operation.outputs, results, strict=True)
            )
            for name in last.get(operation.name, ()):  # scores over a long cache are large
                del values[name]
        logits: npt.NDArray[np.float32] = values[body.outputs[0].name][-1]
        return logits

    def _constant(self, operation: Any, function: str) -> Any:
        key = (function, operation.outputs[0].name)
        if key not in self._constants:
            value = _expand(operation)
            is_half = isinstance(value, np.ndarray) and value.dtype == np.float16
            self._constants[key] = value.astype(np.float32) if is_half else value
        return self._constants[key]

    def _run(self, operation: Any, values: Mapping[str, Any]) -> list[Any]:
        kind = operation.op_type
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


def _last_uses(function: Any) -> dict[str, list[str]]:
    """Operator -> the results of other operators that no later one takes."""
    last: dict[str, str] = {}
    for operation in function.operations:
        for given in operation.inputs.values():
            for variable in given if isinstance(given, (list, tuple)) else [given]:
                if variable.op is not None:
                    last[variable.name] = operation.name
    names: dict[str, list[str]] = {}
    for name, operation_name in last.items():
        names.setdefault(operation_name, []).append(name)
    return names


def _rounded(variable: Any, result: Any) -> Any:
    """The result as float32, rounded to float16 where the program declares that type."""
    from coremltools.converters.mil.mil import types

    if types.is_tensor(variable.sym_type) and variable.dtype == types.fp16:
        return result.astype(np.float16).astype(np.float32)
    return result


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


def _reduce(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Any]:
    return lambda given: function(given["x"], axis=tuple(given["axes"]), keepdims=bool(given["keep_dims"]))


def _slice_by_size(given: Mapping[str, Any]) -> Array:
    bounds = zip(given["begin"], given["size"], strict=True)
    found: Array = given["x"][tuple(slice(i, i + n) for i, n in bounds)]
    if found.shape != tuple(given["size"]):  # NumPy would cut a slice that reaches out of the tensor
        raise ArtifactError("The ML Program reads outside a tensor; export the model again.")
    return found


def _topk(given: Mapping[str, Any]) -> Array:
    """Values in descending order. No indices: which ones equal values have is not documented."""
    if given["return_indices"] or given["ascending"] or int(given["axis"]) not in (-1, given["x"].ndim - 1):
        raise ArtifactError("The check knows `topk` of the last axis without indices only.")
    found: Array = -np.sort(-given["x"], axis=-1)[..., : int(given["k"])]
    return found


def _pool(function: Callable[..., Any], outside: float) -> Callable[[Mapping[str, Any]], Array]:
    """A pool over [n, channels, *sizes], whose padding has the value `outside`."""

    def pooled(given: Mapping[str, Any]) -> Array:
        x, sizes, strides = given["x"], tuple(given["kernel_sizes"]), given["strides"]
        if given["pad_type"] == "custom":
            pads = np.reshape(given["pad"], (-1, 2)).tolist()
            x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=outside)
        axes = tuple(range(2, x.ndim))
        windows = np.lib.stride_tricks.sliding_window_view(x, sizes, axis=axes)
        kept = tuple(slice(None, None, step) for step in (1, 1, *strides))
        found: Array = function(windows[kept], axis=tuple(range(x.ndim, windows.ndim)))
        return found

    return pooled


def _cumsum(given: Mapping[str, Any]) -> Array:
    if given["exclusive"] or given["reverse"]:
        raise ArtifactError("The check knows the plain `cumsum` only.")
    found: Array = np.cumsum(given["x"], axis=int(given["axis"]), dtype=given["x"].dtype)
    return found


_OPERATORS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "add": lambda given: given["x"] + given["y"],
    "avg_pool": _pool(np.mean, np.nan),  # only ever without padding
    "cast": lambda given: np.asarray(given["x"]).astype(_DTYPES[given["dtype"]]),
    "concat": lambda given: np.concatenate(given["values"], axis=given["axis"]),
    "cumsum": _cumsum,
    "equal": lambda given: given["x"] == given["y"],
    "exp": lambda given: np.exp(given["x"]),
    "expand_dims": lambda given: np.expand_dims(given["x"], tuple(given["axes"])),
    "floor_div": lambda given: np.floor_divide(given["x"], given["y"]),
    "gather": lambda given: np.take(given["x"], given["indices"], axis=int(given["axis"])),
    "greater": lambda given: given["x"] > given["y"],
    "greater_equal": lambda given: given["x"] >= given["y"],
    "less": lambda given: given["x"] < given["y"],
    "less_equal": lambda given: given["x"] <= given["y"],
    "linear": _linear,
    "logical_and": lambda given: given["x"] & given["y"],
    "logical_or": lambda given: given["x"] | given["y"],
    "matmul": _matmul,
    "max_pool": _pool(np.max, -np.inf),
    "maximum": lambda given: np.maximum(given["x"], given["y"]),
    "minimum": lambda given: np.minimum(given["x"], given["y"]),
    "mul": lambda given: given["x"] * given["y"],
    "range_1d": lambda given: np.arange(given["start"], given["end"], given["step"], dtype=np.int32),
    "real_div": lambda given: given["x"] / given["y"],
    "reduce_max": _reduce(np.max),
    "reduce_mean": _reduce(np.mean),
    "reduce_min": _reduce(np.min),
    "reduce_sum": _reduce(np.sum),
    "reshape": lambda given: given["x"].reshape(tuple(given["shape"])),
    "rsqrt": lambda given: 1 / np.sqrt(given["x"] + given["epsilon"]),
    "select": lambda given: np.where(given["cond"], given["a"], given["b"]),
    "shape": lambda given: np.array(given["x"].shape, np.int32),
    "silu": lambda given: given["x"] / (1 + np.exp(-given["x"])),
    "slice_by_index": _slice,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "softmax": _softmax,
    "split": lambda given: np.split(given["x"], int(given["num_splits"]), axis=int(given["axis"])),
    "squeeze": lambda given: np.squeeze(given["x"], tuple(given["axes"])),
    "sub": lambda given: given["x"] - given["y"],
    "topk": _topk,
    "transpose": lambda given: given["x"].transpose(tuple(given["perm"])),
}
