"""Draws on a device beside those of the host."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.draws import MAX_TOP, Draw, Drawn, tables
from edge.executors.cuda.operators.sampling import SamplingInput, SamplingOutput, sample, scratch_bytes
from edge.executors.sampling import HostSampling, Sampled
from tests.kernels.cuda.memory import fetched, sent
from tests.philox import philox, place_of

EPSILON = 1e-6
"""The host adds weights as float32 numbers, the device as whole numbers: so far, as a share of all weights,
may a sum be from where a filter or a random number cuts.
"""


@dataclass(frozen=True, eq=False)
class Case:
    """A row of logits and how its token is drawn."""

    logits: npt.NDArray[np.float32]
    draw: Draw

    def on_host(self) -> Sampled:
        """By the native sampler."""
        draw = self.draw
        return HostSampling().sample(
            self.logits, draw.options, draw.history, index=draw.index, allowed=draw.allowed
        )

    def with_random(self, random: float) -> Case:
        """The same with the given random number."""
        index, choice = place_of(random, self.draw.options.seed)
        options = replace(self.draw.options, choice=choice)
        return Case(self.logits, replace(self.draw, options=options, index=index))

    @property
    def random(self) -> float:
        """Its random number."""
        words = [
            part
            for value in (self.draw.index, self.draw.options.choice, self.draw.options.seed)
            for part in (value % 2**32, value >> 32)
        ]
        first, second, *_ = philox((words[0], words[1], words[2], words[3]), (words[4], words[5]))
        return ((first << 32 | second) >> 11) / 2**53

    def neighbours(self) -> Iterator[Case]:
        """The case with its random number and shares moved by EPSILON."""
        random, options = self.random, self.draw.options
        moves = (-EPSILON, 0.0, EPSILON)
        for by, by_top, by_least in itertools.product(moves, moves, moves):
            moved = replace(
                options,
                top_p=min(max(options.top_p + by_top, 0.0), 1.0) if options.top_p < 1 else 1.0,
                min_p=min(options.min_p * (1 + by_least), 1.0),
            )
            yield Case(self.logits, replace(self.draw, options=moved)).with_random(
                min(max(random + by, 0.0), 1 - 2**-53)
            )


def drawn(device: Device, cases: Sequence[Case]) -> Drawn:
    """All in one launch."""
    rows, vocab_size = len(cases), cases[0].logits.size
    made = tables([case.draw for case in cases], vocab_size)
    parts = made.settings, made.history, made.bias_tokens, made.bias_values, made.masks
    given = SamplingInput(*(sent(device, part) for part in parts))
    scratch = sent(device, np.full(scratch_bytes(rows, vocab_size), 0xA5, np.uint8))
    output = SamplingOutput(*(device.allocate(4 * rows * n) for n in (1, 1, MAX_TOP, MAX_TOP)))
    logits = np.stack([case.logits for case in cases])
    address = sent(device, logits)
    sample(
        device,
        address,
        given,
        scratch,
        output if made.logprobs else SamplingOutput(output.tokens),
        rows=rows,
        vocab_size=vocab_size,
        greedy=made.greedy,
    )
    assert fetched(device, address, logits.shape, np.float32).tobytes() == logits.tobytes()
    return Drawn(
        fetched(device, output.tokens, (rows,), np.int32),
        fetched(device, output.logprobs, (rows,), np.float32),
        fetched(device, output.top_tokens, (rows, MAX_TOP), np.int32),
        fetched(device, output.top_logprobs, (rows, MAX_TOP), np.float32),
    )


def assert_as_on_host(device: Device, cases: Sequence[Case], *, apart: int = 1) -> None:
    """Every token is the host's, or the host's for a neighbouring case, which `apart` of them may need;
    log-probabilities and the best tokens are the host's.
    """
    found, moved = drawn(device, cases), 0
    for row, case in enumerate(cases):
        own, host = found.sampled(row, case.draw.options), case.on_host()
        if own.token != host.token:
            moved += 1
            assert own.token in {other.on_host().token for other in case.neighbours()}, (row, own, host)
        elif host.logprob is not None:
            assert own.logprob is not None
            assert abs(own.logprob - host.logprob) <= 1e-5
        assert [token for token, _ in own.top] == [token for token, _ in host.top]
        values = np.array([[a, b] for (_, a), (_, b) in zip(own.top, host.top, strict=True)])
        assert values.size == 0 or np.abs(values[:, 0] - values[:, 1]).max() <= 1e-5
    assert moved <= apart
