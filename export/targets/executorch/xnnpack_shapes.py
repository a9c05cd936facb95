"""Shapes of the arguments and results of an XNNPACK program, as PyTorch wants to know them.

A lowered program is opaque. What PyTorch asks of it, while it traces the network around it, are the shapes of
its results for arguments of given shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

_EXAMPLE = 3  # of a size in the example; any number from 2 on


@dataclass(frozen=True)
class Size:
    """A dimension that differs from call to call: `times` x the number `name`, which is 1 to `most`."""

    name: str
    most: int
    times: int = 1

    def __mul__(self, times: int) -> Size:
        return replace(self, times=self.times * times)


Shape = tuple["int | Size", ...]


def largest(shape: Shape) -> list[int]:
    """The sizes that memory is needed for."""
    return [size.times * size.most if isinstance(size, Size) else size for size in shape]


@functools.cache
def shape_program(arguments: tuple[Shape, ...], results: tuple[Shape, ...]) -> ExportedProgram:
    """A program without arithmetic from arguments to results.

    A number in a result's shape must also be a plain dimension of an argument.
    """
    found = {size.name: size for shape in arguments for size in shape if isinstance(size, Size)}
    numbers = {name: Dim(name, min=1, max=size.most) for name, size in found.items()}
    dynamic = tuple(
        {
            at: size.times * numbers[size.name] if size.times > 1 else numbers[size.name]
            for at, size in enumerate(shape)
            if isinstance(size, Size)
        }
        for shape in arguments
    )
    example = dict.fromkeys(numbers, _EXAMPLE)
    examples = tuple(torch.empty(_sizes(shape, example), device="meta") for shape in arguments)
    return torch.export.export(_Shapes(arguments, results), examples, dynamic_shapes=(dynamic,), strict=False)


class _Shapes(nn.Module):
    def __init__(self, arguments: tuple[Shape, ...], results: tuple[Shape, ...]) -> None:
        super().__init__()
        self.results = results
        self.places = {
            size.name: (number, at)
            for number, shape in enumerate(arguments)
            for at, size in enumerate(shape)
            if isinstance(size, Size) and size.times == 1
        }

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        numbers = {name: arguments[number].shape[at] for name, (number, at) in self.places.items()}
        return tuple(arguments[0].new_empty(_sizes(shape, numbers)) for shape in self.results)


def _sizes(shape: Shape, numbers: Mapping[str, Any]) -> list[Any]:
    return [size.times * numbers[size.name] if isinstance(size, Size) else size for size in shape]
