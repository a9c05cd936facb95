"""Shapes of the arguments and results of an XNNPACK program, as PyTorch wants to know them.

A lowered program is opaque. What PyTorch asks of it, while it traces the network around it, are the shapes of
its results for arguments of given shapes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

_EXAMPLE = 3  # tokens of the example; any number from 2 on


@dataclass(frozen=True)
class Rows:
    """A dimension of `times` rows per token of a call."""

    times: int = 1


Shape = tuple["int | Rows", ...]


def sizes(shape: Shape, tokens: Any) -> list[Any]:
    """The shape for so many tokens, a number or a symbol."""
    return [size.times * tokens if isinstance(size, Rows) else size for size in shape]


@functools.cache
def shape_program(arguments: tuple[Shape, ...], results: tuple[Shape, ...], most: int) -> ExportedProgram:
    """A program without arithmetic from arguments to results; most: the most tokens of a call."""
    tokens = Dim("n", min=1, max=most)
    examples = tuple(torch.empty(sizes(shape, _EXAMPLE), device="meta") for shape in arguments)
    dynamic = tuple(
        {at: size.times * tokens for at, size in enumerate(shape) if isinstance(size, Rows)}
        for shape in arguments
    )
    return torch.export.export(_Shapes(arguments, results), examples, dynamic_shapes=(dynamic,), strict=False)


class _Shapes(nn.Module):
    def __init__(self, arguments: tuple[Shape, ...], results: tuple[Shape, ...]) -> None:
        super().__init__()
        self.results = results
        self.place = next(
            (
                (i, at)
                for i, shape in enumerate(arguments)
                for at, size in enumerate(shape)
                if size == Rows()
            ),
            (0, 0),
        )

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        argument, dimension = self.place
        tokens = arguments[argument].shape[dimension]
        return tuple(arguments[0].new_empty(sizes(shape, tokens)) for shape in self.results)
