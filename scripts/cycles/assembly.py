"""Finds a hot loop in the assembly of GCC or Clang, and the instructions of one of its turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .kernels import PRODUCTS, Kernel, Work

_LABEL = re.compile(r"^(\.?[\w.$]+):")
_MOST = 100_000  # instructions of one turn


class LoopError(Exception):
    """A sentence about a loop that is not as expected."""


@dataclass(frozen=True)
class Instruction:
    """text: without comments. target: the index that a branch goes to."""

    text: str
    target: int | None = None

    def products(self, work: Work) -> int:
        """How many products of that kind it makes."""
        for start, count in PRODUCTS[work].items():
            if self.text.startswith(start):
                return count // 2 if "%ymm" in self.text else count
        return 0


Body = Sequence[Instruction]
Loop = tuple[int, int]
"""First instruction, and the one after the branch back to it."""


@dataclass(frozen=True)
class Turn:
    """The instructions of one turn, in order, and the multiply-adds (or elements) that they make."""

    instructions: tuple[str, ...]
    multiply_adds: int


def turn_of(assembly: str, kernel: Kernel) -> Turn:
    """One turn of the kernel's loop. Raises LoopError."""
    body, multiply_adds = _function(assembly, kernel.function)
    wanted = multiply_adds * kernel.products
    loops = [
        (each.target, end + 1)
        for end, each in enumerate(body)
        if each.target is not None and each.target <= end
    ]
    innermost = [loop for loop in loops if not any(_is_inside(other, loop) for other in loops)]
    hot = [loop for loop in innermost if _products(body[slice(*loop)], kernel.work)]
    turns: list[Body]
    if kernel.whole:
        turns = [_group(body, loops, loop, kernel.work, wanted) for loop in hot]
    else:  # there are others for what is left over of rows and columns, with fewer products or as many
        turns = [body[slice(*loop)] for loop in hot]
    made = [_products(turn, kernel.work) for turn in turns]
    if wanted not in made or (kernel.whole and len(turns) > 1):
        raise LoopError(
            f"{kernel.function} has {len(turns)} inner loops with {' or '.join(PRODUCTS[kernel.work])}, "
            f"whose turns make {made} products; one with {wanted} was expected."
        )
    longest = max((turn for turn, count in zip(turns, made, strict=True) if count == wanted), key=len)
    return Turn(tuple(each.text for each in longest), multiply_adds)


def _function(assembly: str, name: str) -> tuple[list[Instruction], int]:
    """Its instructions, and the multiply-adds of a turn by its mark."""
    found = re.search(rf"^{name}:\n(.*?)^\s*\.size\s+{name},", assembly, re.S | re.M)
    if found is None:
        raise LoopError(f"The assembly has no function {name}.")
    mark = re.search(r"edge-turn (\d+)", found[1])
    if mark is None:
        raise LoopError(f"{name} has no mark of EDGE_TURN.")
    texts: list[str] = []
    places: dict[str, int] = {}
    for raw in found[1].splitlines():
        line = re.sub(r"\s+", " ", raw.partition("//")[0]).strip()
        if label := _LABEL.match(line):
            places[label[1]] = len(texts)
        elif line and line[0] not in ".#":
            texts.append(line)
    body = []
    for text in texts:
        operation, _, operands = text.partition(" ")
        is_branch = operation.startswith(("b", "cb", "tb", "j"))
        body.append(Instruction(text, places.get(operands.rpartition(" ")[2]) if is_branch else None))
    return body, int(mark[1])


def _is_inside(inner: Loop, outer: Loop) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def _products(part: Body, work: Work) -> int:
    return sum(each.products(work) for each in part)


def _group(body: Body, loops: Sequence[Loop], inner: Loop, work: Work, wanted: int) -> Body:
    """A turn of the outermost loop around `inner`, with as many turns of that as make `wanted` products."""
    outer = min([loop for loop in loops if _is_inside(inner, loop)] or [inner])
    each = _products(body[slice(*inner)], work)
    others = _products(_walk(body, outer, inner, 1), work) - each
    return _walk(body, outer, inner, max(1, (wanted - others) // each))


def _walk(body: Body, outer: Loop, inner: Loop, turns: int) -> Body:
    """A turn of `outer` with `turns` of `inner`. Conditions that guard against no turn at all are not met."""
    at, walked = outer[0], list[Instruction]()
    while outer[0] <= at < outer[1] and len(walked) < _MOST:
        here = body[at]
        walked.append(here)
        at += 1
        if at == outer[1]:
            return walked
        if at == inner[1] and turns > 1:
            turns, at = turns - 1, inner[0]
        elif here.target is not None and here.text.startswith(("b ", "jmp ")):
            at = here.target
    raise LoopError("A turn of a loop does not come back to its start.")
