"""What a source of weights offers to the converter, whatever its file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.formats.model_files import ModelTexts
from edge.quant.scheme import PackedMatrix, QuantizedMatrix, QuantScheme

READER_VERSION = 2
"""Changes when a file is read to other weights than before: models converted until then are made again."""

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
"""What files call their types of floats (`TensorInfo.source_type`)."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint under its Hugging Face name, known without reading its values.

    shape: (rows, columns), or (n,) for a norm. source_type: what the file calls its type, for `edge inspect`.
    scheme: how it is stored when that has an exact counterpart here, or f16/f32 for floats.
    exact: False when reading must round it (GGUF's Q5_K becomes int8).
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    scheme: QuantScheme
    exact: bool = True


class TensorSource(Protocol):
    """Weights in somebody's file format, read tensor by tensor."""

    @property
    def source(self) -> str:
        """A human-readable name of where they came from."""

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor that the network needs, checked against the config's shapes."""

    def read(self, name: str) -> npt.NDArray[np.float32] | QuantizedMatrix | PackedMatrix:
        """One tensor: floats, or a matrix in the scheme that its TensorInfo names."""


class Checkpoint(ModelTexts, TensorSource, Protocol):
    """A model in somebody's file format.

    Names and row order are those of Hugging Face's Llama (GGUF's interleaved q/k rows are put back).
    """
