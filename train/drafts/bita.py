"""Training of a soft prompt that lets a model guess for itself (BiTA, arXiv 2401.12522, section 3.1): mask
tokens and a prefix of keys and values that these alone see are all that is learned.

Groups of soft rows stand behind some places of the model's answers. The answers' own rows know nothing of
them, so they are run once without gradients, and the groups then read their keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edge.checkpoints.bita import MOST_MASKS, MOST_PREFIX, SoftWeights, write_bita
from edge.errors import ConfigError
from edge.model.network.decoder import Decoder, fused_attention
from edge.model.network.kv_cache import GrowingCache
from edge.model.network.soft_prompt import SoftPrompt
from edge.train.attention import document_numbers, packed
from edge.train.checkpoints import Say
from edge.train.config import DraftSection, RunConfig
from edge.train.data.batch import IGNORED, AnyBatch
from edge.train.distributed import World, shard, together
from edge.train.drafts.network import open_target
from edge.train.flops import flops_per_token
from edge.train.mup import initialise, make_optimizers
from edge.train.network import PRECISIONS, Network
from edge.train.objective import Learner, Term
from edge.train.starting import load_run_weights
from edge.train.texts import Texts

_PREFIX = "soft."


class BitaLosses(NamedTuple):
    """Sums over soft rows, float32 scalars.

    token: cross-entropy in nats, to the tokens of the answers. agreed, agreed_last: rows whose likeliest
    token is the right one, the first of all groups and the last.
    """

    token: Tensor
    agreed: Tensor
    agreed_last: Tensor


class Groups(NamedTuple):
    """Where groups of soft rows stand in rows of data.

    places: int [rows, groups], that they stand behind. targets: int [rows, groups, masks], what their rows
    are to guess, IGNORED for what an answer does not have any more.
    """

    places: Tensor
    targets: Tensor


class BitaObjective(Learner):
    """A soft prompt with its loss, over a target that is neither trained nor saved."""

    def __init__(self, decoder: Decoder, options: DraftSection) -> None:
        super().__init__()
        self.soft = SoftPrompt(decoder.config, options.masks, options.prefix)
        self._masks, self._groups = options.masks, options.groups
        self._target = (decoder,)  # in a tuple: no submodule
        self.terms = (
            Term("loss", 1.0, 0, "held_out"),
            Term("agreement", 0.0, 1, "held_out_agreement", is_measure=True),
            Term("last_agreement", 0.0, 2, "held_out_last_agreement", is_measure=True),
        )

    def counts(self, batch: AnyBatch) -> tuple[int, ...]:
        """Soft rows with something to guess: all, the first of groups, the last of groups."""
        known = self._chosen(batch.tokens, batch.targets, batch.positions).targets != IGNORED
        return int(known.sum()), int(known[..., 0].sum()), int(known[..., -1].sum())

    def forward(
        self, tokens: Tensor, targets: Tensor, positions: Tensor, states: Tensor | None = None
    ) -> BitaLosses:
        """See `AnswerBatch` for the arguments; states are not used."""
        decoder, groups = self._target[0], self._chosen(tokens, targets, positions)
        cache = GrowingCache(decoder.config)
        with torch.no_grad():
            decoder.trunk(tokens, positions, cache=cache)
        numbers = torch.arange(self._masks, device=tokens.device).repeat(groups.places.shape[-1])
        soft = self.soft.rows(numbers.expand(len(tokens), -1))
        further = torch.arange(1, self._masks + 1, device=tokens.device)
        places = positions.gather(-1, groups.places).unsqueeze(-1) + further
        mask = visible(positions, groups.places, self._masks)
        hidden = decoder.model(tokens[:, :0], places.flatten(1), mask, cache, soft).hidden
        wanted = groups.targets.flatten(1)
        known = wanted != IGNORED
        logits, wanted = decoder.logits(hidden[known]).float(), wanted[known]
        token = functional.cross_entropy(logits, wanted, reduction="sum")
        agreed = torch.zeros(known.shape, device=tokens.device)
        agreed[known] = (logits.argmax(-1) == wanted).float()
        agreed = agreed.unflatten(1, (-1, self._masks))
        return BitaLosses(token, agreed[..., 0].sum(), agreed[..., -1].sum())

    def _chosen(self, tokens: Tensor, targets: Tensor, positions: Tensor) -> Groups:
        return chosen_groups(tokens, targets, positions, self._groups, self._masks)


def chosen_groups(tokens: Tensor, targets: Tensor, positions: Tensor, most: int, masks: int) -> Groups:
    """Up to so many groups in every row, evenly over the places behind which there is something to guess.

    A group behind place i guesses the tokens from i + 2 on. Which places they are depends on the row's
    tokens, so that it is the same again where a run goes on.
    """
    n = tokens.shape[-1]
    later = torch.full((len(tokens), n, masks), IGNORED, dtype=targets.dtype, device=targets.device)
    for at in range(min(masks, n - 1)):
        same = positions[:, at + 1 :] == positions[:, : n - at - 1] + at + 1
        later[:, : n - at - 1, at] = targets[:, at + 1 :].masked_fill(~same, IGNORED)
    usable = later[..., 0] != IGNORED
    count = usable.sum(-1, keepdim=True)
    phase = (tokens.sum(-1, keepdim=True) % 1009).double() / 1009
    wanted = ((torch.arange(most, device=tokens.device) + phase) * count.clamp(min=most) / most).long()
    order = usable.long().argsort(
        stable=True, dim=-1, descending=True
    )  # the usable ones first, as they stand
    places = order.gather(-1, wanted.clamp(max=n - 1))
    found = later.gather(1, places.unsqueeze(-1).expand(-1, -1, masks))
    return Groups(places, found.masked_fill((wanted >= count).unsqueeze(-1), IGNORED))


def visible(positions: Tensor, places: Tensor, masks: int) -> Tensor:
    """What the rows of groups see: bool [rows, 1, groups * masks, n + groups * masks]. Tokens of their own
    document up to their place, and the rows of their group up to themselves.
    """
    n, groups = positions.shape[-1], places.shape[-1]
    document = document_numbers(positions)
    column = torch.arange(n, device=positions.device)
    tokens = (column <= places.unsqueeze(-1)) & (
        document.unsqueeze(-2) == document.gather(-1, places).unsqueeze(-1)
    )
    group = torch.arange(groups * masks, device=positions.device) // masks
    own = (group.unsqueeze(-1) == group).tril()
    rows = [tokens.repeat_interleave(masks, 1), own.expand(len(positions), -1, -1)]
    return torch.cat(rows, -1).unsqueeze(1)


def build_bita(config: RunConfig, texts: Texts, world: World, say: Say, *, is_resumed: bool) -> Network:
    """See `edge.train.network.build`; the run's texts must be answers of the target."""
    options = config.draft
    if options.masks > MOST_MASKS or options.prefix > MOST_PREFIX:
        raise ConfigError(f"draft.masks is at most {MOST_MASKS}, and draft.prefix at most {MOST_PREFIX}.")
    if config.quantization.chosen is not None:
        raise ConfigError(
            "A draft of the kind 'bita' has no matrices to round; leave quantization.scheme out."
        )
    if config.optimizer.kind != "adamw":
        raise ConfigError("A draft of the kind 'bita' has no matrices for Muon; set optimizer.kind=adamw.")
    target = together(lambda: open_target(config, texts.any), world).to(world.device)
    target.use_attention(packed(fused_attention))
    with torch.device("meta"):
        objective = BitaObjective(target, options)
    shard(objective, world)
    objective.to_empty(device=world.device)
    initialise(objective, target.config, config.optimizer, config.seed)
    if config.start.path is not None and not is_resumed:
        load_run_weights(config.start, objective.soft, _PREFIX, world, say)
    return Network(
        target.config,
        objective,
        make_optimizers(objective, target.config, config.optimizer),
        PRECISIONS[config.runtime.precision],
        partial(_flops, objective, target),
        partial(_save, target),
    )


def _save(target: Decoder, folder: Path, state: Mapping[str, Tensor]) -> None:
    tensors = {name.removeprefix(_PREFIX): each.float().cpu().numpy() for name, each in state.items()}
    names = ("mask_embeddings", "prefix_keys", "prefix_values")
    write_bita(folder, SoftWeights(*(tensors[name] for name in names)), target.config)


def _flops(objective: BitaObjective, target: Decoder, length: int) -> float:
    """Operations per token: of `flops_per_token`, which counts three passes' worth, one for the token's own
    row and two for each soft row, forward and back to what it was made of.
    """
    whole = flops_per_token(target.config, length)
    return whole / 3 * (1 + 2 * objective._masks * objective._groups / length)
