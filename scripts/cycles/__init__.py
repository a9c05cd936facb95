"""Cycles of the kernels' inner loops on cores that are not here, by llvm-mca; see `__main__`.

`kernels` lists the loops, `cores` the cores, `assembly` finds a loop in what the compiler wrote, `tools` runs
compiler and llvm-mca, `check` holds the method against the processor of this machine.
"""
