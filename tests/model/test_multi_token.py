"""The multi-token-prediction layer against its formula, and that it learns."""

from __future__ import annotations

import torch
from torch.nn import functional

from edge.model.network.decoder import Decoder
from edge.model.network.multi_token import MultiTokenPrediction

MUP = {"scale_emb": 12.0, "scale_depth": 0.8, "dim_model_base": 32.0}


def build(tiny_config, llama, **changes):
    config = tiny_config(**changes)
    torch.manual_seed(2)
    guess = MultiTokenPrediction(config)
    for norm in (guess.enorm, guess.hnorm, guess.norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return Decoder.from_tensors(config, llama(config).state_dict()), guess


def tokens(n: int) -> torch.Tensor:
    return torch.randint(96, (n,), generator=torch.Generator().manual_seed(n))


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def test_one_token_by_hand(tiny_config, llama):
    """With two tokens there is one guess, whose attention reads nothing but its own value."""
    decoder, guess = build(tiny_config, llama, **MUP)
    ids = tokens(2)
    stream = decoder.trunk(ids).stream[-1]
    found = guess(decoder, ids, stream)
    layer, embedding = guess.layer, decoder.model.embed_tokens.weight
    both = [normed(12.0 * embedding[ids[1]], guess.enorm.weight), normed(stream[0], guess.hnorm.weight)]
    x = guess.eh_proj.weight @ torch.cat(both)
    scale = 0.8 / 3**0.5
    value = layer.self_attn.v_proj.weight @ normed(x, layer.input_layernorm.weight)
    heads = value.reshape(2, 1, 32).expand(2, 2, 32).reshape(-1)
    x = x + scale * layer.self_attn.o_proj.weight @ heads
    inner = normed(x, layer.post_attention_layernorm.weight)
    mixed = functional.silu(layer.mlp.gate_proj.weight @ inner) * (layer.mlp.up_proj.weight @ inner)
    x = x + scale * layer.mlp.down_proj.weight @ mixed
    wanted = decoder.lm_head.weight @ (normed(x, guess.norm.weight) * 32 / 128)
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_guess_sees_one_token_ahead_and_no_more(tiny_config, llama):
    decoder, guess = build(tiny_config, llama)
    ids = tokens(10)

    def guesses(ids: torch.Tensor) -> torch.Tensor:
        return guess(decoder, ids, decoder.trunk(ids).stream[-1])

    before = guesses(ids)
    assert before.shape == (9, 96)
    changed = ids.clone()
    changed[6] = (ids[6] + 1) % 96
    difference = (guesses(changed) - before).abs().amax(-1)
    assert (difference[:5] == 0).all() and (difference[5:] > 1e-4).all()


def test_it_learns_the_token_after_next(tiny_config, llama):
    decoder, guess = build(tiny_config, llama)
    ids = torch.arange(48) * 5 % 96
    stream = decoder.trunk(ids).stream[-1]
    optimizer = torch.optim.Adam(guess.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(guess(decoder, ids, stream)[:-1], ids[2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(parameter.grad is not None for parameter in guess.parameters())
