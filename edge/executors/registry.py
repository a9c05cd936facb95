"""Every executor is one declaration; `edge.executors.opening` opens what is declared here.

Built in are `native` and `cuda`, over bundles, and `onnx` and `executorch`, over the folders that `edge
export` made for them. Plugins register others (`edge.system.registry`), as `edge.model.plugin` does for
`torch`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edge.config import KVType, ModelConfig, SparseConfig
from edge.config.attention import AttentionMode, resolve_attention
from edge.errors import EdgeError
from edge.system.registry import Registry

if TYPE_CHECKING:  # they need NumPy, which a program that only lists the executors can spare
    from edge.executors.protocol import Executor
    from edge.formats.model_files import ModelFiles
    from edge.quant.scheme import QuantScheme

NATIVE = "native"


@dataclass(frozen=True)
class Arithmetic:
    """What an executor computes with, whatever RunOptions say.

    weights: the scheme's name that it turns every tensor into; None if it reads them as they are stored.
    other_kv_types: what can be asked for beside kv_type.
    """

    activations: str
    kv_type: KVType
    weights: str | None = None
    other_kv_types: tuple[KVType, ...] = ()

    @property
    def scheme(self) -> QuantScheme | None:
        """The scheme of `weights`."""
        from edge.quant.scheme import QuantScheme

        return None if self.weights is None else QuantScheme.parse(self.weights)


@dataclass(frozen=True)
class ExecutorSpec:
    """One executor.

    function: `module:function`, imported when it is called with (files, options, *, context, sparse) and
    gives the Executor. context: longest sequence in tokens, sparse: the constants of attention, None for
    dense; both are decided before, and the memory is known to suffice. options.activations and
    options.kv_type are not `auto`, and what `arithmetic` says, where it says something.
    target: the runtime whose exported folders it opens; None: it opens bundles. The executor that has the
    runtime's own name is the one that folders choose by themselves.
    package: the module that must be installed for it, and install: the command that does so.
    arithmetic: what it fixes, by flavour of the folder ("": bundles).
    ignores: the names of RunOptions that mean nothing to it; who asks for one is told so.
    obstacle: `module:function` of (config) that says why it can't run a network's sparse attention, or None.
    own_memory: whether it has memory of its own, and sees for itself that it suffices.
    """

    name: str
    function: str
    target: str | None = None
    package: str = ""
    install: str = ""
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()
    obstacle: str = ""
    own_memory: bool = False

    def load(self) -> Callable[..., Executor]:
        """The function; EdgeError, with what to install, if it can't be imported."""
        try:
            if self.package and importlib.util.find_spec(self.package) is None:
                raise ImportError(f"there is no module '{self.package}'")
            return _attribute(self.function)
        except (ImportError, AttributeError) as error:
            advice = f"install it with `{self.install}`" if self.install else "install it again"
            raise EdgeError(f"The executor '{self.name}' can't be imported ({error}); {advice}.") from None

    def fixed(self, files: ModelFiles) -> Arithmetic | None:
        """What it computes these files with; None if RunOptions say it."""
        found = self.arithmetic.get(files.flavour)
        return found if found is None or files.kv_type is None else replace(found, kv_type=files.kv_type)

    def sparse(self, files: ModelFiles, mode: AttentionMode, context: int) -> SparseConfig | None:
        """The constants of attention over `files`, None for dense; ConfigError as `resolve_attention`."""
        config = files.config
        if files.attention is not None:
            return (config.sparse or SparseConfig()) if files.attention == "sparse" else None
        obstacle: Callable[[ModelConfig], str | None] | None = (
            _attribute(self.obstacle) if self.obstacle else None
        )
        why = None if obstacle is None else obstacle(config)
        return resolve_attention(config, mode, context=context, obstacle=why)


def _built_in(*specs: ExecutorSpec) -> Registry[ExecutorSpec]:
    found: Registry[ExecutorSpec] = Registry("executor")
    for spec in specs:
        found.register(spec.name, spec)
    return found


# Our own operators compute as the native executor does; other runtimes have float32 caches.
_EXPORTED = {"full": Arithmetic("int8", "float16"), "portable": Arithmetic("int8", "float32")}

EXECUTORS = _built_in(
    ExecutorSpec(
        name=NATIVE,
        function="edge.executors.native.executor:NativeExecutor",
        obstacle="edge.executors.native.executor:sparse_obstacle",
    ),
    ExecutorSpec(
        name="onnx",
        function="edge.executors.onnx.executor:OnnxExecutor",
        target="onnx",
        package="onnxruntime",
        install="pip install onnxruntime",
        arithmetic=_EXPORTED,
        ignores=("mmap", "tier"),
    ),
    ExecutorSpec(
        name="executorch",
        function="edge.executors.executorch.executor:ExecuTorchExecutor",
        target="executorch",
        package="executorch",
        install="pip install 'minicpm-edge[export]'",
        arithmetic=_EXPORTED,
        ignores=("mmap", "tier"),
    ),
    ExecutorSpec(
        name="cuda",
        function="edge.executors.cuda.executor:open_cuda",
        arithmetic={"": Arithmetic("float16", "float16", other_kv_types=("int8",))},
        ignores=("mmap", "tier", "threads"),
        obstacle="edge.executors.cuda.network:sparse_obstacle",
        own_memory=True,
    ),
)
"""All executors by name."""


def _attribute(path: str) -> Any:
    """What `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
