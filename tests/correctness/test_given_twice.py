"""A weight that an executor is given twice: one of them would win silently."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest

from edge.errors import NativeError
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle


class GivenTwice(dict):
    """Tensors by name, one of them once more at the end."""

    def __init__(self, tensors: Mapping[str, BundleTensor], again: str) -> None:
        super().__init__(tensors)
        self.again = again

    def __len__(self) -> int:
        return super().__len__() + 1

    def items(self):
        return [*super().items(), (self.again, self[self.again])]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.norm.weight", "[Ff]inal norm is given twice"),
        ("model.embed_tokens.weight", "[Ee]mbedding is given twice"),
        ("model.layers.1.mlp.up_proj.weight", "layer 1 is given twice"),
    ],
)
def test_the_native_executor_refuses_it(minicpm, make_bundle, open_native, name: str, says: str):
    bundle = make_bundle(minicpm())
    twice = copy.copy(bundle)
    tensors = property(lambda _: GivenTwice(bundle.tensors, name))
    twice.__class__ = type("Twice", (Bundle,), {"tensors": tensors})
    with pytest.raises(NativeError, match=says):
        open_native(twice)
