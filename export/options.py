"""What an export is asked for: the options of `edge export`, checked as far as they stand alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edge.config.attention import AttentionMode
from edge.errors import ExportError

TargetName = Literal["bundle", "executorch", "onnx", "coreml", "gguf"]
Method = Literal["rtn", "gptq", "p-gptq"]
Head = Literal["int4", "int8", "f16"]
GGUFType = Literal["f16", "q8_0", "q4_1", "q4_0", "tq2_0", "tq1_0"]

QUANTIZATIONS: dict[str, tuple[str | None, int | None]] = {
    "int4": ("int4", 128),
    "int4-g32": ("int4", 32),
    "int8": ("int8", None),
    "ternary": ("ternary", None),
    "none": ("none", None),
}
"""Names of `--quantize` -> the converter's name and group (None: its own default)."""
DEFAULT_HEAD: Head = "int8"


@dataclass(frozen=True)
class ExportOptions:
    """quantize: a name of QUANTIZATIONS; None keeps the source's own types (int4 in groups of 32 for floats).

    method, smooth, calibration: the calibrated quantizers (`edge.export.quantize`); calibration is a text
    file. head: scheme of embedding and head where quantize is given, by default int8 in groups of 32.
    context: tokens that the artifact is made for, by default the trained ones. attention: as `--attention`
    everywhere. portable: only operators of the unmodified runtime. gguf_type: type of all matrices in a GGUF
    file; None takes the one that is exact for each. Raises ExportError for a contradiction.
    """

    target: TargetName
    quantize: str | None = None
    method: Method = "rtn"
    head: Head | None = None
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
            ("head", self.head, ("", *get_args(Head))),
            ("attention", self.attention, get_args(AttentionMode)),
            ("GGUF type", self.gguf_type, ("", *get_args(GGUFType))),
        )
        for what, value, names in known:
            if (value or "") not in names:
                raise ExportError(
                    f"Unknown {what} '{value}'; choose one of {', '.join(filter(None, names))}."
                )
        if self.calibrated and self.quantize not in ("int4", "int4-g32", "int8"):
            raise ExportError(
                "The methods gptq and p-gptq and smoothing choose how to round; give `--quantize int4`, "
                "int4-g32 or int8 with them, or leave `--method` and `--smooth` out."
            )
        if self.head is not None and self.quantize in (None, "none"):
            raise ExportError(
                "`--head` belongs to `--quantize`; without it embedding and head keep their own types."
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
