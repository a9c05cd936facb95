"""What an export is asked for: the options of `edge export`, checked as far as they stand alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edge.attention import AttentionMode
from edge.errors import ExportError

TargetName = Literal["bundle", "executorch", "onnx", "coreml", "gguf"]
Method = Literal["rtn", "gptq", "p-gptq"]
GGUFType = Literal["f16", "q8_0", "q4_1", "q4_0", "tq2_0", "tq1_0"]

QUANTIZATIONS: dict[str, tuple[str | None, int | None]] = {
    "int4": ("int4", 128),
    "int4-g32": ("int4", 32),
    "int8": ("int8", None),
    "ternary": ("ternary", None),
    "none": ("none", None),
}
"""Names of `--quantize` -> the converter's name and group (None: its own default)."""


@dataclass(frozen=True)
class ExportOptions:
    """quantize: a name of QUANTIZATIONS; None keeps the source's own types (int4 in groups of 32 for floats).

    method, smooth, calibration: the calibrated quantizers, int4 only; calibration is a text file.
    context: tokens that the artifact is made for, by default the trained ones. attention: as `--attention`
    everywhere. portable: only operators of the unmodified runtime. gguf_type: type of all matrices in a GGUF
    file; None takes the one that is exact for each. Raises ExportError for a contradiction.
    """

    target: TargetName
    quantize: str | None = None
    method: Method = "rtn"
    smooth: bool = False
    calibration: Path | None = None
    context: int | None = None
    attention: AttentionMode = "auto"
    portable: bool = False
    gguf_type: GGUFType | None = None

    def __post_init__(self) -> None:
        known: tuple[tuple[str, object, tuple[str, ...]], ...] = (
            ("target", self.target, get_args(TargetName)),
            ("quantization", self.quantize, ("", *QUANTIZATIONS)),
            ("method", self.method, get_args(Method)),
            ("attention", self.attention, get_args(AttentionMode)),
            ("GGUF type", self.gguf_type, ("", *get_args(GGUFType))),
        )
        for what, value, names in known:
            if (value or "") not in names:
                raise ExportError(
                    f"Unknown {what} '{value}'; choose one of {', '.join(filter(None, names))}."
                )
        if self.calibrated and self.quantize not in ("int4", "int4-g32"):
            raise ExportError(
                "The methods gptq and p-gptq and smoothing are made for int4; give `--quantize int4` or "
                "`int4-g32`, or leave `--method` and `--smooth` out."
            )
        if self.calibrated and self.calibration is None:
            raise ExportError(
                "The methods gptq and p-gptq and smoothing need a text to calibrate with; "
                "give one with `--calibration FILE`."
            )
        if self.calibration is not None and not self.calibrated:
            raise ExportError(
                "Rounding to nearest needs no calibration text; leave `--calibration` out or choose "
                "`--method gptq` or p-gptq."
            )
        if self.context is not None and self.context < 1:
            raise ExportError(f"The context must be 1 token or more, not {self.context}.")
        if self.gguf_type is not None and self.target != "gguf":
            raise ExportError(f"A GGUF type belongs to `--to gguf`, not to {self.target}; leave it out.")
        if self.portable and self.target not in ("onnx", "executorch"):
            raise ExportError(
                f"`--portable` chooses a flavour of onnx and executorch; {self.target} has only one, "
                "leave it out."
            )

    @property
    def calibrated(self) -> bool:
        """Whether quantization looks at activations."""
        return self.method != "rtn" or self.smooth
