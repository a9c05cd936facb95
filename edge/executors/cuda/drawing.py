"""Tokens drawn where the logits are: a token comes back instead of the whole vocabulary's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.draws import MAX_TOP, SETTINGS, Draw, Drawn, DrawTables, fits, tables
from edge.executors.cuda.operators.sampling import (
    SamplingInput,
    SamplingOutput,
    sample,
    sampling_fits,
    scratch_bytes,
)
from edge.executors.sampling import Sampled

_ALIGNMENT = 256
_MOST_BIASES = 1024  # tokens; the kernels take one after another


@dataclass(frozen=True)
class HeldRow:
    """One row of logits on the device. passed: the pass that it is of."""

    passed: int
    row: int


@dataclass(frozen=True)
class HeldLogits:
    """Rows of logits on the device, as `StepResult.logits` has them for steps that are `held`."""

    passed: int
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> HeldRow:
        return HeldRow(self.passed, self.first + range(self.count)[index])


class DeviceSampler:
    """Draws one token at a time, in memory of its own."""

    def __init__(self, device: Device, vocab_size: int, context: int) -> None:
        """Raises ContextError if there is no room for `size` bytes."""
        self._device, self._vocab_size, self._context = device, vocab_size, context
        self._start = device.allocate(self.size(vocab_size, context))
        at = self._start
        self._at: dict[str, Address] = {}
        for name, size in self._sizes(vocab_size, context).items():
            self._at[name] = at
            at += -(-size // _ALIGNMENT) * _ALIGNMENT

    @classmethod
    def size(cls, vocab_size: int, context: int) -> int:
        """Bytes that it takes."""
        return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in cls._sizes(vocab_size, context).values())

    def takes(self, draw: Draw) -> bool:
        """False for what is left to the host: settings that the kernels lack, and long lists."""
        few = len(draw.history) <= self._context and len(draw.options.bias_tokens) <= _MOST_BIASES
        return few and fits(draw.options) and sampling_fits(self._vocab_size)

    def draw(self, logits: Address, draw: Draw) -> Sampled:
        """A token for one row of logits, float32 [vocab_size], which stays unchanged. Raises what
        `Executor.sample` does.
        """
        device, at = self._device, self._at
        given = tables([draw], self._vocab_size)
        if logits % 16:  # rows of vocabularies that are no multiple of 4
            device.copy(at["row"], logits, 4 * self._vocab_size)
            logits = at["row"]
        output = SamplingOutput(at["token"])
        if given.logprobs:
            output = SamplingOutput(at["token"], at["logprob"], at["top_tokens"], at["top_logprobs"])
        sample(
            device,
            logits,
            self._uploaded(given),
            at["scratch"],
            output,
            rows=1,
            vocab_size=self._vocab_size,
            greedy=given.greedy,
        )
        wanted = given.logprobs
        found = Drawn(
            self._fetched("token", 1, np.int32),
            self._fetched("logprob", 1, np.float32, wanted),
            self._fetched("top_tokens", MAX_TOP, np.int32, wanted).reshape(1, -1),
            self._fetched("top_logprobs", MAX_TOP, np.float32, wanted).reshape(1, -1),
        )
        return found.sampled(0, draw.options)

    def _uploaded(self, given: DrawTables) -> SamplingInput:
        addresses = {}
        for name, values in vars(given).items():
            addresses[name] = self._at[name] if values.size else 0
            if values.size:
                self._device.upload(self._at[name], values)
        return SamplingInput(**addresses)

    def _fetched(
        self, name: str, count: int, kind: type[np.generic], wanted: bool = True
    ) -> npt.NDArray[Any]:
        values = np.zeros(count, kind)
        if wanted:
            self._device.download(self._at[name], values)
        return values

    @staticmethod
    def _sizes(vocab_size: int, context: int) -> dict[str, int]:
        return {
            "settings": SETTINGS.itemsize,
            "history": 4 * context,
            "bias_tokens": 4 * _MOST_BIASES,
            "bias_values": 4 * _MOST_BIASES,
            "masks": 4 * -(-vocab_size // 32),
            "row": 4 * vocab_size,
            "scratch": scratch_bytes(1, vocab_size),
            "token": 4,
            "logprob": 4,
            "top_tokens": 4 * MAX_TOP,
            "top_logprobs": 4 * MAX_TOP,
        }
