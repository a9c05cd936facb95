"""What an export is asked for, checked as far as it stands alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edge.config.attention import AttentionMode
from edge.errors import EdgeError, ExportError
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions
from edge.system.options import REQUIRED, check_options, option, same

TargetName = Literal["bundle", "executorch", "onnx", "coreml", "gguf"]
Method = Literal["rtn", "gptq", "p-gptq"]
Head = Literal["int4", "int8", "f16"]
GGUFType = Literal["f16", "q8_0", "q4_1", "q4_0", "tq2_0", "tq1_0"]

QUANTIZATIONS: dict[str, tuple[str | None, int | None]] = {
    "int4": ("int4", 128),
    "int4-g32": ("int4", 32),
    "int8": ("int8", None),
    "ternary": ("ternary", None),
    "source": ("none", None),
}
"""Names of `--quantize` -> the converter's name and group (None: its own default)."""
DEFAULT_HEAD: Head = "int8"


@dataclass(frozen=True)
class ExportOptions:
    """See the fields' own help; raises ExportError for a contradiction.

    quantize: a name of QUANTIZATIONS; None keeps the source's own types (int4 in groups of 32 for floats).
    method, smooth, calibration: the calibrated quantizers (`edge.export.quantize`). context: tokens that the
    artifact is made for.
    """

    target: TargetName = option(REQUIRED, "What to make.", choices=get_args(TargetName), flag="--to")
    quantize: str | None = same(SourceOptions, "quantize")
    method: Method = option(
        "rtn", "How to quantize: to the nearest value, or calibrated.", choices=get_args(Method)
    )
    head: str | None = same(SourceOptions, "head")
    smooth: bool = option(False, "Move outliers of activations into the weights first.")
    calibration: Path | None = option(
        None, "The text that calibrated methods look at (UTF-8).", metavar="FILE"
    )
    context: int | None = same(RunOptions, "context")
    attention: AttentionMode = same(RunOptions, "attention")
    portable: bool = option(False, "onnx, executorch: only operators of the unmodified runtime.")
    gguf_type: GGUFType | None = option(
        None,
        "gguf: one type for all matrices; by default the exact one for each.",
        choices=get_args(GGUFType),
    )

    def __post_init__(self) -> None:
        try:
            check_options(self)
        except EdgeError as error:
            raise ExportError(str(error)) from None
        for what, value, names in (
            ("quantization", self.quantize, tuple(QUANTIZATIONS)),
            ("head", self.head, get_args(Head)),
        ):
            if value is not None and value not in names:
                raise ExportError(f"Unknown {what} '{value}'; choose one of {', '.join(names)}.")
        if self.calibrated and self.quantize not in ("int4", "int4-g32", "int8"):
            raise ExportError(
                "The methods gptq and p-gptq and smoothing choose how to round; give `--quantize int4`, "
                "int4-g32 or int8 with them, or leave `--method` and `--smooth` out."
            )
        if self.head is not None and self.quantize in (None, "source"):
            raise ExportError(
                "`--head` belongs to `--quantize`; without it embedding and head keep their own types."
            )
        if self.calibration is not None and not self.calibrated:
            raise ExportError(
                "Rounding to nearest needs no calibration text; leave `--calibration` out or choose "
                "`--method gptq` or p-gptq."
            )
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
