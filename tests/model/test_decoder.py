"""The reference decoder against transformers' Llama, and MiniCPM's muP scales one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from edge.config import ModelConfig
from edge.errors import CheckpointError
from edge.model.network.decoder import Decoder, fused_attention

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}  # float32 against float32, logits of about 1

MUP = {"scale_emb": 12.0, "scale_depth": 0.8, "dim_model_base": 32.0}
MUP_CASES = [{}, MUP, *({name: value} for name, value in MUP.items())]


def tokens(config: ModelConfig, n: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (n,), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(4, 4, 32), (8, 1, 16), (8, 2, 64), (4, 2, 16)])
def test_equals_llama(
    tiny_config: Callable[..., ModelConfig], llama, heads: int, kv_heads: int, head_dim: int
):
    config = tiny_config(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim)
    peer = llama(config)
    ids = tokens(config, 33)
    ours = Decoder.from_tensors(config, peer.state_dict())(ids)
    torch.testing.assert_close(ours, peer(ids[None]).logits[0], **TOLERANCE)


def fold(peer: LlamaForCausalLM, config: ModelConfig) -> None:
    """Move the muP scales of a config into the weights of a plain Llama."""
    peer.model.embed_tokens.weight *= config.scale_emb or 1
    for layer in peer.model.layers:
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight *= (config.scale_depth or config.num_hidden_layers**0.5) / config.num_hidden_layers**0.5
    peer.lm_head.weight *= (config.dim_model_base or config.hidden_size) / config.hidden_size


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mup", MUP_CASES, ids=lambda mup: "+".join(mup) or "none")
def test_mup_equals_folded_llama(tiny_config, llama, mup: dict[str, float], tied: bool):
    config = tiny_config(tie_word_embeddings=tied, **mup)
    peer = llama(config)
    weights = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
        peer.lm_head.weight.copy_(peer.model.embed_tokens.weight)
    fold(peer, config)
    ids = tokens(config, 21)
    ours = Decoder.from_tensors(config, weights)(ids)
    theirs = peer(ids[None]).logits[0]
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    if mup:  # the scales must matter, or the comparison shows nothing
        plain = Decoder.from_tensors(tiny_config(tie_word_embeddings=tied), weights)(ids)
        assert (plain - theirs).abs().max() > 100 * (ours - theirs).abs().max()


def test_hidden_states_and_outputs_of_layers(tiny_config, llama):
    """A layer's output is the residual stream; hidden states are normed and not yet scaled for the head."""
    config = tiny_config(num_hidden_layers=3, dim_model_base=32.0)
    peer = llama(config)
    decoder = Decoder.from_tensors(config, peer.state_dict())
    ids = tokens(config, 9)
    hidden, outputs = decoder.hidden_states(ids, layers=(1, 0))
    states = peer(ids[None], output_hidden_states=True).hidden_states
    torch.testing.assert_close(outputs[0], states[2][0], **TOLERANCE)
    torch.testing.assert_close(outputs[1], states[1][0], **TOLERANCE)
    torch.testing.assert_close(hidden, states[-1][0], **TOLERANCE)
    torch.testing.assert_close(decoder.logits(hidden), peer.lm_head(states[-1][0]) / 4, **TOLERANCE)


def test_tree_equals_each_path(tiny_config, llama):
    """Tokens that a mask hides from each other give the logits of their own path."""
    config = tiny_config()
    decoder = Decoder.from_tensors(config, llama(config).state_dict())
    parents = [-1, 0, 1, 2, 2, 3, 4, 4]  # rows 0..2 are the shared prefix
    ids = tokens(config, len(parents))
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    paths = []
    for row, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), row])
        mask[row, paths[row]] = True
    positions = torch.tensor([len(path) - 1 for path in paths])
    tree = decoder(ids, positions, mask)
    for row, path in enumerate(paths):
        torch.testing.assert_close(tree[row], decoder(ids[path])[-1], **TOLERANCE)


def test_batch_equals_single(tiny_config, llama):
    config = tiny_config()
    decoder = Decoder.from_tensors(config, llama(config).state_dict())
    batch = tokens(config, 30).reshape(3, 10)
    torch.testing.assert_close(decoder(batch), torch.stack([decoder(row) for row in batch]), **TOLERANCE)


def test_wrong_tensors_are_named(tiny_config, llama):
    config = tiny_config()
    weights = dict(llama(config).state_dict())
    with pytest.raises(CheckpointError, match="lm_head"):
        Decoder.from_tensors(tiny_config(tie_word_embeddings=True), weights)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*None"):
        name = "model.layers.1.mlp.up_proj.weight"
        Decoder.from_tensors(config, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(CheckpointError, match=r"down_proj.*160.*128"):
        Decoder.from_tensors(tiny_config(intermediate_size=128), {**weights, **smaller_mlp(weights)})


def smaller_mlp(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: weight[:128] for name, weight in weights.items() if "gate_proj" in name or "up_proj" in name
    }


def test_fused_attention_equals_plain(tiny_config, llama):
    """The one seam of attention: another function behind it gives the same network."""
    config = tiny_config()
    decoder = Decoder.from_tensors(config, llama(config).state_dict())
    ids = tokens(config, 30).reshape(2, 15)
    plain = decoder(ids)
    calls = []

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(arguments[4])
        return fused_attention(*arguments)

    torch.testing.assert_close(decoder.use_attention(counted)(ids), plain, **TOLERANCE)
    assert len(calls) == config.num_hidden_layers and calls[0].tolist() == list(range(15))


def test_bfloat16_rounds_where_llama_does(tiny_config, llama):
    config = tiny_config()
    peer = llama(config).to(torch.bfloat16)
    ids = tokens(config, 21)
    exact = Decoder.from_tensors(config, {k: v.float() for k, v in peer.state_dict().items()})(ids)
    ours = Decoder.from_tensors(config, peer.state_dict())(ids)
    theirs = peer(ids[None]).logits[0]
    assert ours.dtype == torch.bfloat16
    spread = exact.std()
    assert (ours - exact).abs().max() < 0.1 * spread
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()


def test_gradients_equal_llama_with_and_without_checkpointing(tiny_config, llama):
    config = tiny_config()
    peer = llama(config).requires_grad_(True)
    ids = tokens(config, 22).reshape(2, 11)
    peer(ids, labels=ids).loss.backward()
    kept = []
    for checkpointing in (False, True):
        decoder = Decoder.from_tensors(config, {k: v.clone() for k, v in peer.state_dict().items()})
        decoder.requires_grad_(True).train()
        decoder.model.gradient_checkpointing = checkpointing
        saved: list[int] = []

        def count(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logits = decoder(ids)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            kept.append(sum(saved))
        loss.backward()
        for name, parameter in peer.named_parameters():
            ours = decoder.get_parameter(name).grad
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert kept[1] < 0.5 * kept[0]
