"""What an export is asked for, checked as far as it stands alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edge.config.attention import AttentionMode, Selection
from edge.config.rope_regime import RopeRegime
from edge.engine.settings import GenerationSettings
from edge.errors import BundleError, EdgeError, ExportError
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions
from edge.quant.scheme import QuantScheme
from edge.system.options import REQUIRED, check_options, option, same

TargetName = Literal["bundle", "executorch", "onnx", "coreml", "gguf"]
Method = Literal["rtn", "gptq", "p-gptq"]
GGUFType = Literal["f16", "q8_0", "q4_1", "q4_0", "tq2_0", "tq1_0"]

DEFAULT_HEAD = "int8"


@dataclass(frozen=True)
class ExportOptions:
    """See the fields' own help; raises ExportError for a contradiction.

    quantize: None keeps the source's own types, and floats become int4. head: of embedding and head where
    quantize is given, by default int8. method, smooth, calibration: the calibrated quantizers
    (`edge.export.quantize`). context: tokens that the artifact is made for.
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
    selection: Selection | None = same(RunOptions, "selection")
    rope_regime: RopeRegime = same(RunOptions, "rope_regime")
    eos: tuple[str, ...] = same(GenerationSettings, "eos")
    draft: str | None = option(
        None,
        "bundle: put the model's draft beside it, for speculation: a folder, a hub id or random:eagle2.",
        metavar="DRAFT",
    )
    draft_vocabulary: str | None = option(
        None,
        "The tokens that the draft can guess: a freq_N.pt file, their number, or all.",
        metavar="FILE|N",
    )
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
        if self.gguf_type is not None and self.target != "gguf":
            raise ExportError(f"A GGUF type belongs to `--to gguf`, not to {self.target}; leave it out.")
        if self.draft is not None and self.target != "bundle":
            raise ExportError(f"A draft belongs to `--to bundle`, not to {self.target}; leave it out.")
        if self.draft_vocabulary is not None and self.draft is None:
            raise ExportError("`--draft-vocabulary` belongs to `--draft`; name the draft too.")
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
