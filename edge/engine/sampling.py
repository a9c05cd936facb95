"""The tokens of one answer, drawn where the executor has its logits. Parameters: `edge.engine.settings`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.engine.settings import SamplingParams
from edge.executors.protocol import Executor
from edge.executors.sampling import DrawOptions, HostSampling, Sampled

_ALIKE = ("temperature", "top_k", "top_p", "min_p", "typical_p", "logprobs")
_PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


class Sampler:
    """Draws the tokens of one answer; the same seed, index and logits give the same token. For one thread."""

    def __init__(self, params: SamplingParams, executor: Executor | None = None, *, choice: int = 0) -> None:
        """executor: whose logits it will get, None for arrays. choice: which of several answers to the same
        prompt; each has random numbers of its own.
        """
        self.params = params
        self.seed = random.SystemRandom().getrandbits(63) if params.seed is None else params.seed
        self._sampling: Executor | HostSampling = executor or HostSampling()
        self.options = DrawOptions(
            **{name: getattr(params, name) for name in (*_ALIKE, *_PENALTIES)},
            bias_tokens=np.fromiter(params.logit_bias.keys(), np.int32, len(params.logit_bias)),
            bias_values=np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias)),
            seed=self.seed,
            choice=choice,
        )

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        history: Sequence[int] | npt.NDArray[np.int32] = (),
        *,
        index: int = 0,
        allowed: npt.NDArray[np.uint32] | None = None,
    ) -> Sampled:
        """The next token for `logits`, float32 [vocab_size], which stay unchanged.

        history: the tokens that penalties may count, oldest first. index: of the token in its answer.
        allowed: see `edge.executors.protocol.Executor.sample`.
        """
        params = self.params
        if not params.has_penalties or params.penalty_window == 0:
            history = ()
        elif params.penalty_window is not None:
            history = history[-params.penalty_window :]
        return self._sampling.sample(logits, self.options, history, index=index, allowed=allowed)
