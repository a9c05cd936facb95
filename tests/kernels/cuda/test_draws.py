"""What rows' settings become, and what is refused before anything is launched."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import EdgeError, TokenizerError
from edge.executors.cuda.operators.draws import MAX_TOP, SETTINGS, Draw, fits, tables
from edge.executors.sampling import DrawOptions


def test_what_the_host_has_to_do() -> None:
    assert fits(DrawOptions(top_k=5, logprobs=MAX_TOP))
    assert not fits(DrawOptions(typical_p=0.9))
    assert not fits(DrawOptions(logprobs=MAX_TOP + 1))


def test_rows_share_one_array_of_each_kind() -> None:
    """Histories are left out where nothing counts them; masks only of rows that have one."""
    bias = DrawOptions(bias_tokens=np.array([7], np.int32), bias_values=np.array([0.5], np.float32))
    mask = np.array([1, 2], np.uint32)
    made = tables(
        [
            Draw(DrawOptions(presence_penalty=1), [3, 4, 3]),
            Draw(bias, [1]),
            Draw(DrawOptions(frequency_penalty=1, temperature=0), np.array([9]), allowed=mask),
        ],
        40,
    )
    settings = made.settings
    assert made.history.tolist() == [3, 4, 3, 9] and made.bias_tokens.tolist() == [7]
    assert settings["history_start"].tolist() == [0, 3, 3]
    assert settings["history_length"].tolist() == [3, 0, 1]
    assert settings["bias_length"].tolist() == [0, 1, 0]
    assert settings["mask"].tolist() == [0, 0, 1] and made.masks.tolist() == [[1, 2]]
    assert not made.greedy and not made.logprobs


def test_rows_of_zeros_want_nothing() -> None:
    """So a launch may have more rows than there are draws."""
    made = tables([Draw(DrawOptions(temperature=0))], 40)
    assert made.greedy
    assert SETTINGS.itemsize % 4 == 0
    quiet = dict.fromkeys(("repetition_penalty", "top_p"), 0)
    values = {name: made.settings[name][0] for name in SETTINGS.names or ()}
    assert {**values, **quiet} == dict.fromkeys(values, 0)


def test_shares_are_exact() -> None:
    """As numbers of float32, which the host's sampler takes."""
    made = tables([Draw(DrawOptions(top_p=p)) for p in (0.0, 0.5, 0.9, 1.0)], 40)
    assert made.settings["top_p"].tolist() == [0, 2**63, int(float(np.float32(0.9)) * 2**64), 2**64 - 1]


@pytest.mark.parametrize("token", [-1, 40])
def test_ids_outside_the_vocabulary(token: int) -> None:
    bias = DrawOptions(bias_tokens=np.array([token], np.int32), bias_values=np.zeros(1, np.float32))
    with pytest.raises(TokenizerError, match="logit bias is outside the vocabulary of 40"):
        tables([Draw(bias)], 40)
    with pytest.raises(TokenizerError, match=f"Token id {token} in the history"):
        tables([Draw(DrawOptions(presence_penalty=1), [1, token])], 40)


def test_masks_of_another_vocabulary() -> None:
    with pytest.raises(EdgeError, match=r"uint32 \[2\], got uint32 \[3\]"):
        tables([Draw(DrawOptions(), allowed=np.zeros(3, np.uint32))], 40)
