"""Export: quantizes a checkpoint, and lowers it to what phones and other runtimes run.

The way of a model: `edge.export.source` opens it as a bundle (quantized through `edge.hub.convert` or
`edge.export.quantize`), a target in `edge.export.targets` lowers the bundle's tensors, and
`edge.export.artifact` makes a complete folder of it.
"""
