"""The network of a run: built from its config, given its first weights, and wrapped as the run wants it.

Order matters: the module is made without memory, its linear layers become quantization-aware, it is sharded
over the processes, and only then it gets memory and weights, so that no process ever holds a network that
is not its own share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge.checkpoints.bita import KIND
from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.config.presets import preset
from edge.errors import ConfigError
from edge.model.attention.mode import SparseAttention
from edge.model.network.decoder import Attend, Decoder, fused_attention
from edge.model.network.rope import RotaryEmbedding
from edge.model.weights.checkpoint import open_checkpoint
from edge.train.attention import packed
from edge.train.checkpoints import Say
from edge.train.config import RunConfig
from edge.train.data.shards import ShardFolder
from edge.train.distributed import World, shard, together
from edge.train.flex import PackedFlex
from edge.train.flops import flops_per_token
from edge.train.mup import initialise, make_optimizers
from edge.train.objective import Learner, Objective
from edge.train.quantized import quantize_aware
from edge.train.saving import save_network
from edge.train.starting import begin_with_weights, model_folder
from edge.train.texts import Texts

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Network:
    """What a run trains. objective: the module. flops_per_token: of a step, by the length of its rows. save:
    writes what was trained, whose whole tensors it gets, into a folder that must not exist.
    """

    config: ModelConfig
    objective: Learner
    optimizers: list[torch.optim.Optimizer]
    precision: torch.dtype
    flops_per_token: Callable[[int], float]
    save: Callable[[Path, Mapping[str, Tensor]], None]

    def autocast(self) -> AbstractContextManager[object]:
        """Arithmetic of the layers; weights, their gradients and the optimizer stay float32."""
        if self.precision is torch.float32:
            return nullcontext()
        device = next(self.objective.parameters()).device
        return torch.autocast(device.type, dtype=self.precision)


def model_config(config: RunConfig, shards: ShardFolder | None) -> ModelConfig:
    """The network's shape: that of the model's folder that the run starts from, or the preset's, and the
    run's changes.

    shards: the texts, whose vocabulary and special tokens take the place of a preset's; None leaves those.
    Raises ConfigError.
    """
    folder = model_folder(config.start)
    if folder is not None:
        base = open_checkpoint(folder).config
        if shards is not None and base.vocab_size < shards.vocab_size:
            raise ConfigError(
                f"'{folder}' has a vocabulary of {base.vocab_size} tokens, and the texts one of "
                f"{shards.vocab_size}; tokenize them with the model's tokenizer."
            )
        found = base.to_json()
    else:
        found = {**preset(config.model.preset).to_json(), "sparse": None}
        if shards is not None:
            special = {"bos_token_id": shards.bos_token_id, "eos_token_ids": list(shards.eos_token_ids)}
            found |= {"vocab_size": shards.vocab_size, "pad_token_id": None, **special}
    for name, value in config.model.changes.items():
        if isinstance(value, Mapping):
            # A rope of another type has nothing of the old one; sparse constants are the published ones at
            # first.
            plain = {"rope": RopeConfig() if "type" in value else None, "sparse": SparseConfig()}.get(name)
            value = {**(found.get(name) or {} if plain is None else asdict(plain)), **value}
        found[name] = value
    made = ModelConfig.from_json(found)
    if made.num_experts:
        raise ConfigError("Mixtures of experts can't be trained yet; choose a preset of a dense network.")
    made.check_context(longest(config))
    return made


def longest(config: RunConfig) -> int:
    """Tokens of the run's longest rows."""
    return max((config.data.length, *config.data.buckets))


def flops_of(config: RunConfig, shape: ModelConfig, length: int) -> float:
    """Operations per token of the run's network, in rows of so many tokens."""
    is_sparse = config.attention.kind == "sparse"
    return flops_per_token(shape, length, multi_token=config.loss.multi_token > 0, is_sparse=is_sparse)


def build(config: RunConfig, texts: Texts, world: World, say: Say, *, is_resumed: bool = False) -> Network:
    """The network with its first weights, those of `start.path` if only weights are wanted of it.

    is_resumed: whether a checkpoint of the run's own takes their place anyhow.
    """
    if config.draft.target is not None:
        from edge.train.drafts.bita import build_bita
        from edge.train.drafts.network import build_draft

        if config.draft.kind == KIND:
            return build_bita(config, texts, world, say, is_resumed=is_resumed)

        return build_draft(config, texts, world, say, is_resumed=is_resumed)
    shape = together(lambda: model_config(config, texts.any), world)
    objective = together(lambda: empty_objective(config, shape), world)
    objective.use_attention(_attention(config, shape, world.device))
    shard(objective, world)
    objective.to_empty(device=world.device)
    objective.decoder.model.rotary = RotaryEmbedding(shape, longest(config)).to(world.device)
    initialise(objective, shape, config.optimizer, config.seed)
    if not is_resumed:
        begin_with_weights(config.start, objective, world, say)
    if config.runtime.compile:
        objective.compile()
    optimizers = make_optimizers(objective, shape, config.optimizer)
    return Network(
        shape,
        objective,
        optimizers,
        PRECISIONS[config.runtime.precision],
        partial(flops_of, config, shape),
        partial(save_network, objective, texts.any.tokenizer_files),
    )


def empty_objective(config: RunConfig, shape: ModelConfig) -> Objective:
    """The module that the run trains, without memory for its weights. Raises ConfigError."""
    with torch.device("meta"):
        decoder = Decoder(shape, longest(config))
        objective = Objective(decoder, multi_token=config.loss.multi_token, z=config.loss.z)
    decoder.model.gradient_checkpointing = config.runtime.gradient_checkpointing
    if config.quantization.chosen is not None:
        quantize_aware(decoder, config.quantization.chosen)
    return objective


def _attention(config: RunConfig, shape: ModelConfig, device: torch.device) -> Attend:
    if config.attention.kind == "dense":
        automatic = "flex" if device.type == "cuda" else "sdpa"
        fused = automatic if config.attention.fused == "auto" else config.attention.fused
        return PackedFlex() if fused == "flex" else packed(fused_attention)
    if shape.sparse is None:
        raise ConfigError(
            "attention.kind=sparse needs the constants of model.sparse, such as sparse = {topk = 64}."
        )
    return packed(SparseAttention(shape.sparse))


def full_state(objective: Learner) -> dict[str, Tensor]:
    """Every parameter by name, whole and on the CPU; empty in all processes but the first."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(objective, options=options)
    return found
