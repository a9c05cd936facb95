"""From logits to tokens, see `kernels/cuda/sampling.py`: one draw for a row, by the row's own settings."""

from __future__ import annotations

from dataclasses import dataclass

from edge.executors.cuda.device import Address, Device

CHUNK = 512
"""Logits that one program looks at where several share a row."""

MAX_CHUNKS = 512
"""Of a row."""

OCTAVES = 32
"""Of weights: tokens are counted from 1 down to 1/2, to 1/4, ...; the last octave has all smaller ones."""

CAPACITY = 8192
"""Candidates that a row has room for; where more are left, filters look at the whole vocabulary."""

_ALIGNMENT = 256


@dataclass(frozen=True)
class SamplingInput:
    """Addresses of what `edge.executors.cuda.operators.draws.tables` made; 0 for an empty array."""

    settings: Address
    history: Address
    bias_tokens: Address
    bias_values: Address
    masks: Address


@dataclass(frozen=True)
class SamplingOutput:
    """Addresses of the arrays of `edge.executors.cuda.operators.draws.Drawn`; logprobs 0: nothing but
    tokens is wanted, whatever the settings say.
    """

    tokens: Address
    logprobs: Address = 0
    top_tokens: Address = 0
    top_logprobs: Address = 0


@dataclass(frozen=True)
class _Sizes:
    """Bytes of each part of the scratch memory.

    adjusted: logits after mask, bias and penalties, float32 [rows, vocabulary]. plain_peaks, plain_sums,
    peaks: of every chunk, float32 [rows, chunks]. counts int32 and masses int64 [rows, chunks, OCTAVES]:
    tokens and their weights. offsets: of every chunk's candidates, int32 [rows, chunks]. found: see
    `kernels/cuda/candidates.py`, int64 [rows, 2]. candidates: ids, ascending, int32 [rows, CAPACITY].
    """

    adjusted: int
    plain_peaks: int
    plain_sums: int
    peaks: int
    counts: int
    masses: int
    offsets: int
    found: int
    candidates: int

    @classmethod
    def of(cls, rows: int, vocab_size: int) -> _Sizes:
        """For up to so many rows."""
        chunks = rows * chunks_of(vocab_size)
        return cls(
            adjusted=4 * rows * vocab_size,
            plain_peaks=4 * chunks,
            plain_sums=4 * chunks,
            peaks=4 * chunks,
            counts=4 * chunks * OCTAVES,
            masses=8 * chunks * OCTAVES,
            offsets=4 * chunks,
            found=16 * rows,
            candidates=4 * rows * CAPACITY,
        )

    def placed(self, scratch: Address) -> dict[str, Address]:
        """The address of each part."""
        places = {}
        for name, size in vars(self).items():
            places[name] = scratch
            scratch += -(-size // _ALIGNMENT) * _ALIGNMENT
        return places


def chunks_of(vocab_size: int) -> int:
    """Number of chunks of a row."""
    return -(-vocab_size // CHUNK)


def sampling_fits(vocab_size: int) -> bool:
    """False for a vocabulary that is too large for the kernels."""
    return chunks_of(vocab_size) <= MAX_CHUNKS


def scratch_bytes(rows: int, vocab_size: int) -> int:
    """Size of the scratch memory that `sample` takes, which may hold anything."""
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in vars(_Sizes.of(rows, vocab_size)).values())


def sample(
    device: Device,
    logits: Address,
    given: SamplingInput,
    scratch: Address,
    output: SamplingOutput,
    *,
    rows: int,
    vocab_size: int,
    greedy: bool = False,
) -> None:
    """Draw a token for each row of logits float32 [rows, vocab_size], which stay unchanged.

    What a row gets depends on its logits and settings alone, bit for bit. greedy: all rows have temperature
    0, which saves the launches that filters need. No row may want what `fits` of `draws` refuses.
    """
    assert sampling_fits(vocab_size)
    at = _Sizes.of(rows, vocab_size).placed(scratch)
    chunks = chunks_of(vocab_size)
    of_chunks, of_rows = (chunks, rows, 1), (rows, 1, 1)
    tables = given.settings, given.history, given.bias_tokens, given.bias_values, given.masks
    sums = at["plain_peaks"], at["plain_sums"], at["peaks"]
    device.launch("adjust", of_chunks, (logits, *tables, at["adjusted"], *sums, vocab_size))
    tokens = given.settings, at["adjusted"], at["peaks"]
    octaves = at["counts"], at["masses"]
    left = at["found"], at["candidates"]
    if not greedy:
        device.launch("weigh", of_chunks, (*tokens, *octaves, vocab_size))
        device.launch("narrow", of_rows, (given.settings, *octaves, at["offsets"], at["found"], chunks))
        device.launch("gather", of_chunks, (*tokens, at["offsets"], *left, vocab_size))
    device.launch("draw", of_rows, (*tokens, at["plain_peaks"], *left, output.tokens, vocab_size, chunks))
    if output.logprobs:
        found = output.tokens, output.logprobs, output.top_tokens, output.top_logprobs
        plain = at["plain_peaks"], at["plain_sums"]
        device.launch("logprobs", of_rows, (given.settings, logits, *plain, *found, vocab_size, chunks))
