"""What a quantization is asked to do: names, their schemes, and the settings of the calibrated methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.config import ModelConfig
from edge.errors import ExportError
from edge.export.options import can_calibrate, check_head, named_scheme
from edge.quant.scheme import QuantScheme

VERSION = 3
"""Changes when the same options would give other weights; part of every key under which results are kept."""
METHODS = ("rtn", "gptq", "p-gptq")
_PYTORCH = 400 << 20  # bytes of the process once it is loaded


@dataclass(frozen=True)
class QuantizeOptions:
    """One quantization; checked when it is made (ExportError names the field).

    quantize: a name as for `edge.quant.scheme.QuantScheme.from_name`; of kinds that a network is trained for
    (`ternary`) the checkpoint must hold the weights, which are packed exactly. `source`: floats become
    float16, packed weights stay as they are.
    method: round-to-nearest, GPTQ, or P-GPTQ (the first 4 positions of a sequence enter the Hessian scaled
    down to the size of an ordinary one).
    smooth: AWQ-style scaling of input channels before either; it needs calibration too.
    calibration: a UTF-8 text; None takes the text of `edge.export.calibration.default_text`.
    sequences, length: calibration sequences and their tokens, BOS included. head: scheme of the embedding and
    the head, always round-to-nearest. damping: share of the Hessian's mean diagonal that
    is added to it. act_order: quantize the columns with the largest activations first. threads: of torch
    while this runs; results are bit-equal only for the same number.
    """

    quantize: str
    method: str = "rtn"
    smooth: bool = False
    calibration: Path | None = None
    sequences: int = 64
    length: int = 512
    head: str = "int8"
    damping: float = 0.01
    act_order: bool = True
    threads: int = 2

    def __post_init__(self) -> None:
        scheme = named_scheme(self.quantize)
        check_head(self.head)
        if self.method not in METHODS:
            raise ExportError(f"Unknown method '{self.method}'; choose one of {', '.join(METHODS)}.")
        for field, least in (("sequences", 1), ("length", 8), ("threads", 1)):
            if getattr(self, field) < least:
                raise ExportError(f"{field} must be {least} or more, got {getattr(self, field)}.")
        if not 0 < self.damping <= 1:
            raise ExportError(f"damping must be above 0 and at most 1, got {self.damping}.")
        if self.is_calibrated and not can_calibrate(scheme):
            raise ExportError(
                f"'{self.quantize}' leaves nothing to calibrate: leave method and smoothing out, or quantize "
                "to int4, int8 or another kind that rounds to codes around zero."
            )

    def memory(self, config: ModelConfig) -> int:
        """An estimate of the anonymous memory that a calibrated run needs at most, in bytes.

        PyTorch itself and the text's activations (one batch of a layer's beside them), and the larger of the
        embedding and one layer in float32 with three Hessians of its widest matrix.
        """
        hidden, inner, keys = config.hidden_size, config.intermediate_size, config.num_key_value_heads
        queries = config.num_attention_heads * config.head_dim
        layer = hidden * (2 * queries + 2 * keys * config.head_dim + 3 * inner)
        most = max(config.vocab_size * hidden, layer + 3 * max(hidden, inner, queries) ** 2)
        return _PYTORCH + 4 * (most + 2 * self.sequences * self.length * hidden)

    @property
    def is_calibrated(self) -> bool:
        """Whether a text has to be run through the network."""
        return self.smooth or self.method != "rtn"

    @property
    def scheme(self) -> QuantScheme:
        """The scheme of every linear layer; only for a quantization that rounds."""
        return QuantScheme.from_name(self.quantize)
