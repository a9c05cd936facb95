"""From PyTorch modules to one .pte: torch.export, ExecuTorch's edge dialect, and the file.

The metadata methods are those that ExecuTorch's `TextLLMRunner` asks for; every .pte has all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge.config import ModelConfig


@dataclass(frozen=True)
class Entry:
    """A method of a .pte: a module with example inputs; dynamic: {input's name: {dimension: Dim}} or None."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic: dict[str, Any]


def metadata(config: ModelConfig, context: int, max_tokens: int) -> dict[str, Any]:
    """The constant methods of the phone runner. max_tokens: most tokens of one `forward` call."""
    return {
        "get_max_seq_len": max_tokens,
        "get_max_context_len": context,
        "get_vocab_size": config.vocab_size,
        "get_bos_id": -1 if config.bos_token_id is None else config.bos_token_id,
        "get_eos_ids": list(config.eos_token_ids),
        "get_n_layers": config.num_hidden_layers,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": True,
    }


def lower(entries: Mapping[str, Entry], constants: Mapping[str, Any], out: Path) -> None:
    """Write the .pte `out` with these methods and constant methods.

    Mutable buffers of one name are the same memory in all methods.
    """
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    logging.getLogger("executorch").setLevel(logging.ERROR)
    programs = {}
    with torch.no_grad():
        for name, entry in entries.items():
            programs[name] = torch.export.export(
                entry.module, entry.inputs, dynamic_shapes=entry.dynamic, strict=False
            )
    edge = to_edge_transform_and_lower(
        programs,
        constant_methods=dict(constants),
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    program = edge.to_executorch(
        ExecutorchBackendConfig(
            run_reinplace_pass=True,
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            # Also with one method: it puts the buffers into a memory of their own, one for every sequence.
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=True),
        )
    )
    with out.open("wb") as file:
        program.write_to_file(file)
