"""The stages of a pass of the PyTorch network, named as the native decoder names its operators.

What only the native decoder has as a step of its own (rounding inputs, rotating keys) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from edge.model.network.decoder import MLP, Decoder, Layer

Report = Callable[[str, int, Tensor], None]
"""`report(operation, layer, output)`: output [n, columns], layer -1 outside the layers."""


@contextmanager
def reported(decoder: Decoder, report: Report) -> Iterator[None]:
    """Inside the block every stage of the layers is reported when it ends; the head is the caller's."""
    backbone = decoder.model
    with ExitStack() as stack:

        def after(module: nn.Module, operation: str, layer: int, scale: float = 1.0) -> None:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                report(operation, layer, (output[0] if isinstance(output, tuple) else output) * scale)

            stack.callback(module.register_forward_hook(hook).remove)

        def before(module: nn.Module, operation: str, layer: int) -> None:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                report(operation, layer, inputs[0])

            stack.callback(module.register_forward_pre_hook(hook).remove)

        after(backbone.embed_tokens, "embed", -1, backbone.embedding_scale)
        for index, layer in enumerate(backbone.layers):
            assert isinstance(layer, Layer)
            after(layer.input_layernorm, "attention_norm", index)
            after(layer.self_attn.q_proj, "qkv", index)  # the native event shows the queries of it
            before(layer.self_attn.o_proj, "attention", index)
            before(layer.post_attention_layernorm, "o", index)  # the residual stream with it
            after(layer.post_attention_layernorm, "mlp_norm", index)
            if isinstance(layer.mlp, MLP):
                before(layer.mlp.down_proj, "gate_up", index)
            after(layer, "down", index)
        yield
