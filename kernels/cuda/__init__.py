"""CUDA kernels as Triton functions: `edge.kernels` in Python, sources for `make cubins`.

One module is one operator; its `ENTRIES` are what is compiled of it. Nothing of the runtime imports them.
"""
