"""The facts about a model that a person asks for before running it; needs neither weights nor native library.

The arithmetic of memory is in `edge.executors.memory`; how facts are printed is not decided here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge.config import KVChoice, KVType, ModelConfig
from edge.config.roles import NORMS
from edge.config.tensors import EMBEDDING, NetworkTensor, network_tensors
from edge.errors import TokenizerError
from edge.executors.memory import MemoryPlan, memory_plan
from edge.executors.opening import activations_of, kv_type_of
from edge.executors.registry import EXECUTORS, NATIVE
from edge.formats.guarded_json import parse_object
from edge.formats.model_files import ModelFiles
from edge.quant.scheme import QuantScheme
from edge.text.chat_template import supports_thinking
from edge.text.tokenizer.load import open_tokenizer

SCHEMA = 1
"""Version of `ModelFacts.to_json`; it grows when a field changes its meaning or goes away."""


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of one kind that are stored alike.

    part: for example `MLP down` or `norms`; a tied embedding says so. source_type: what the checkpoint called
    their type. exact: False if their values were rounded on the way into the bundle. parameters, bytes: of
    all `count` tensors together, scales and padding included in the bytes.
    """

    part: str
    scheme: QuantScheme
    source_type: str
    exact: bool
    count: int
    parameters: int
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter."""
        return 8 * self.bytes / self.parameters


@dataclass(frozen=True)
class TokenizerFacts:
    """kind: `byte-level BPE`, `SentencePiece`, ..., or None if the model has no tokenizer."""

    kind: str | None
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """Everything that `edge inspect` prints.

    parameters: weights of the network, a tied embedding counted once. groups: in the order of the network.
    thinking: whether the chat template can switch thinking on and off. activations: those that matrices are
    multiplied with unless somebody chooses; None for a folder that no executor here runs.
    """

    source: str
    path: str
    content_hash: str
    config: ModelConfig
    parameters: int
    groups: tuple[TensorGroup, ...]
    tokenizer: TokenizerFacts
    chat_template: bool
    thinking: bool
    generation_config: Mapping[str, Any]
    activations: str | None
    kv_type: KVType
    memory: MemoryPlan

    @property
    def rounded(self) -> tuple[TensorGroup, ...]:
        """The groups whose values differ from those of the checkpoint."""
        return tuple(group for group in self.groups if not group.exact)

    def to_json(self) -> dict[str, Any]:
        """A stable description in plain JSON values."""
        groups = [
            {
                "part": group.part,
                "scheme": str(group.scheme),
                "source_type": group.source_type,
                "exact": group.exact,
                "tensors": group.count,
                "parameters": group.parameters,
                "bytes": group.bytes,
            }
            for group in self.groups
        ]
        return {
            "schema": SCHEMA,
            "source": self.source,
            "path": self.path,
            "content_hash": self.content_hash,
            "architecture": self.config.model_type,
            "parameters": self.parameters,
            "config": self.config.to_json(),
            "quantization": groups,
            "tokenizer": {**asdict(self.tokenizer), "eos_token_ids": list(self.tokenizer.eos_token_ids)},
            "chat_template": self.chat_template,
            "thinking": self.thinking,
            "generation_config": dict(self.generation_config),
            "activations": self.activations,
            "memory": {
                "context": self.memory.context,
                "kv_type": self.kv_type,
                "kv_bytes_per_token": self.config.kv_bytes_per_token(self.kv_type),
                "weights_bytes": self.memory.weights,
                "kv_cache_bytes": self.memory.kv_cache,
                "workspace_bytes": self.memory.workspace,
                "total_bytes": self.memory.total,
            },
        }


def inspect_model(files: ModelFiles, *, context: int | None = None, kv_type: KVChoice = "auto") -> ModelFacts:
    """The facts about an open model.

    Memory is planned for `context` tokens, by default the trained (or exported) ones, with a KV cache of
    `kv_type`; an exported folder has its own type.
    """
    config = files.config
    template = files.chat_template
    runner = EXECUTORS.find(files.target or NATIVE)
    activations = None if runner is None else activations_of(runner, files)
    if runner is not None and activations is not None:
        kv_type = kv_type_of(runner, files, activations, kv_type)
    stored: KVType = "float16" if kv_type == "auto" else kv_type
    return ModelFacts(
        source=files.source,
        path=str(files.path),
        content_hash=files.content_hash,
        config=config,
        parameters=sum(math.prod(tensor.shape) for tensor in files.tensors.values()),
        groups=_groups(files),
        tokenizer=TokenizerFacts(
            _tokenizer_kind(files.tokenizer_files),
            config.vocab_size,
            config.bos_token_id,
            open_tokenizer(files).end_tokens if files.tokenizer_files else config.eos_token_ids,
        ),
        chat_template=template is not None,
        thinking=supports_thinking(template or ""),
        generation_config=files.generation_config,
        activations=activations,
        kv_type=stored,
        memory=memory_plan(files, context or files.context or config.longest_context, stored),
    )


def _groups(files: ModelFiles) -> tuple[TensorGroup, ...]:
    network = network_tensors(files.config)
    found: dict[tuple[str, QuantScheme, str, bool], list[int]] = {}
    for name, tensor in files.tensors.items():
        key = (_part(name, network[name], files.config), tensor.scheme, tensor.source_type, tensor.exact)
        totals = found.setdefault(key, [0, 0, 0])
        for i, value in enumerate((1, math.prod(tensor.shape), tensor.bytes)):
            totals[i] += value
    groups = [TensorGroup(*key, *totals) for key, totals in found.items()]
    roles = [tensor.role for tensor in network.values()]
    roles.sort(key=lambda role: (role.words == NORMS, role.each != "network"))
    order = list(dict.fromkeys(role.words for role in roles))
    return tuple(sorted(groups, key=lambda group: order.index(group.part.partition(" (")[0])))


def _part(name: str, tensor: NetworkTensor, config: ModelConfig) -> str:
    also = " (also the head)" if name == EMBEDDING and config.tie_word_embeddings else ""
    return tensor.role.words + also


def _tokenizer_kind(files: Mapping[str, bytes]) -> str | None:
    if "tokenizer.json" in files:
        data = parse_object(
            files["tokenizer.json"], "tokenizer.json", TokenizerError, "get the model's files again"
        )
        model = data.get("model")
        kind = str(model.get("type", "unknown kind")) if isinstance(model, dict) else "unknown kind"
        byte_level = "ByteLevel" in json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
        return f"byte-level {kind}" if byte_level else kind
    return "SentencePiece" if "tokenizer.model" in files else None
