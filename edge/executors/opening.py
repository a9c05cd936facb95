"""`open_executor`, the only way to open an executor: it chooses, checks and decides before it calls one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edge.config import KVChoice, KVType
from edge.config.attention import asked_attention, with_selection
from edge.config.rope_regime import with_regime
from edge.errors import EdgeError
from edge.executors.memory import check_memory, memory_plan
from edge.executors.options import RunOptions, kv_beside
from edge.executors.protocol import Executor
from edge.executors.registry import EXECUTORS, NATIVE, ExecutorSpec
from edge.formats.model_files import ModelFiles
from edge.system.memory import available_memory
from edge.system.options import options_of


def find_executor(files: ModelFiles, name: str | None = None) -> ExecutorSpec:
    """The executor of that name, or the one that such files are made for.

    Raises EdgeError for an unknown one, and for one that opens other files.
    """
    if name is None and files.target is None:
        return EXECUTORS.get(NATIVE)
    if name is not None:
        spec = EXECUTORS.get(name)
        if spec.target == files.target:
            return spec
        if files.target is None:
            raise EdgeError(
                f"The executor '{name}' runs folders exported to {spec.target}, and '{files.path}' is none; "
                f"make one with `edge export --to {spec.target}`."
            )
        raise EdgeError(
            f"'{files.path}' was exported to {files.target}, so the executor '{name}' can't run it; leave "
            "the executor out, or name the model that it was made from."
        )
    assert files.target is not None
    own = EXECUTORS.find(files.target)
    if own is None or own.target != files.target:
        if files.target == "gguf":
            raise EdgeError(
                f"'{files.path}' is a folder of `edge export --to gguf`; name the file in it: "
                f"{files.path / 'model.gguf'}."
            )
        raise EdgeError(
            f"'{files.path}' was exported to {files.target}, which no executor here runs; use "
            f"{files.target}'s own programs, or name the model that it was made from."
        )
    return own


def refuse_ignored(
    spec: ExecutorSpec, files: ModelFiles, options: RunOptions, asked: Iterable[str] = ()
) -> None:
    """Raise EdgeError for an option that `spec` would run these files without.

    asked: names of options that were given, beside those that differ from their defaults.
    """
    fixed: dict[str, object] = dict.fromkeys(spec.ignores)
    if (arithmetic := spec.fixed(files)) is not None:
        fixed["activations"] = arithmetic.activations
        if options.kv_type not in arithmetic.other_kv_types:
            fixed["kv_type"] = arithmetic.kv_type
    if files.attention is not None:
        fixed["attention"] = files.attention
    if files.target is not None:
        fixed["rope_regime"] = "the one that it was exported with"
    if options.activations == "float16" and not spec.arithmetic:
        raise EdgeError(
            f"activations (--activations) can't be float16: the executor '{spec.name}' computes with int8, "
            "int16 or float32; choose one of them, or --executor cuda."
        )
    default = RunOptions()
    for name, only in fixed.items():
        value = getattr(options, name)
        if value in (only, None, "auto"):
            continue
        if name in asked or value != getattr(default, name):
            declared = options_of(RunOptions).get(name)
            flag = f" ({declared.flag or '--' + name.replace('_', '-')})" if declared else ""
            why = "has no use for it" if only is None else f"computes '{files.path}' with {only}"
            advice = "leave the option out"
            if name == "kv_type" and arithmetic is not None and arithmetic.other_kv_types:
                advice += f", or choose {' or '.join(arithmetic.other_kv_types)}"
            raise EdgeError(f"{name}{flag} can't be {value}: the executor '{spec.name}' {why}; {advice}.")


def activations_of(spec: ExecutorSpec, files: ModelFiles, chosen: str = "auto") -> str:
    """What `auto` stands for where `spec` runs these files: what it can't help, else what the model wants,
    else int8. Any other choice stands for itself.
    """
    if chosen != "auto":
        return chosen
    fixed = spec.fixed(files)
    return fixed.activations if fixed is not None else files.activations or "int8"


def kv_type_of(spec: ExecutorSpec, files: ModelFiles, activations: str, chosen: KVChoice = "auto") -> KVType:
    """What `auto` stands for beside these activations where `spec` runs these files: what it can't help, or
    what goes with the activations. Any other choice stands for itself.
    """
    fixed = spec.fixed(files)
    if fixed is not None:
        return chosen if chosen in fixed.other_kv_types else fixed.kv_type
    return kv_beside(activations) if chosen == "auto" else chosen


def open_executor(
    files: ModelFiles, options: RunOptions | None = None, *, asked: Iterable[str] = ()
) -> Executor:
    """Open the executor that options name, or that the files are made for.

    options: by default RunOptions(); asked: see `refuse_ignored`. Raises EdgeError for an executor that is
    unknown, does not fit the files or lacks a package, and for an option that means nothing to it;
    ContextError for a context beyond the model's, and if the memory does not suffice; ConfigError for sparse
    attention that can't run, and for a regime of rotary factors that the model lacks; and what the executor
    itself finds wrong.
    """
    options = options or RunOptions()
    spec = find_executor(files, options.executor)
    if options.selection is not None:
        files = files.with_config(with_selection(files.config, options.selection))
    context = _context(files, options.context)
    make = spec.load()
    refuse_ignored(spec, files, options, asked)
    if options.rope_regime != "auto":
        files = files.with_config(with_regime(files.config, options.rope_regime))
    fixed = spec.fixed(files)
    activations = activations_of(spec, files, options.activations)
    kv_type = kv_type_of(spec, files, activations, options.kv_type)
    options = replace(options, activations=activations, kv_type=kv_type)
    sparse = spec.sparse(files, asked_attention(options.attention, options.selection), context)
    plan = memory_plan(
        files,
        context,
        kv_type,
        options.max_batch,
        mapped_weights=bool(options.mmap),
        sparse=sparse,
        weights=None if fixed is None else fixed.scheme,
    )
    if not spec.own_memory:
        check_memory(plan, available_memory())
    return make(files, options, context=context, sparse=sparse)


def _context(files: ModelFiles, asked: int | None) -> int:
    """What was asked for, or the most; raises if that is beyond the files' own."""
    if files.context is None:
        context = files.config.longest_context if asked is None else asked
        files.config.check_context(context)
        return context
    if asked is not None and asked > files.context:
        raise EdgeError(
            f"The model was exported for a context of {files.context} tokens, not {asked}: ask for less, or "
            "export it again with a longer context."
        )
    return asked or files.context
