"""The network of a run that trains a draft, and the folder that it leaves: one of EAGLE's checkpoints.

The target's embedding and head stand beside the draft and are neither trained nor saved. Both are what the
target's bundle has, rounded as it is, since those are what the draft will guess with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edge.checkpoints.frequency_list import TokenIds, write_frequency_list
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config import ModelConfig
from edge.config.draft import CONFIDENCE, MARKOV_AFTER, DraftConfig, DraftKind
from edge.config.draft_names import public_name
from edge.config.huggingface import config_to_hf
from edge.errors import ConfigError
from edge.formats.atomic import Partial, write_failure, write_file
from edge.hub.resolve import open_model
from edge.measure.frequencies import TokenCounts
from edge.model.network.block_draft import BlockDraft
from edge.model.network.decoder import Attention, Decoder, fused_attention
from edge.model.network.draft import Draft, layer_shape
from edge.model.network.rope import RotaryEmbedding
from edge.model.weights.checkpoint import reference_from_bundle, write_weights
from edge.train.checkpoints import Say
from edge.train.config import DraftSection, RunConfig
from edge.train.data.shards import ShardFolder
from edge.train.distributed import World, assign, shard, together
from edge.train.drafts.block_objective import BlockObjective
from edge.train.drafts.objective import DraftObjective
from edge.train.drafts.options import state_layers
from edge.train.mup import initialise, make_optimizers
from edge.train.network import PRECISIONS, Network
from edge.train.quantized import quantize_linear, rounded
from edge.train.starting import load_run_weights
from edge.train.texts import Texts

_PREFIX = "draft."
_ARCHITECTURES = {
    "eagle2": "LlamaForCausalLMEagle",
    "eagle3": "LlamaForCausalLMEagle3",
    "mtp": "MultiTokenLayer",
    "dspark": "Qwen3DSparkModel",
}


def build_draft(config: RunConfig, texts: Texts, world: World, say: Say, *, is_resumed: bool) -> Network:
    """See `edge.train.network.build`; the run's texts must be answers of the draft's target."""
    refuse_others(config)
    target = together(lambda: open_target(config, texts.any), world)
    ids = guessed_tokens(config, texts.any)
    device, precision = world.device, PRECISIONS[config.runtime.precision]
    target.to(device)
    shape = draft_config(config.draft, target.config, ids)
    head = target.model.embed_tokens.weight if target.lm_head is None else target.lm_head.weight
    head = head if ids is None else head[torch.from_numpy(ids).long().to(device)]
    with torch.device("meta"):
        draft = BlockDraft(shape, target) if shape.is_block else Draft(shape, target)
    for module in draft.modules():
        if isinstance(module, Attention):
            module.attend = fused_attention
    if config.quantization.chosen is not None:
        quantize_linear(draft, config.quantization.chosen)
    finish = target.model.norm if shape.taps else nn.Identity()
    head = (head * target.config.logit_scale).to(precision)
    objective: DraftObjective | BlockObjective
    if isinstance(draft, BlockDraft):
        rows = None if ids is None else torch.from_numpy(ids).long().to(device)
        objective = BlockObjective(draft, head, config.draft, finish, rows)
    else:
        objective = DraftObjective(draft, head, config.draft, finish)
    shard(objective, world)
    objective.to_empty(device=device)
    draft.rotary = RotaryEmbedding(draft.shape, config.data.length).to(device)
    initialise(objective, draft.shape, config.optimizer, config.seed)
    if isinstance(draft, Draft) and draft.lm_head is not None:  # it has the same rows to tell apart
        assign(draft.lm_head.weight, head.cpu())
    if isinstance(draft, BlockDraft) and draft.confidence_head is not None:
        draft.confidence_head.proj.weight.data.zero_()  # no norm
    if config.start.path is not None and not is_resumed:
        load_run_weights(config.start, draft, _PREFIX, world, say)
    if config.runtime.compile:
        objective.compile()
    return Network(
        draft.shape,
        objective,
        make_optimizers(objective, draft.shape, config.optimizer),
        precision,
        partial(_flops, objective, len(head)),
        partial(save_draft, draft, target.config, ids),
    )


def refuse_others(config: RunConfig) -> None:
    """Raise ConfigError for options that mean nothing for a draft."""
    plain = {
        "loss.z": (config.loss.z, 0.0),
        "loss.multi_token": (config.loss.multi_token, 0.0),
        "attention.kind": (config.attention.kind, "dense"),
        "model": (dict(config.model.changes), {}),
        "runtime.gradient_checkpointing": (config.runtime.gradient_checkpointing, False),
    }
    for name, (given, wanted) in plain.items():
        if given != wanted:
            raise ConfigError(
                f"{name} means nothing in a run that trains a draft (draft.target); leave it out."
            )


def draft_config(options: DraftSection, target: ModelConfig, ids: TokenIds | None) -> DraftConfig:
    """The shape of the draft that a run trains; ids: tokens of its rows of a head, None for all."""
    own: dict[str, Any] = {}
    if options.kind == "eagle2":
        own = {"input_norms": True, "attention_norm": True, "fc_bias": False}
    elif options.kind == "eagle3":
        own = {"head_rows": target.vocab_size if ids is None else len(ids)}
    elif options.kind == "dspark":
        own = {"block_size": options.block, "markov_rank": options.markov_rank}
        own |= {"confidence": options.confidence_loss > 0}
        own |= {"mask_token": target.vocab_size - 1 if options.mask_token < 0 else options.mask_token}
    return draft_shape(
        target, cast(DraftKind, options.kind), num_hidden_layers=options.layers, window=None, **own
    )


def save_draft(
    draft: Draft | BlockDraft,
    target: ModelConfig,
    ids: TokenIds | None,
    folder: Path,
    state: Mapping[str, Tensor],
) -> None:
    """Write a folder as public drafts of the kind are, with the list of tokens that it learned to guess."""
    config = draft.config
    tensors = rounded(draft, {name.removeprefix(_PREFIX): each for name, each in state.items()})
    tensors = {public_name(config.kind, name): each for name, each in tensors.items()}
    values = config_to_hf(target if config.kind == "mtp" else layer_shape(config))
    values["architectures"] = [_ARCHITECTURES[config.kind]]
    if config.kind == "eagle2" and target.has_mup_scales:
        values |= {name: getattr(target, name) for name in ("scale_emb", "scale_depth", "dim_model_base")}
    if config.kind == "eagle3":
        tokens = np.arange(target.vocab_size) if ids is None else ids.astype(np.int64)
        tensors["d2t"] = torch.from_numpy(tokens - np.arange(len(tokens)))
        values["draft_vocab_size"] = len(tokens)
        values["eagle_aux_hidden_state_layer_ids"] = [tap + 1 for tap in config.taps]
    if config.is_block:
        values |= _block_values(config, target)
        if config.confidence:
            tensors[CONFIDENCE] = tensors[CONFIDENCE].unsqueeze(0)
        if config.markov_rank and ids is not None:  # the other rows have learned nothing
            learned = torch.zeros(target.vocab_size, 1)
            learned[torch.from_numpy(ids).long()] = 1
            tensors[MARKOV_AFTER] = tensors[MARKOV_AFTER] * learned
    try:
        with Partial(folder, folder=True) as partial_folder:
            path = partial_folder.path
            write_weights(path, tensors)
            write_file(path / "config.json", (json.dumps(values, indent=2) + "\n").encode())
            if ids is not None and config.kind != "eagle3":
                write_frequency_list(path / f"freq_{len(ids)}.pt", ids.tolist())
            partial_folder.keep()
    except OSError as error:
        raise ConfigError(write_failure(folder, error)) from error


def _block_values(config: DraftConfig, target: ModelConfig) -> dict[str, Any]:
    """What the `config.json` of a block draft says beyond a model's (`edge.config.draft_block`)."""
    return {
        "target_layer_ids": list(config.taps),
        "num_target_layers": target.num_hidden_layers,
        "block_size": config.block_size,
        "mask_token_id": config.mask_token,
        "sample_from_anchor": config.anchor_tells,
        "markov_rank": config.markov_rank,
        "markov_head_type": "vanilla",
        "enable_confidence_head": config.confidence,
        "confidence_head_with_markov": config.markov_rank > 0,
    }


def open_target(config: RunConfig, answers: ShardFolder) -> Decoder:
    """The target of a run's draft; ConfigError unless the answers can be its own."""
    assert config.draft.target is not None
    target = reference_from_bundle(open_model(config.draft.target), config.data.length)
    layers, size = state_layers(config.draft.kind, target.config), target.config.vocab_size
    width = max(1, len(layers)) * target.config.hidden_size
    facts = answers.facts
    if (facts.state_width, facts.state_layers, facts.vocab_size) != (width, layers, size):
        raise ConfigError(
            f"'{answers.path}' has no answers of '{config.draft.target}' for a draft of the kind "
            f"'{config.draft.kind}'; make them with `edge train answers --kind {config.draft.kind}`."
        )
    return target


def guessed_tokens(config: RunConfig, answers: ShardFolder) -> TokenIds | None:
    """The tokens of the head's rows, None for all."""
    rows = config.draft.rows
    if not 0 < rows < answers.vocab_size:
        return None
    return TokenCounts(answers.token_counts()).ranked(rows, answers.eos_token_ids)


def _flops(objective: DraftObjective | BlockObjective, head_rows: int, length: int) -> float:
    """Operations per token: the draft's weights forward and backward and attention, each time, and the head
    for it and its target, whose weights have no gradient. Of block drafts the times are rows of blocks.
    """
    draft = objective.draft
    if isinstance(objective, BlockObjective):
        times = min(objective.anchors, length) * draft.config.block_size / length
    else:
        times = objective.times
    matrices = sum(each.numel() for each in draft.parameters() if each.dim() > 1)
    shape = draft.shape
    reads = shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length / 2
    head = head_rows * shape.hidden_size
    return times * (6.0 * matrices + 12.0 * reads + 6.0 * head) + 2.0 * head
