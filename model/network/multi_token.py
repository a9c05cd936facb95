"""A multi-token-prediction layer: guesses the token after next (DeepSeek-V3, arXiv 2412.19437, 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge.config import ModelConfig
from edge.model.network.decoder import Attend, Decoder, Layer, RMSNorm, View


class MultiTokenPrediction(nn.Module):
    """One more layer over the main network's residual stream and the embeddings of the tokens one further on.

    Embedding and head are those of the main network. Names follow DeepSeek-V3's checkpoints.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(size, eps), RMSNorm(size, eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.layer = Layer(config)
        if config.scale_depth is not None:
            # The residual stream has one layer more by now (muP, place 2).
            self.layer.scale = config.scale_depth / (config.num_hidden_layers + 1) ** 0.5
        self.norm = RMSNorm(size, eps)

    def use_attention(self, attend: Attend) -> MultiTokenPrediction:
        """What `Decoder.use_attention` does, for the layer here; returns the module itself."""
        self.layer.self_attn.attend = attend
        return self

    def forward(
        self, decoder: Decoder, tokens: Tensor, stream: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Logits [..., n - 1, vocab]: row i is the guess at token i + 2 from tokens 0 .. i + 1.

        tokens: int [..., n]. stream: [..., n, hidden], the residual stream after the main network's last
        layer (`Trunk.stream[-1]`) for the same tokens. positions: int [..., n], by default 0 to n - 1; where
        they begin again there are several documents in a row, which needs an attention that keeps them
        apart. The last two guesses of a document then are at tokens of the next, and mean nothing.
        """
        n = tokens.shape[-1] - 1
        both = torch.cat(
            [self.enorm(decoder.model.embed(tokens[..., 1:])), self.hnorm(stream[..., :-1, :])], dim=-1
        )
        x = self.eh_proj(both)
        positions = torch.arange(n, device=tokens.device) if positions is None else positions[..., :-1]
        mask = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        cos, sin = decoder.model.rotary(positions)
        x, _ = self.layer(x, View(cos.to(x.dtype), sin.to(x.dtype), mask, positions))
        return decoder.logits(self.norm(x))
