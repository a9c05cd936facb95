"""A model's weights on a device: uploaded as the bundle has them, and repacked there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD
from edge.errors import BundleError
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix, variant_of
from edge.executors.cuda.operators.repack import repack
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.model_files import PackedFiles

_PARTS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Matrices of a layer, and the tensors that stand below each other in them."""


@dataclass(frozen=True)
class LayerWeights:
    """Norms are addresses of float32 vectors."""

    input_norm: Address
    qkv: Matrix
    out: Matrix
    post_norm: Address
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class WeightPlan:
    """What the weights take on a device. tensors: names of those that each matrix is made of, in order.
    uploaded: bytes of the largest of them as it comes, which are needed meanwhile.
    """

    tensors: Mapping[str, tuple[str, ...]]
    matrices: Mapping[str, Matrix]
    vectors: int
    uploaded: int

    @classmethod
    def of(cls, config: ModelConfig, tensors: Mapping[str, BundleTensor]) -> WeightPlan:
        """Of a model's tensors. Raises BundleError for those that can't stand in one matrix."""
        parts: dict[str, tuple[str, ...]] = {EMBEDDING: (EMBEDDING,)}
        if HEAD in tensors:
            parts[HEAD] = (HEAD,)
        for index in range(config.num_hidden_layers):
            layer = f"model.layers.{index}"
            for part, names in _PARTS.items():
                parts[f"{layer}.{part}"] = tuple(f"{layer}.{name}.weight" for name in names)
        matrices = {name: _stacked([tensors[each] for each in names]) for name, names in parts.items()}
        vectors = sum(4 * info.columns for info in tensors.values() if len(info.shape) == 1)
        uploaded = max(info.bytes for info in tensors.values())
        return cls(parts, matrices, vectors, uploaded)

    @property
    def total(self) -> int:
        """Bytes for as long as the model is open."""
        return sum(matrix.size for matrix in self.matrices.values()) + self.vectors


@dataclass(frozen=True)
class DeviceWeights:
    """inverse_frequency: of RoPE, the address of a float32 vector, as final_norm is."""

    embedding: Matrix
    layers: Sequence[LayerWeights]
    final_norm: Address
    head: Matrix
    inverse_frequency: Address

    @classmethod
    def load(
        cls, device: Device, plan: WeightPlan, files: PackedFiles, inverse_frequency: npt.NDArray[np.float32]
    ) -> DeviceWeights:
        """Upload everything; a matrix at a time is in memory twice. Who closes the device frees it."""
        source = device.allocate(plan.uploaded)
        matrices = {
            name: _uploaded(device, files, plan.tensors[name], matrix, source)
            for name, matrix in plan.matrices.items()
        }
        device.synchronize()
        device.free(source)

        def vector(values: npt.NDArray[np.float32]) -> Address:
            address = device.allocate(values.nbytes)
            device.upload(address, values)
            return address

        def norm(name: str) -> Address:
            size = 4 * files.tensors[name].columns
            return vector(files.data(name)[:size].view(np.float32))

        layers = []
        for index in range(sum(name.endswith(".qkv") for name in plan.matrices)):
            layer = f"model.layers.{index}"
            own = {part: matrices[f"{layer}.{part}"] for part in _PARTS}
            norms = (f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight")
            first, second = map(norm, norms)
            layers.append(LayerWeights(input_norm=first, post_norm=second, **own))
        head = matrices.get(HEAD, matrices[EMBEDDING])
        return cls(matrices[EMBEDDING], layers, norm(FINAL_NORM), head, vector(inverse_frequency))


def _stacked(tensors: Sequence[BundleTensor]) -> Matrix:
    """One matrix of tensors below each other."""
    first = tensors[0]
    for other in tensors[1:]:
        if other.scheme != first.scheme:
            raise BundleError(
                f"'{first.name}' is {first.scheme} and '{other.name}' {other.scheme}: the cuda executor "
                "takes them as one matrix; convert the model with one quantization, or choose native."
            )
    return Matrix(variant_of(first.scheme.packing), sum(info.rows for info in tensors), first.columns)


def _uploaded(
    device: Device, files: PackedFiles, names: Sequence[str], matrix: Matrix, source: Address
) -> Matrix:
    """The matrix with its memory, which the tensors fill. source: room for one of them as it comes."""
    placed, first = matrix.at(device.allocate(matrix.size)), 0
    for name in names:
        info = files.tensors[name]
        device.upload(source, files.data(name))
        repack(device, info.scheme.packing, source, placed, first=first, rows=info.rows)
        first += info.rows
    return placed
