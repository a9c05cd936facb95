"""EAGLE-3 and multi-token prediction as drafts: against their formulas, and against what was trained."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edge.checkpoints.synthetic_draft import draft_shape
from edge.config.draft import usual_taps
from edge.config.draft_names import bundle_name, public_name
from edge.model.network.decoder import Decoder
from edge.model.network.draft import Draft, hidden_of
from edge.model.network.kv_cache import GrowingCache
from edge.model.network.multi_token import MultiTokenPrediction

MUP = {"scale_emb": 12.0, "scale_depth": 0.8, "dim_model_base": 32.0}


def tokens(n: int) -> Tensor:
    return torch.randint(96, (n,), generator=torch.Generator().manual_seed(n))


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turned(heads: Tensor, theta: float) -> Tensor:
    """[n, heads, d] rotated by the positions 0 .. n - 1."""
    n, _, size = heads.shape
    angles = torch.arange(n)[:, None] * theta ** (-torch.arange(0, size, 2) / size)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    first, second = heads.chunk(2, dim=-1)
    return heads * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def eagle3_by_hand(draft: Draft, embeddings: Tensor, hidden: Tensor) -> Tensor:
    """The states of all rows, from 0 on."""
    config, weights = draft.config, draft.state_dict()
    own = {bundle_name("eagle3", public_name("eagle3", name)): each for name, each in weights.items()}
    assert own.keys() == weights.keys()
    mid = {public_name("eagle3", name).removeprefix("midlayer."): each for name, each in weights.items()}
    heads, size = config.num_attention_heads, config.head_dim
    both = torch.cat(
        [normed(embeddings, mid["input_layernorm.weight"]), normed(hidden, mid["hidden_norm.weight"])], -1
    )
    assert config.rope is not None
    q, k, v = ((both @ mid[f"self_attn.{name}_proj.weight"].T).reshape(len(both), -1, size) for name in "qkv")
    q, k = turned(q, config.rope.theta), turned(k, config.rope.theta)
    group = heads // config.num_key_value_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / size**0.5
    scores = scores.masked_fill(~torch.ones(len(both), len(both)).tril().bool(), -torch.inf)
    seen = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
    x = hidden + seen @ mid["self_attn.o_proj.weight"].T
    inner = normed(x, mid["post_attention_layernorm.weight"])
    gated = functional.silu(inner @ mid["mlp.gate_proj.weight"].T) * (inner @ mid["mlp.up_proj.weight"].T)
    return x + gated @ mid["mlp.down_proj.weight"].T


def eagle3(tiny_config, llama, **changes) -> tuple[Decoder, Draft]:
    config = tiny_config(num_hidden_layers=8, **changes)
    torch.manual_seed(4)
    decoder = Decoder.from_tensors(config, llama(config).state_dict())
    draft = Draft(draft_shape(config, "eagle3", head_rows=40), decoder).requires_grad_(False)
    for name, each in draft.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(each, 0.5, 1.5)
    return decoder, draft


def test_eagle3_by_hand(tiny_config, llama):
    """True rows at once, then a chain of guessed ones, whose hidden states are the draft's own."""
    decoder, draft = eagle3(tiny_config, llama, **MUP)
    assert draft.config.taps == usual_taps(8) == (1, 3, 4)
    ids = tokens(9)
    trunk = decoder.trunk(ids[:-3])
    taps = torch.cat([trunk.stream[1], trunk.stream[3], trunk.stream[4]], -1)
    assert torch.equal(hidden_of(trunk, draft.config), taps)
    hidden, embeddings = taps @ draft.fc.weight.T, 12.0 * decoder.model.embed_tokens.weight[ids[1:]]
    cache = GrowingCache(draft.shape)
    found = draft(ids[1:7], draft.features(taps), cache=cache)
    torch.testing.assert_close(found, eagle3_by_hand(draft, embeddings[:6], hidden), rtol=1e-4, atol=1e-5)
    for last in (7, 8):
        hidden = torch.cat([hidden, found[-1:]])
        found = draft(ids[last : last + 1], found[-1:], cache=cache)
        wanted = eagle3_by_hand(draft, embeddings[:last], hidden)
        torch.testing.assert_close(found, wanted[-1:], rtol=1e-4, atol=1e-5)
    assert draft.lm_head is not None
    logits = normed(found, draft.norm.weight) @ draft.lm_head.weight.T  # no scale: the head is its own
    torch.testing.assert_close(draft.logits(found), logits, rtol=1e-4, atol=1e-5)


def test_a_batch_of_eagle3_with_gradients(tiny_config, llama):
    """What training does: sequences side by side, and a second step in one cache through a mask."""
    decoder, draft = eagle3(tiny_config, llama)
    draft.requires_grad_(True)
    ids = torch.stack([tokens(6), tokens(7)[1:]])
    features = draft.features(hidden_of(decoder.trunk(ids), draft.config))
    cache, n = GrowingCache(draft.shape), 5
    states = draft(ids[:, 1:], features[:, :-1], cache=cache)
    mask = torch.cat([torch.ones(n, n).tril(-1), torch.eye(n)], dim=-1).bool()  # row i of the second step
    second = draft(ids[:, 1:], states, torch.arange(n), mask, cache)
    alone = GrowingCache(draft.shape)
    draft(ids[1, 1:4], features[1, :3], cache=alone)
    one = draft(ids[1, 4:5], states[1, 3:4], torch.tensor([3]), cache=alone)
    torch.testing.assert_close(second[1, 3], one[0], rtol=1e-4, atol=1e-5)
    draft.logits(second).logsumexp(-1).sum().backward()
    assert all(each.grad is not None for each in draft.parameters())


def test_the_layer_of_training_is_a_draft(tiny_config, llama):
    """The same weights in both networks, by the names of the file that training leaves."""
    config = tiny_config(**MUP)
    torch.manual_seed(2)
    guess = MultiTokenPrediction(config).requires_grad_(False)
    for norm in (guess.enorm, guess.hnorm, guess.norm, guess.layer.input_layernorm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    decoder = Decoder.from_tensors(config, llama(config).state_dict())
    weights = {bundle_name("mtp", name): each for name, each in guess.state_dict().items()}
    draft = Draft.from_tensors(draft_shape(config, "mtp"), decoder, weights)
    ids = tokens(12)
    trunk = decoder.trunk(ids)
    states = draft(ids[1:], draft.features(hidden_of(trunk, draft.config))[:-1])
    wanted = guess(decoder, ids, trunk.stream[-1])
    torch.testing.assert_close(draft.logits(states), wanted, rtol=1e-4, atol=1e-5)
    assert {public_name("mtp", name) for name in draft.state_dict()} == guess.state_dict().keys()
