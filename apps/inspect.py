"""`edge inspect`: what is in a model, and the memory that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from edge.apps.cli.loading import keywords
from edge.apps.cli.options import Group, Json, Model, Source, expand, given_flags
from edge.apps.cli.terminal import convert_progress, output_console, print_json
from edge.config import KVChoice
from edge.errors import ContextError
from edge.executors.options import RunOptions
from edge.system.options import same
from edge.system.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edge.config import ModelConfig, RopeConfig
    from edge.measure.inspection import ModelFacts


@dataclass(frozen=True)
class PlanOptions:
    """What memory is planned for."""

    context: int | None = same(RunOptions, "context")
    kv_type: KVChoice = same(RunOptions, "kv_type")


@expand
def inspect(
    model: Model,
    *,
    source: Source,
    plan: Annotated[PlanOptions, Group("Plan of the memory")],
    as_json: Json = False,
) -> None:
    """Show a model's architecture, quantization, tokenizer and the memory it needs."""
    from edge.executors.opening import find_executor, refuse_ignored
    from edge.hub.resolve import open_model
    from edge.measure.inspection import inspect_model

    with convert_progress(model) as progress:
        files = open_model(model, **keywords(source), progress=progress)
    trained = files.context or files.config.longest_context
    if plan.context is not None and plan.context > trained:
        raise ContextError(
            f"A context of {plan.context} tokens is beyond the {trained} that the model was made for: plan "
            "for less; edge chat goes beyond it with --rope-override and then prints its memory."
        )
    kv_type = RunOptions(kv_type=plan.kv_type)
    refuse_ignored(find_executor(files), files, kv_type, given_flags())
    facts = inspect_model(files, context=plan.context, kv_type=plan.kv_type)
    if as_json:
        print_json({"model": model, **facts.to_json()})
    else:
        _print(facts, output_console())


def _print(facts: ModelFacts, console: Console) -> None:
    config = facts.config
    summary = _table()
    rows = {
        "Source": facts.source,
        "Folder": facts.path,
        "Architecture": config.model_type + _scales(facts),
        "Parameters": f"{format_count(facts.parameters)} in {format_bytes(facts.memory.weights)}",
        "Layers": f"{config.num_hidden_layers} of hidden size {config.hidden_size}, "
        f"MLP {config.intermediate_size}",
        "Attention": f"{config.num_attention_heads} heads of {config.head_dim}, "
        f"{config.num_key_value_heads} for keys and values",
        "Context": f"{config.max_position_embeddings} tokens{_window(config)}, {_rope(config.rope)}",
        "Tokenizer": f"{facts.tokenizer.kind or 'none'}, {facts.tokenizer.vocab_size} tokens",
        "Chat template": ("yes, with thinking" if facts.thinking else "yes") if facts.chat_template else "no",
        "Own settings": ", ".join(f"{name}={value}" for name, value in facts.generation_config.items())
        or "none",
        "Activations": facts.activations or "as exported",
    }
    for name, value in rows.items():
        summary.add_row(name, value)
    console.print(summary)

    console.print("\nWeights", style="bold")
    weights = _table("Part", "Tensors>", "Parameters>", "Stored as", "From", "Bits/weight>", "Size>")
    for group in facts.groups:
        weights.add_row(
            group.part,
            str(group.count),
            format_count(group.parameters),
            str(group.scheme),
            group.source_type,
            f"{group.bits_per_weight:.2f}",
            format_bytes(group.bytes),
        )
    console.print(weights)
    for change in sorted({f"{group.source_type} -> {group.scheme}" for group in facts.rounded}):
        console.print(
            f"Not exact: {change} (the values were rounded when the model was converted)", style="yellow"
        )

    plan = facts.memory
    console.print(f"\nMemory at {plan.context} tokens", style="bold")
    memory = _table("", "Size>", "")
    memory.add_row("weights", format_bytes(plan.weights), "read at the start (chat --mmap: when used)")
    per_token = format_bytes(config.kv_bytes_per_token(facts.kv_type))
    memory.add_row(
        "KV cache",
        format_bytes(plan.kv_cache),
        f"{per_token} per token in {facts.kv_type}, grows as it fills",
    )
    memory.add_row("workspace", format_bytes(plan.workspace), "estimate")
    memory.add_row("total", format_bytes(plan.total), "", style="bold")
    console.print(memory)


def _table(*headers: str) -> Table:
    """A borderless table; a header that ends in > is a right-aligned column."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=any(headers), header_style="dim")
    if not headers:
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
    for header in headers:
        table.add_column(
            header.rstrip(">"), justify="right" if header.endswith(">") else "left", no_wrap=True
        )
    return table


def _scales(facts: ModelFacts) -> str:
    config = facts.config
    names = ("scale_emb", "scale_depth", "dim_model_base")
    given = [f"{name} {getattr(config, name):g}" for name in names if getattr(config, name) is not None]
    return f" ({', '.join(given)})" if given else ""


def _window(config: ModelConfig) -> str:
    if config.sliding_window is None or config.longest_context == config.max_position_embeddings:
        return ""
    return f", {config.longest_context} of them at most (sliding_window)"


def _rope(rope: RopeConfig) -> str:
    text = f"RoPE {rope.type}, theta {rope.theta:g}"
    if rope.rotary_dim is not None:
        text += f", {rope.rotary_dim} rows of a head"
    return text if rope.type in ("default", "longrope") else f"{text}, factor {rope.factor:g}"
