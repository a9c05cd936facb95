"""The CUDA executor: kernels compiled ahead of time, launched through the driver alone.

No torch, compiler or CUDA toolkit is needed where it runs. The kernels' sources are in `kernels/cuda`
(`edge.kernels`), which nothing here imports; what they take is said in `operators/`, one module for each.
"""
