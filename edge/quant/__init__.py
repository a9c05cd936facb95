"""How weights are quantized: schemes, rounding, and the bytes that the kernels read."""
