"""What an export is asked for: the options of `edge export`, checked as far as they stand alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edge.config.attention import AttentionMode
from edge.errors import BundleError, ExportError
from edge.quant.scheme import QuantScheme

TargetName = Literal["bundle", "executorch", "onnx", "coreml", "gguf"]
Method = Literal["rtn", "gptq", "p-gptq"]
GGUFType = Literal["f16", "q8_0", "q4_1", "q4_0", "tq2_0", "tq1_0"]

DEFAULT_HEAD = "int8"


@dataclass(frozen=True)
class ExportOptions:
    """quantize, head: names as for `edge.quant.scheme.QuantScheme.from_name`, quantize also `source`.

    Without quantize the source's own types are kept, and floats become int4. method, smooth, calibration: the
    calibrated quantizers (`edge.export.quantize`); calibration is a text file. head: of embedding and head
    where quantize is given, by default int8, and floats beside floats.
    context: tokens that the artifact is made for, by default the trained ones. attention: as `--attention`
    everywhere. portable: only operators of the unmodified runtime. gguf_type: type of all matrices in a GGUF
    file; None takes the one that is exact for each. Raises ExportError for a contradiction.
    """

    target: TargetName
    quantize: str | None = None
    method: Method = "rtn"
    head: str | None = None
    smooth: bool = False
    calibration: Path | None = None
    context: int | None = None
    attention: AttentionMode = "auto"
    portable: bool = False
    gguf_type: GGUFType | None = None

    def __post_init__(self) -> None:
        known: tuple[tuple[str, object, tuple[str, ...]], ...] = (
            ("target", self.target, get_args(TargetName)),
            ("method", self.method, get_args(Method)),
            ("attention", self.attention, get_args(AttentionMode)),
            ("GGUF type", self.gguf_type, ("", *get_args(GGUFType))),
        )
        for what, value, names in known:
            if (value or "") not in names:
                raise ExportError(
                    f"Unknown {what} '{value}'; choose one of {', '.join(filter(None, names))}."
                )
        scheme = named_scheme(self.quantize)
        check_head(self.head)
        if self.calibrated and not can_calibrate(scheme):
            raise ExportError(
                "The methods gptq and p-gptq and smoothing choose how to round; give `--quantize int4` or "
                "int8 with them, or leave `--method` and `--smooth` out."
            )
        if self.head is not None and scheme is None:
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


def named_scheme(quantize: str | None) -> QuantScheme | None:
    """The scheme of a name, None where the source's own types are kept; ExportError for an unknown name."""
    try:
        return QuantScheme.chosen(quantize)
    except BundleError as error:
        raise ExportError(str(error)) from None


def check_head(head: str | None) -> None:
    """Raise ExportError for a head that rounding can't make."""
    scheme = named_scheme(head)
    if head is not None and (scheme is None or scheme.declared.trained):
        raise ExportError(
            f"Embedding and head are rounded to the nearest value, which gives no {head}; choose int4, int8 "
            "or f16 as the head."
        )


def can_calibrate(scheme: QuantScheme | None) -> bool:
    """Whether there is a choice of how to round: to codes around zero that no training has chosen."""
    return not (scheme is None or scheme.is_float or scheme.minimum or scheme.declared.trained)
