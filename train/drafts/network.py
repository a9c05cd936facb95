"""The network of a run that trains a draft, and the folder that it leaves: one of EAGLE's checkpoints.

The target's embedding and head stand beside the draft and are neither trained nor saved. Both are what the
target's bundle has, rounded as it is, since those are what the draft will guess with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge.checkpoints.frequency_list import with_end_tokens, write_frequency_list
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config.draft import DraftConfig
from edge.config.huggingface import config_to_hf
from edge.errors import ConfigError
from edge.formats.atomic import Partial, write_failure, write_file
from edge.hub.resolve import open_model
from edge.model.network.decoder import Attention, Decoder, fused_attention
from edge.model.network.draft import Draft, layer_shape
from edge.model.network.rope import RotaryEmbedding
from edge.model.weights.checkpoint import reference_from_bundle, write_weights
from edge.train.checkpoints import Say
from edge.train.config import RunConfig
from edge.train.data.shards import ShardFolder
from edge.train.distributed import World, shard, together
from edge.train.drafts.objective import DraftObjective
from edge.train.mup import initialise, make_optimizers
from edge.train.network import PRECISIONS, Network
from edge.train.quantized import quantize_linear, rounded
from edge.train.starting import load_run_weights
from edge.train.texts import Texts

_PREFIX = "draft."


def build_draft(config: RunConfig, texts: Texts, world: World, say: Say, *, is_resumed: bool) -> Network:
    """See `edge.train.network.build`; the run's texts must be answers of the draft's target."""
    target = together(lambda: open_target(config, texts.any), world)
    ids = guessed_tokens(config, texts.any)
    shape = draft_config(config, target)
    head = target.model.embed_tokens.weight if target.lm_head is None else target.lm_head.weight
    if ids is not None:
        head = head[torch.from_numpy(ids).long()]
    embedding, head = target.model.embed_tokens.weight * shape.embedding_scale, head * shape.logit_scale
    with torch.device("meta"):
        draft = Draft(shape, target)
    for module in draft.modules():
        if isinstance(module, Attention):
            module.attend = fused_attention
    if config.quantization.chosen is not None:
        quantize_linear(draft, config.quantization.chosen)
    device = world.device
    precision = PRECISIONS[config.runtime.precision]
    objective = DraftObjective(draft, embedding.to(device), head.to(device, precision), config.draft)
    shard(objective, world)
    objective.to_empty(device=device)
    draft.rotary = RotaryEmbedding(draft.shape, config.data.length).to(device)
    initialise(objective, draft.shape, config.optimizer, config.seed)
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
        partial(save_draft, draft, target, ids),
    )


def draft_config(config: RunConfig, target: Decoder) -> DraftConfig:
    """The shape of the draft that a run trains: norms of both inputs, no bias."""
    return draft_shape(
        target.config,
        num_hidden_layers=config.draft.layers,
        input_norms=True,
        attention_norm=True,
        fc_bias=False,
        window=None,
    )


def save_draft(
    draft: Draft,
    target: Decoder,
    ids: npt.NDArray[np.int32] | None,
    folder: Path,
    state: Mapping[str, Tensor],
) -> None:
    """Write a folder of EAGLE's names, with the list of tokens that it learned to guess beside it."""
    tensors = rounded(draft, {name.removeprefix(_PREFIX): each for name, each in state.items()})
    values = config_to_hf(layer_shape(draft.config))
    values["architectures"] = ["LlamaForCausalLMEagle"]
    if target.config.has_mup_scales:
        values |= {
            name: getattr(target.config, name) for name in ("scale_emb", "scale_depth", "dim_model_base")
        }
    try:
        with Partial(folder, folder=True) as partial_folder:
            path = partial_folder.path
            write_weights(path, tensors)
            write_file(path / "config.json", (json.dumps(values, indent=2) + "\n").encode())
            if ids is not None:
                write_frequency_list(path / f"freq_{len(ids)}.pt", ids.tolist())
            partial_folder.keep()
    except OSError as error:
        raise ConfigError(write_failure(folder, error)) from error


def open_target(config: RunConfig, answers: ShardFolder) -> Decoder:
    """The target of a run's draft; ConfigError unless the answers can be its own."""
    assert config.draft.target is not None
    target = reference_from_bundle(open_model(config.draft.target), config.data.length)
    width, size = target.config.hidden_size, target.config.vocab_size
    if (answers.facts.state_width, answers.vocab_size) != (width, size):
        raise ConfigError(
            f"'{answers.path}' has no answers of '{config.draft.target}' with hidden states of {width} "
            "numbers; make them with `edge train answers`."
        )
    return target


def guessed_tokens(config: RunConfig, answers: ShardFolder) -> npt.NDArray[np.int32] | None:
    """The tokens of the head's rows, None for all."""
    rows = config.draft.rows
    if not 0 < rows < answers.vocab_size:
        return None
    counts = answers.token_counts()
    ids = np.argsort(-counts, kind="stable")[:rows].astype(np.int32)
    return with_end_tokens(ids, answers.eos_token_ids)


def _flops(objective: DraftObjective, head_rows: int, length: int) -> float:
    """Operations per token: the draft's weights forward and backward and attention, each time, and the head
    for it and its target, whose weights have no gradient.
    """
    draft, times = objective.draft, objective.times
    matrices = sum(each.numel() for each in draft.parameters() if each.dim() > 1)
    shape = draft.shape
    reads = shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length / 2
    head = head_rows * shape.hidden_size
    return times * (6.0 * matrices + 12.0 * reads + 6.0 * head) + 2.0 * head
