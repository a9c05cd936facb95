"""Quantizers: from a checkpoint to a quantized bundle, with a report of the error of every layer beside it.

Round-to-nearest itself is in `edge.quant.rounding`; here is what needs the checkpoint's activations, and the
one entry to all of it.
"""

from edge.export.quantize.options import METHODS, VERSION, QuantizeOptions
from edge.export.quantize.run import quantize_checkpoint, report_path

__all__ = [
    "METHODS",
    "VERSION",
    "QuantizeOptions",
    "quantize_checkpoint",
    "report_path",
]
