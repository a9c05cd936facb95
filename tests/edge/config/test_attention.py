"""Which attention a run uses, `--attention dense|sparse|auto`, and refusals in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.config import SparseConfig
from edge.config.attention import asked_attention, describe_attention, resolve_attention, with_selection
from edge.errors import ConfigError

OWN = SparseConfig(topk=32, dense_len=4096)


def test_dense_is_dense(tiny_config):
    assert resolve_attention(replace(tiny_config, sparse=OWN), "dense", context=32768) is None


def test_auto_follows_the_model(tiny_config):
    assert resolve_attention(tiny_config, "auto", context=32768) is None
    assert resolve_attention(replace(tiny_config, sparse=OWN), "auto", context=32768) == OWN
    assert resolve_attention(replace(tiny_config, sparse=OWN), "auto", context=4096) is None
    assert resolve_attention(replace(tiny_config, sparse=OWN), "auto", context=32768, obstacle="no") is None


def test_sparse_has_the_published_defaults(tiny_config):
    assert resolve_attention(replace(tiny_config, sparse=OWN), "sparse", context=32768) == OWN
    assert resolve_attention(tiny_config, "sparse", context=32768) == SparseConfig()


@pytest.mark.parametrize(
    "sparse, context, obstacle, named",
    [
        (None, 32768, "this executor does not have it", "executor"),
        (None, 8192, None, "8192"),
        (OWN, 4096, None, "dense_len"),
        (SparseConfig(use_nope=True), 32768, None, "use_nope"),
    ],
)
def test_sparse_that_cannot_run_is_an_error(
    tiny_config, sparse, context: int, obstacle: str | None, named: str
):
    with pytest.raises(ConfigError, match=named) as caught:
        resolve_attention(replace(tiny_config, sparse=sparse), "sparse", context=context, obstacle=obstacle)
    message = str(caught.value)
    assert message.endswith("use --attention dense.") and "\n" not in message


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"dense_len": -2}, "dense_len"),
        ({"dense_len": 1.5}, "dense_len"),
        ({"init_blocks": 65}, "init_blocks"),
        ({"init_blocks": -1}, "init_blocks"),
        ({"kernel_size": 24}, "kernel_size"),
        ({"block_size": 40}, "block_size"),
        ({"window_size": 2000}, "window_size"),
        ({"topk": True}, "topk"),
        ({"topk": 0}, "topk"),
    ],
)
def test_constants_that_contradict_each_other(changes: dict[str, int], named: str):
    with pytest.raises(ConfigError, match=named):
        SparseConfig(**changes)


def test_unknown_mode(tiny_config):
    with pytest.raises(ConfigError, match="sliding"):
        resolve_attention(tiny_config, "sliding", context=64)  # type: ignore[arg-type]


def test_the_mode_in_words():
    assert describe_attention(None) == "dense"
    assert describe_attention(SparseConfig()) == "sparse beyond 8192 tokens (up to 6144 tokens visible)"
    assert describe_attention(SparseConfig(dense_len=-1)).startswith("sparse (")


@pytest.mark.parametrize(
    ("selection", "exact_lse", "local", "dynamic"),
    [("paper", False, 32, 63), ("minicpm4", True, 33, 62), ("infllmv2", False, 33, 62)],
)
def test_whose_choice_of_blocks(tiny_config, selection, exact_lse: bool, local: int, dynamic: int):
    sparse = with_selection(tiny_config, selection).sparse
    assert (sparse.exact_lse, sparse.local_blocks, sparse.dynamic_blocks) == (exact_lse, local, dynamic)
    assert sparse.topk + sparse.local_blocks == 96  # all of them read 6144 tokens
    own = replace(tiny_config, sparse=replace(OWN, exact_lse=True))
    assert with_selection(own, selection).sparse == replace(
        OWN, exact_lse=exact_lse, window_size=64 * local, topk=32 + 32 - local
    )
    assert with_selection(own, None) is own


def test_a_selection_asks_for_sparse_attention():
    assert asked_attention("auto", "minicpm4") == asked_attention("sparse", "paper") == "sparse"
    assert (asked_attention("auto", None), asked_attention("dense", None)) == ("auto", "dense")
    with pytest.raises(ConfigError, match=r"selection 'minicpm4' .* dense attention was asked for"):
        asked_attention("dense", "minicpm4")
