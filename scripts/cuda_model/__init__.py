"""Predicts what CUDA kernels take on GPUs that nobody has here: nothing in it was measured on one.

`passes` has the executor's own network queue a pass, `code` reads the machine code of its kernels, `work`
says what each launch moves, and `times` what that takes on one of `gpus`.
"""
