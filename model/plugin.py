"""What this room declares to the runtime: the executor `torch`. Importing it costs nothing: torch comes with
the executor.
"""

from __future__ import annotations

from edge.executors.registry import EXECUTORS, Arithmetic, ExecutorSpec

EXECUTORS.register(
    "torch",
    ExecutorSpec(
        name="torch",
        function="edge.model.executor:open_torch",
        package="torch",
        install="pip install 'minicpm-edge[train]'",
        arithmetic={"": Arithmetic("float32", "float32", "f32")},
        ignores=("mmap", "tier"),
    ),
)
