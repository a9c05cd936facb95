"""P-GPTQ: what the first positions may say, and that a channel which speaks only there is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edge.checkpoints.synthetic import RandomCheckpoint
from edge.export.calibration import calibration
from edge.export.quantize import QuantizeOptions
from edge.export.quantize.activations import Stream, load_layer
from edge.export.quantize.calibrated import embed, quantize_layer, read_layer

SINK_CHANNEL = 37


@torch.no_grad()
def test_the_first_four_positions_are_quietened(checkpoint: RandomCheckpoint, text: Path):
    """The gram is that of all positions, the first four scaled down to the mean size of the others."""
    x = embed(checkpoint, calibration(checkpoint, text, 6, 64))
    x[:, 0] *= 300
    x[:, 2] *= 0.01  # a quiet one stays as it is
    x[:, 4] *= 3  # the fifth is one of the others
    tensors = read_layer(checkpoint, 0)
    layer = load_layer(checkpoint.config, 0, tensors)
    layer.input_layernorm = torch.nn.Identity()
    (found,) = Stream(checkpoint.config, x.clone()).grams(layer, ["self_attn.q_proj"], masked=True)
    rest, first = x[:, 4:].flatten(0, 1).double(), x[:, :4].flatten(0, 1).double()
    ordinary = rest.square().sum(1).mean().sqrt()
    for row in first:
        if row.norm() > ordinary:
            row *= ordinary / row.norm()
    wanted = rest.t() @ rest + first.t() @ first
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


class Sink:
    """A layer in which one channel of the MLP is loud at the first position and silent elsewhere.

    That is how an attention sink is made: dimension 0 of the stream tells the first position from the others,
    and gate and up have a row that reads only this.
    """

    def __init__(self, checkpoint: RandomCheckpoint, text: Path) -> None:
        self.config = checkpoint.config
        self.tensors = read_layer(checkpoint, 0)
        self.hidden = embed(checkpoint, calibration(checkpoint, text, 6, 64))
        self.hidden[:, :, 0] = 0
        self.hidden[:, 0, 0] = 20 * self.hidden.std()
        for name in ("gate_proj", "up_proj"):
            matrix = self.tensors[f"mlp.{name}.weight"]
            matrix[SINK_CHANNEL] = 0
            matrix[SINK_CHANNEL, 0] = 10.0
        self.tensors["self_attn.o_proj.weight"][0] = 0  # attention does not tell the others what it is

    def errors(self, options: QuantizeOptions) -> tuple[float, float]:
        """Relative squared error of what the layer adds to the stream: (at the first position, elsewhere)."""
        wanted, found = (Stream(self.config, self.hidden.clone()) for _ in range(2))
        wanted.advance(
            load_layer(self.config, 0, {name: each.clone() for name, each in self.tensors.items()})
        )
        layer = load_layer(self.config, 0, {name: each.clone() for name, each in self.tensors.items()})
        quantize_layer(layer, "model.layers.0.", Stream(self.config, self.hidden), options, lambda name: None)
        found.advance(layer)
        error, change = found.hidden - wanted.hidden, wanted.hidden - self.hidden

        def share(positions: slice) -> float:
            return float(error[:, positions].square().sum() / change[:, positions].square().sum())

        return share(slice(1)), share(slice(4, None))


@torch.no_grad()
@pytest.mark.parametrize("smooth", [False, True])
def test_the_sink_is_kept(
    checkpoint: RandomCheckpoint, text: Path, monkeypatch: pytest.MonkeyPatch, smooth: bool
):
    """P-GPTQ serves the others better than GPTQ does and the first like them; a plain mask destroys it."""
    sink, first, rest = Sink(checkpoint, text), {}, {}
    chosen: dict[str, Any] = {"calibration": text, "sequences": 6, "length": 64, "threads": 1}
    for method in ("rtn", "gptq", "p-gptq"):
        options = QuantizeOptions("int4-g32", method=method, smooth=smooth, **chosen)
        first[method], rest[method] = sink.errors(options)
    assert rest["p-gptq"] < 0.7 * rest["gptq"] < 0.7 * rest["rtn"]
    assert first["p-gptq"] < 3 * rest["p-gptq"]
    monkeypatch.setattr("edge.export.quantize.activations._Adder.gram", lambda adder: adder._total)
    assert sink.errors(options)[0] > 5 * first["p-gptq"]
