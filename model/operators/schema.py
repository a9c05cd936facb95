"""Defines operators in torch's `edge` namespace from a schema, a PyTorch reference and a fake kernel.

An operator's result is one tensor. Each has an `.out` variant of the same name, which ExecuTorch asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Tensor])

_RESULT = " -> Tensor"


def operator(schema: str, fake: Callable[..., Tensor]) -> Callable[[_Function], _Function]:
    """Define `edge::<schema>` with the decorated function as its CPU implementation.

    schema: `name(arguments) -> Tensor`; fake: the same arguments -> an empty tensor of the result's shape.
    """
    name, _, rest = schema.partition("(")
    name, arguments = f"edge::{name}", rest.removesuffix(")" + _RESULT)

    def define(reference: _Function) -> _Function:
        def write(*values: Any, out: Tensor, **named: Any) -> Tensor:
            result = reference(*values, **named)
            return out.resize_(result.shape).copy_(result)

        torch.library.define(name, f"({arguments}){_RESULT}")
        torch.library.define(f"{name}.out", f"({arguments}, *, Tensor(z!) out) -> Tensor(z!)")
        torch.library.impl(name, "cpu")(reference)
        torch.library.impl(f"{name}.out", "cpu")(write)
        torch.library.register_fake(name)(fake)
        torch.library.register_fake(f"{name}.out")(lambda *_, out, **__: out)
        return reference

    return define
