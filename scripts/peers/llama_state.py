"""The saved state of a sequence in llama.cpp, made longer: a deep context that need not be computed."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def stretched(saved: bytes, cells: int) -> Bytes:
    """The state of a sequence of so many cells, from that of a short one (llama_state_seq_get_data).

    Four numbers, the last the count of cells; a position, a count (1) and a sequence of each cell; whether
    values are transposed, the count of layers; then for every layer's keys, and for every layer's values,
    their type, the size of a row, and the rows (transposed: type, size of an element, count of rows, rows of
    cells).
    """
    state = np.frombuffer(saved, np.uint8)
    *head, short = struct.unpack_from("<IiII", saved)
    at = 16 + 12 * short
    transposed, layers = struct.unpack_from("<II", saved, at)
    about = np.zeros((cells, 3), np.int32)
    about[:, 0], about[:, 1] = np.arange(cells), 1
    pieces = [np.frombuffer(struct.pack("<IiII", *head, cells), np.uint8), about.view(np.uint8).ravel()]
    pieces.append(state[at : at + 8])
    at, chosen = at + 8, np.arange(cells) % short
    for part in range(2 * layers):
        flat = transposed and part >= layers
        _, size, *rows = struct.unpack_from("<iII" if flat else "<iQ", saved, at)
        shape = (rows[0], short, size) if flat else (1, short, size)
        end = at + 12 + int(np.prod(shape))
        pieces.append(state[at : at + 12])
        pieces.append(state[at + 12 : end].reshape(shape)[:, chosen].ravel())
        at = end
    if at != len(state):
        raise ValueError(f"This llama.cpp writes another state: {len(state) - at} bytes are left over.")
    return np.concatenate(pieces)
