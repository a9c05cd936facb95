"""Draft bundles of random weights for tests of what runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.config.draft import CONFIDENCE, FC_BIAS, DraftConfig, draft_tensors
from edge.config.tensors import EMBEDDING, HEAD
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles, DraftWriter
from edge.formats.draft.manifest import TOKEN_IDS, TargetIdentity
from edge.quant.gather import gather_rows
from edge.quant.packing import pack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

F16 = QuantScheme("f16")


def write_draft(
    folder: Path,
    target: Bundle,
    config: DraftConfig,
    scheme: QuantScheme = F16,
    token_ids: npt.NDArray[np.int32] | None = None,
    seed: int = 0,
    change: Callable[[str, npt.NDArray[np.float32]], None] | None = None,
) -> DraftFiles:
    """A draft whose outputs are as large as its inputs, with norms and a bias that are not trivial.

    token_ids: of a head of its own, whose rows are the target's unless it was trained with it. change: called
    with (name, floats), may alter a tensor's values before they are stored.
    """
    alter = change or (lambda name, values: None)
    rng = np.random.default_rng(seed)
    head = HEAD if HEAD in target.tensors else EMBEDDING
    tensors = [
        BundleTensor(
            name,
            tensor.shape,
            QuantScheme("f32")
            if len(tensor.shape) == 1
            else target.tensors[head].scheme
            if name == HEAD and not config.trained_head
            else scheme,
            "random",
            True,
        )
        for name, tensor in draft_tensors(config).items()
    ]
    with DraftWriter(folder, config, "random weights", TargetIdentity.of(target), tensors) as writer:
        for info in tensors:
            if info.name == HEAD and not config.trained_head:
                assert token_ids is not None
                shape = target.tensors[head].shape
                rows = gather_rows(target.data(head), info.scheme, (shape[0], shape[1]), token_ids)
                writer.write(info.name, rows.data)
            elif len(info.shape) == 1:
                spreads = {FC_BIAS: 0.2, CONFIDENCE: 2 * info.shape[0] ** -0.5}  # around 0, norms around 1
                spread = spreads.get(info.name)
                low, high = (0.5, 1.5) if spread is None else (-spread, spread)
                values = rng.uniform(low, high, info.shape).astype(np.float32)
                alter(info.name, values)
                writer.write(info.name, pack(values.reshape(1, -1), info.scheme))
            else:
                spread = info.shape[1] ** -0.5 * (1.5 if ".q_proj." in info.name else 1.0)
                weights = (rng.standard_normal(info.shape) * spread).astype(np.float32)
                alter(info.name, weights)
                stored = weights if scheme.is_float else quantize(weights, scheme)
                writer.write(info.name, pack(stored, scheme))
        if token_ids is not None:
            writer.write(TOKEN_IDS, np.ascontiguousarray(token_ids, np.int32))
    return DraftFiles.open(folder)
