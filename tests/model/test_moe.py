"""Mixtures of experts against transformers' Mixtral, the load-balance loss, and sparse upcycling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from edge.config import ModelConfig
from edge.config.tensors import expected_tensors
from edge.errors import ConfigError
from edge.model.network.decoder import Decoder
from edge.model.network.kv_cache import GrowingCache
from edge.model.network.moe import load_balance_loss
from edge.model.weights.upcycling import upcycle

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def tokens(config: ModelConfig, *shape: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def moe_config(tiny_config) -> ModelConfig:
    return tiny_config(num_experts=8, num_experts_per_tok=2)


@pytest.fixture
def mixtral() -> Callable[[ModelConfig], MixtralForCausalLM]:
    def make(config: ModelConfig) -> MixtralForCausalLM:
        torch.manual_seed(3)
        peer = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.rms_norm_eps,
                max_position_embeddings=config.max_position_embeddings,
                num_local_experts=config.num_experts,
                num_experts_per_tok=config.num_experts_per_tok,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
                sliding_window=None,
                tie_word_embeddings=False,
                attn_implementation="eager",
                experts_implementation="eager",
            )
        )
        for name, tensor in peer.named_parameters():
            low, high = (0.5, 1.5) if "norm" in name else (-0.15, 0.15)
            torch.nn.init.uniform_(tensor, low, high)
        return peer.eval().requires_grad_(False)

    return make


def our_names(peer: MixtralForCausalLM) -> dict[str, torch.Tensor]:
    """Mixtral's weights as MiniCPM-MoE's checkpoints name them."""
    found = {}
    for name, tensor in peer.state_dict().items():
        stem, _, part = name.rpartition(".")
        if part == "gate_up_proj":
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found |= {f"{stem}.{expert}.w1.weight": gate, f"{stem}.{expert}.w3.weight": up}
        elif part == "down_proj":
            found |= {f"{stem}.{expert}.w2.weight": down for expert, down in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


@pytest.mark.parametrize("chosen", [1, 2, 8])
def test_equals_mixtral(tiny_config, mixtral, chosen: int):
    config = tiny_config(num_experts=8, num_experts_per_tok=chosen)
    peer = mixtral(config)
    decoder = Decoder.from_tensors(config, our_names(peer))
    ids = tokens(config, 2, 17)
    trunk = decoder.trunk(ids)
    theirs = peer(ids, output_router_logits=True)
    torch.testing.assert_close(decoder.logits(trunk.hidden), theirs.logits, **TOLERANCE)
    for ours, router in zip(trunk.router_logits, theirs.router_logits, strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), router, **TOLERANCE)
    loss = load_balance_loss(trunk.router_logits, chosen)
    wanted = 0.01 * load_balancing_loss_func(theirs.router_logits, config.num_experts, chosen)
    torch.testing.assert_close(loss, wanted, **TOLERANCE)


def test_gradients_equal_mixtral(moe_config, mixtral):
    peer = mixtral(moe_config).requires_grad_(True)
    ids = tokens(moe_config, 2, 9)
    peer(ids).logits.square().mean().backward()
    decoder = Decoder.from_tensors(moe_config, our_names(peer)).requires_grad_(True)
    decoder.model.gradient_checkpointing = True
    decoder(ids).square().mean().backward()
    gate = "model.layers.1.mlp.gate.weight"
    torch.testing.assert_close(
        decoder.get_parameter(gate).grad, peer.get_parameter(gate).grad, rtol=1e-3, atol=1e-6
    )
    down = peer.model.layers[0].mlp.experts.down_proj.grad
    for expert in range(8):
        ours = decoder.model.layers[0].mlp.experts[expert].w2.weight.grad
        torch.testing.assert_close(ours, down[expert], rtol=1e-3, atol=1e-6)


def test_cache_and_names(moe_config, mixtral):
    decoder = Decoder.from_tensors(moe_config, our_names(mixtral(moe_config)))
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert shapes == expected_tensors(moe_config)
    ids, cache = tokens(moe_config, 20), GrowingCache(moe_config)
    parts = torch.cat([decoder(part, cache=cache) for part in ids.split([6, 1, 13])])
    torch.testing.assert_close(parts, decoder(ids), **TOLERANCE)


def test_balance_is_cheapest_and_collapse_dearest():
    even = torch.eye(8).repeat(4, 1) * 20  # every expert is the first choice of as many tokens
    collapsed = torch.zeros(32, 8)
    collapsed[:, 0] = 20.0
    assert load_balance_loss([even], 1, weight=1.0).item() == pytest.approx(1.0, abs=1e-4)
    assert load_balance_loss([collapsed], 1, weight=1.0).item() == pytest.approx(8.0, abs=1e-4)
    mixed = load_balance_loss([even, collapsed], 1, weight=1.0).item()
    assert 1.0 < mixed < 8.0


def test_upcycled_network_computes_what_the_dense_one_did(tiny_config, llama):
    config = tiny_config(scale_emb=12.0, scale_depth=0.8, dim_model_base=32.0)
    dense = Decoder.from_tensors(config, llama(config).state_dict())
    sparse = upcycle(dense, 8, 2)
    ids = tokens(config, 2, 15)
    torch.testing.assert_close(sparse(ids), dense(ids), **TOLERANCE)
    trunk = sparse.trunk(ids)
    assert all(router.std() > 1e-3 for router in trunk.router_logits)  # tokens are told apart
    sparse(ids).square().mean().backward()
    experts = sparse.model.layers[0].mlp.experts
    assert not torch.equal(experts[0].w1.weight.grad, experts[1].w1.weight.grad)
    with torch.no_grad():
        experts[0].w1.weight.add_(1.0)  # experts own their weights
    torch.testing.assert_close(dense(ids), Decoder.from_tensors(config, llama(config).state_dict())(ids))
    with pytest.raises(ConfigError, match="num_experts"):
        upcycle(sparse, 8, 2)
