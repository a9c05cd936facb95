"""What `scripts/test_cuda.py` is made of.

`processes` runs the parts, each in a process (`worker`); `report` is what a part says; `extents` how much it
does; `devices` the GPU or its stand-in. The parts: `facts`; `layers`, `matrices` and `caches`
(kernels); `models`; `speed`, with `beside`. `targets` holds what was measured against what is wanted.
"""
