"""The borders of what a step and a compaction accept."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import ContextError, EdgeError, TokenizerError
from edge.executors.checks import (
    check_kept_rows,
    check_layers,
    check_logits,
    check_positions,
    check_tokens,
    check_tree,
    integers,
)


def test_tokens_up_to_the_border(tiny_config):
    """A vocabulary of 77, batches of 4, a context of 10."""

    def check(tokens, length=0):
        return check_tokens(tokens, tiny_config, length=length, context=10, max_batch=4).tolist()

    assert check([0, 76, 1, 2], length=6) == [0, 76, 1, 2]
    assert check([5], length=9) == [5]
    for tokens in ([], [1] * 5):
        with pytest.raises(EdgeError, match=f"1 to 4 tokens, got {len(tokens)}"):
            check(tokens)
    for token in (-1, 77):
        with pytest.raises(TokenizerError, match=f"Token id {token} is outside the vocabulary of 77"):
            check([1, token])
    with pytest.raises(ContextError, match="2 more tokens after 9 do not fit the context of 10"):
        check([1, 2], length=9)


def test_positions_up_to_the_border():
    assert check_positions(np.array([0, 9]), 2, 10).tolist() == [0, 9]
    for wrong in ([-1, 3], [3, 10]):
        with pytest.raises(
            ContextError, match=f"{min(wrong)} to {max(wrong)} reach outside the context of 10"
        ):
            check_positions(np.array(wrong), 2, 10)
    with pytest.raises(EdgeError, match=r"one entry per token \(3\), got shape \(2,\)"):
        check_positions(np.array([0, 1]), 3, 10)


def test_trees_up_to_the_border():
    chain = np.array([(1 << (i + 1)) - 1 for i in range(64)], np.uint64)
    assert (check_tree(chain, 64) == chain).all()
    with pytest.raises(EdgeError, match="at most 64 tokens, got 65"):
        check_tree(np.append(chain, chain[:1]), 65)
    with pytest.raises(EdgeError, match=r"one entry per token \(2\), got shape \(3,\)"):
        check_tree(chain[:3], 2)
    for masks, wrong in (([1, 1], 1), ([3, 3], 0), ([0, 3], 0)):  # not itself, one after it, nothing
        with pytest.raises(EdgeError, match=f"Token {wrong} of the tree must see itself"):
            check_tree(np.array(masks, np.uint64), 2)


def test_logits_and_layers(tiny_config):
    assert [check_logits(want, 7) for want in ("none", "last", "all")] == [0, 1, 7]
    with pytest.raises(EdgeError, match="Unknown choice of logits 'first'; choose one of none, last, all"):
        check_logits("first", 7)
    check_layers([1, 0, 1], tiny_config)
    for layer in (-1, 2):
        with pytest.raises(EdgeError, match=f"has 2 layers: there is no layer {layer}"):
            check_layers([0, layer], tiny_config)


def test_rows_to_keep_up_to_the_border():
    assert check_kept_rows([2, 4, 5], 2, 6) == [2, 4, 5]
    assert check_kept_rows([], 6, 6) == check_kept_rows([], 0, 0) == []
    for n in (-1, 7):
        with pytest.raises(EdgeError, match=f"has 6 rows, so the first {n} can't be kept"):
            check_kept_rows([], n, 6)
    for rows in ([1, 3], [3, 3], [4, 3], [2, 6]):  # one of those kept, one twice, back, past the last
        with pytest.raises(EdgeError, match="must ascend from 2, within the 6"):
            check_kept_rows(rows, 2, 6)


def test_integers_up_to_their_type():
    assert integers([-(2**31), 2**31 - 1], "ids").tolist() == [-(2**31), 2**31 - 1]
    for wrong in (-(2**31) - 1, 2**31):
        for values in ([0, wrong], np.array([0, wrong], np.int64)):
            with pytest.raises(EdgeError, match="ids must lie from -2147483648 to 2147483647"):
                integers(values, "ids")
