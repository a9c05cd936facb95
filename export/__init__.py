"""Export: quantizes a checkpoint, and lowers it to what phones and other runtimes run.

The way of a model: `export.source` opens it as a bundle (quantized through `edge.convert` or
`export.quantize`), a target in `export.targets` lowers the bundle's tensors, and `export.artifact` makes a
complete folder of it.
"""
