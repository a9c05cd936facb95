"""The C border of drafts, given what Python would never give it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.synthetic_draft import draft_shape
from edge.config.draft import draft_tensors
from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.native.draft import ROLES, DraftShape, DraftStep, draft_library
from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.draft.files import DraftFiles
from edge.quant.scheme import QuantScheme
from tests.random_draft import write_draft

NAN = float("nan")
HEAD_ROWS = 48


@pytest.fixture(scope="module")
def executor(minicpm, make_bundle) -> Iterator[NativeExecutor]:
    bundle = make_bundle(minicpm(max_position_embeddings=300), QuantScheme("int4", 32))
    opened = open_executor(bundle, RunOptions(threads=2, max_batch=16))
    opened.files = bundle
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def written(executor, tmp_path_factory) -> Callable[..., DraftFiles]:
    """`written(**fields)`: a draft of that shape."""

    def write(**fields: Any) -> DraftFiles:
        config = draft_shape(executor.config, fc_bias=True, head_rows=HEAD_ROWS, **fields)
        ids = np.arange(HEAD_ROWS, dtype=np.int32)[::-1] * 2
        folder = tmp_path_factory.mktemp("draft") / "draft"
        return write_draft(folder, executor.files, config, QuantScheme("int4", 32), ids)

    return write


@pytest.fixture(scope="module")
def files(written) -> DraftFiles:
    return written(num_hidden_layers=2)


@pytest.fixture(scope="module")
def tapping(written) -> DraftFiles:
    return written(kind="eagle3")


@pytest.fixture(scope="module")
def block(executor, tmp_path_factory) -> DraftFiles:
    config = draft_shape(executor.config, "dspark", num_hidden_layers=2, markov_rank=32, head_rows=HEAD_ROWS)
    ids = np.arange(HEAD_ROWS, dtype=np.int32)
    folder = tmp_path_factory.mktemp("block") / "draft"
    return write_draft(folder, executor.files, config, QuantScheme("int4", 32), ids)


@pytest.fixture
def create(executor, files) -> Callable[..., ctypes.c_void_p]:
    """`create(change)`: a draft after `change(shape, weights)`; raises what libedge says."""
    made = []

    def make(
        change: Callable[[DraftShape, list[native.Weight]], object] = lambda *_: None,
        files: DraftFiles = files,
    ) -> ctypes.c_void_p:
        config, infos = files.config, files.tensors
        weights = [
            native.Weight(
                role=ROLES[name] if tensor.native is None else tensor.native,
                layer=tensor.layer or 0,
                matrix=native.matrix(
                    infos[name].scheme.packing,
                    infos[name].rows,
                    infos[name].columns,
                    int(files.data(name).ctypes.data),
                ),
            )
            for name, tensor in draft_tensors(config).items()
        ]
        frequencies = np.ones(config.head_dim // 2, np.float32)
        ids = files.token_ids.copy()
        shape = DraftShape(
            size=ctypes.sizeof(DraftShape),
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            head_rows=HEAD_ROWS,
            rms_norm_eps=1e-5,
            residual_scale=1.0,
            rope_scale=1.0,
            inverse_frequency=frequencies.ctypes.data,
            head_tokens=ids.ctypes.data,
            taps=len(config.taps),
            logit_scale=1.0,
            block_size=config.block_size,
            mask_token=config.mask_token,
            anchor_tells=config.anchor_tells,
            markov_rank=config.markov_rank,
            confidence=config.confidence,
        )
        shape.arrays = frequencies, ids  # as long as the shape
        change(shape, weights)
        handle = ctypes.c_void_p()
        native.check(
            draft_library().edge_draft_create(
                executor.handle,
                ctypes.byref(shape),
                (native.Weight * len(weights))(*weights),
                len(weights),
                ctypes.byref(handle),
            )
        )
        made.append(handle)
        return handle

    yield make
    for handle in made:
        draft_library().edge_draft_destroy(handle)


def of_role(weights: list[native.Weight], role: int) -> native.Weight:
    return [weight for weight in weights if weight.role == role][-1]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("size", 8, "edge_draft_config has another size"),
        ("intermediate_size", 0, "intermediate_size is 0"),
        ("layers", 0, "layers is 0"),
        ("layers", 4097, "4097 layers are beyond what is possible"),
        ("kv_heads", 3, r"heads \(8\) must be a multiple of kv_heads \(3\)"),
        ("head_dim", 40, "head_dim is 40; it must be a multiple of 16"),
        ("window", -1, "window is -1"),
        ("kv_type", 5, "Unknown KV type 5"),
        ("rms_norm_eps", 0.0, "rms_norm_eps must be positive"),
        ("rms_norm_eps", NAN, "not finite|must be positive and finite"),
        ("residual_scale", NAN, "not finite"),
        ("rope_scale", float("inf"), "not finite"),
        ("logit_scale", NAN, "not finite"),
        ("taps", -1, "A draft of 2 layers can't have -1 taps"),
        ("taps", 1, "A draft of 2 layers can't have 1 taps"),
        ("head_rows", -1, "own head has 1 to 203 rows"),
        ("head_rows", 0, "own head has 1 to 203 rows"),
        ("head_rows", 204, "own head has 1 to 203 rows"),
        ("head_tokens", None, "own head has 1 to 203 rows"),
    ],
)
def test_a_shape_is_checked(create, field: str, value: Any, sentence: str):
    with pytest.raises(NativeError, match=sentence):
        create(lambda shape, weights: setattr(shape, field, value))


@pytest.mark.parametrize(
    ("token", "sentence"), [(203, "row 7 has 203"), (-1, "row 7 has -1"), (94, "row 7 has 94")]
)
def test_tokens_of_a_head_are_checked(create, token: int, sentence: str):
    """Within the vocabulary, each once."""

    def change(shape: DraftShape, weights: list[native.Weight]) -> None:
        shape.arrays[1][7] = token

    with pytest.raises(NativeError, match=sentence):
        create(change)


def test_rotary_frequencies_are_checked(create):
    def change(shape: DraftShape, weights: list[native.Weight]) -> None:
        shape.arrays[0][-1] = NAN

    with pytest.raises(NativeError, match="rotary frequency is not finite"):
        create(change)


@pytest.mark.parametrize("role", [1, *range(3, 13)])
def test_a_weight_that_is_missing(create, role: int):
    def drop(shape: DraftShape, weights: list[native.Weight]) -> None:
        weights.remove(of_role(weights, role))

    with pytest.raises(NativeError, match="is missing"):
        create(drop)


def test_weights_that_may_be_missing(create):
    """The bias, the norms of the inputs together, and the first layer's attention norm."""

    def drop(*roles: int) -> Callable[..., None]:
        def change(shape: DraftShape, weights: list[native.Weight]) -> None:
            for role in roles:
                weights.remove(next(weight for weight in weights if weight.role == role))

        return change

    create(drop(13))
    create(drop(14, 15))
    create(drop(3))
    for role in (14, 15):
        with pytest.raises(NativeError, match="both norms of its inputs, or none"):
            create(drop(role))


@pytest.mark.parametrize("role", [1, *range(4, 13), 14, 15])
def test_a_weight_that_a_draft_with_taps_needs(create, tapping, role: int):
    def drop(shape: DraftShape, weights: list[native.Weight]) -> None:
        weights.remove(of_role(weights, role))

    create(files=tapping)
    with pytest.raises(NativeError, match=r"is missing|both norms of its inputs, or none"):
        create(drop, tapping)


def test_what_a_draft_with_taps_reads(create, tapping):
    """As many hidden states as it says, through two norms and no third."""

    def widened(shape: DraftShape, weights: list[native.Weight]) -> None:
        shape.taps = 1

    def plain(shape: DraftShape, weights: list[native.Weight]) -> None:
        shape.taps = 0

    def normed(shape: DraftShape, weights: list[native.Weight]) -> None:
        of_role(weights, 2).role = 3

    def without_norms(shape: DraftShape, weights: list[native.Weight]) -> None:
        weights[:] = [weight for weight in weights if weight.role not in (14, 15)]

    for change, sentence in (
        (widened, "fc of a draft: expected 144 x 144, got 144 x 288"),
        (plain, "q_proj of a draft's layer 0: expected 512 x 144, got 512 x 288"),
        (normed, "no weight of role 3"),
        (without_norms, "A draft with taps has norms of what its attention reads"),
    ):
        with pytest.raises(NativeError, match=sentence):
            create(change, tapping)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("block_size", -1, "block_size is -1; a block has 1 to 64 rows"),
        ("block_size", 65, "block_size is 65; a block has 1 to 64 rows"),
        ("block_size", 0, "Only a draft with a block_size has a Markov head or a confidence head"),
        ("mask_token", -1, "mask_token is -1, outside the vocabulary of 203"),
        ("mask_token", 203, "mask_token is 203, outside the vocabulary of 203"),
        ("markov_rank", -1, "markov_rank is -1; it must be 0 to 4096"),
        ("markov_rank", 4097, "markov_rank is 4097; it must be 0 to 4096"),
        ("markov_rank", 16, "token before of a draft: expected 203 x 16, got 203 x 32"),
        ("markov_rank", 0, "no weight of role 21"),
        ("confidence", 0, "no weight of role 23"),
        ("taps", 0, "A block draft has 1 to 2 taps, not 0"),
        ("taps", 3, "can't have 3 taps"),
    ],
)
def test_a_block_is_checked(create, block, field: str, value: int, sentence: str):
    with pytest.raises(NativeError, match=sentence):
        create(lambda shape, weights: setattr(shape, field, value), block)


@pytest.mark.parametrize("role", [*range(1, 13), 15, 21, 22, 23, 24])
def test_a_weight_that_a_block_draft_needs(create, block, role: int):
    def drop(shape: DraftShape, weights: list[native.Weight]) -> None:
        weights.remove(of_role(weights, role))

    with pytest.raises(NativeError, match="is missing"):
        create(drop, block)


@pytest.mark.parametrize("role", [13, 14, 16])
def test_a_weight_that_no_block_draft_has(create, block, role: int):
    def rename(shape: DraftShape, weights: list[native.Weight]) -> None:
        of_role(weights, 15).role = role

    with pytest.raises(NativeError, match=f"no weight of role {role}"):
        create(rename, block)


def test_a_call_of_a_block_draft(create, block):
    """Steps beyond the block are not made."""
    call = Call(create(files=block), 2)
    call.step.steps, call.step.branches = 20, 1
    call.run()
    assert (call.length, call.step.node_count, call.step.steps_run) == (5, 7, 7)
    assert set(call.nodes[0][:7]) <= set(range(HEAD_ROWS))
    call.hidden[4, 287] = NAN
    call.step.position = 5
    with pytest.raises(NativeError, match="A hidden state for the draft is not finite"):
        call.run()
    assert call.length == 5
    native.library().edge_cache_destroy(call.cache)


@pytest.mark.parametrize(
    ("role", "change", "sentence"),
    [
        (12, {"role": 16}, "no weight of role 16"),
        (12, {"role": -1}, "no weight of role -1"),
        (12, {"role": 0}, "no weight of role 0"),
        (12, {"layer": 1}, "fc of a draft: layer 1 does not exist"),
        (4, {"layer": 2}, "q_proj of a draft: layer 2 does not exist"),
        (4, {"layer": -1}, "layer -1 does not exist"),
        (4, {"layer": 0}, "q_proj of a draft's layer 0 is given twice"),
    ],
)
def test_where_a_weight_belongs_is_checked(create, role: int, change: dict[str, int], sentence: str):
    def misplace(shape: DraftShape, weights: list[native.Weight]) -> None:
        for name, value in change.items():
            setattr(of_role(weights, role), name, value)

    with pytest.raises(NativeError, match=sentence):
        create(misplace)


@pytest.mark.parametrize(
    ("role", "other", "sentence"),
    [
        (12, 4, "fc of a draft: expected 144 x 288, got 512 x 144"),
        (1, 12, "head of a draft: expected 48 x 144, got 144 x 288"),
        (13, 12, "bias of fc of a draft: expected 1 x 144 float32"),
        (14, 5, "norm of embeddings of a draft: expected 1 x 144 float32"),
        (5, 14, "k_proj of a draft's layer 1: matrices can't be float32"),
    ],
)
def test_a_matrix_is_checked(create, role: int, other: int, sentence: str):
    def exchange(shape: DraftShape, weights: list[native.Weight]) -> None:
        of_role(weights, role).matrix = of_role(weights, other).matrix

    with pytest.raises(NativeError, match=sentence):
        create(exchange)


def test_a_head_without_rows_of_its_own(create):
    def whole(shape: DraftShape, weights: list[native.Weight]) -> None:
        shape.head_rows, shape.head_tokens = 0, None

    with pytest.raises(NativeError, match="no weight of role 1"):
        create(whole)


class Call:
    """A call that is right until something of it is changed."""

    def __init__(self, handle: ctypes.c_void_p, taps: int = 1) -> None:
        self.handle, self.cache = handle, ctypes.c_void_p()
        native.check(draft_library().edge_draft_cache_create(handle, ctypes.byref(self.cache)))
        self.tokens = np.arange(5, dtype=np.int32)
        self.hidden = np.ones((5, taps * 144), np.float32)
        self.nodes = np.zeros((3, 64), np.int32)
        tokens, parents, logprobs = self.nodes
        self.step = DraftStep(
            size=ctypes.sizeof(DraftStep),
            n=5,
            cache=self.cache,
            tokens=self.tokens.ctypes.data,
            hidden=self.hidden.ctypes.data,
            steps=2,
            branches=4,
            least_logprob=float("-inf"),
            node_room=20,
            node_tokens=tokens.ctypes.data,
            node_parents=parents.ctypes.data,
            node_logprobs=logprobs.ctypes.data,
        )

    def run(self) -> None:
        native.check(draft_library().edge_draft_run(self.handle, ctypes.byref(self.step)))

    @property
    def length(self) -> int:
        return int(native.library().edge_cache_length(self.cache))


@pytest.fixture
def call(create) -> Iterator[Call]:
    made = Call(create())
    yield made
    native.library().edge_cache_destroy(made.cache)


def test_a_call_as_it_is(call):
    call.run()
    assert (call.length, call.step.node_count, call.step.steps_run) == (5, 20, 2)
    assert set(call.nodes[0][:20]) <= set(range(0, 96, 2))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("size", 8, "edge_draft_step has another size"),
        ("n", 0, "0 rows after 0"),
        ("n", -3, "-3 rows after 0"),
        ("n", 301, "do not fit the context of 300"),
        ("n", 2**31 - 1, "do not fit the context of 300"),
        ("cache", None, "an argument is missing"),
        ("tokens", None, "an argument is missing"),
        ("hidden", None, "an argument is missing"),
        ("position", -1, "from position -1 on"),
        ("position", 296, "from position 296 on do not fit"),
        ("position", 2**62, "do not fit the context"),
        ("steps", -1, "takes 0 to 64 steps"),
        ("steps", 65, "takes 0 to 64 steps"),
        ("branches", 0, "1 to 16 branches, got 2 with 0"),
        ("branches", 17, "1 to 16 branches, got 2 with 17"),
        ("node_room", 19, "try 20 tokens: give that much room"),
        ("node_room", -1, "give that much room"),
        ("node_tokens", None, "give that much room"),
        ("node_parents", None, "give that much room"),
        ("node_logprobs", None, "give that much room"),
    ],
)
def test_a_call_is_checked(call, field: str, value: Any, sentence: str):
    setattr(call.step, field, value)
    with pytest.raises(NativeError.__mro__[1], match=sentence):
        call.run()
    assert (call.length, call.step.node_count) == (0, 0)
    assert not call.nodes.any()


@pytest.mark.parametrize("token", [-1, 203])
def test_tokens_are_checked(call, token: int):
    call.tokens[4] = token
    with pytest.raises(Exception, match=f"Token id {token} at place 4 is outside the vocabulary of 203"):
        call.run()
    assert call.length == 0


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_hidden_states_are_checked(call, value: float):
    call.hidden[4, 143] = value
    with pytest.raises(NativeError, match="A hidden state for the draft is not finite"):
        call.run()
    assert call.length == 0


def test_caches_stay_with_their_owner(call, create, executor):
    """The target's caches are none of a draft's, nor the other way round, nor those of another draft."""
    other, targets = Call(create()), executor.new_cache()
    own = call.step.cache
    for cache in (targets.handle, other.cache):
        call.step.cache = cache
        with pytest.raises(NativeError, match="belongs to another draft or model"):
            call.run()
    step = native.Step(
        size=ctypes.sizeof(native.Step), n=1, cache=own, tokens=call.tokens.ctypes.data, logits_count=0
    )
    with pytest.raises(NativeError, match="belongs to a model of another shape"):
        native.check(native.library().edge_forward(executor.handle, ctypes.byref(step), 1, None))
    native.library().edge_cache_destroy(other.cache)


def test_odd_least_values(call):
    """Whatever they are, they only choose how far the tree grows."""
    gains = np.array([NAN, NAN], np.float32)
    call.step.least_gains = gains.ctypes.data
    call.run()
    assert call.step.steps_run == 1  # nothing is at least NaN
    for least in (NAN, float("inf"), 1e30):
        call.step.position += 5
        call.step.least_logprob, call.step.least_gains = least, None
        call.run()
        assert call.step.steps_run == 1
    call.step.position += 5
    call.step.rows, call.step.least_logprob = -7, float("-inf")
    call.run()
    assert call.step.steps_run == 2


def test_arguments_that_are_missing(executor, create):
    library, handle, shape = draft_library(), create(), DraftShape(size=ctypes.sizeof(DraftShape))
    for status in (
        library.edge_draft_create(None, ctypes.byref(shape), None, 1, ctypes.byref(ctypes.c_void_p())),
        library.edge_draft_create(executor.handle, ctypes.byref(shape), None, 0, None),
        library.edge_draft_cache_create(None, ctypes.byref(ctypes.c_void_p())),
        library.edge_draft_cache_create(handle, None),
    ):
        with pytest.raises(NativeError, match="an argument is missing"):
            native.check(status)
    with pytest.raises(NativeError, match="another size"):
        native.check(library.edge_draft_create(executor.handle, None, None, 1, None))
    assert library.edge_draft_workspace_bytes(None) == library.edge_draft_cache_bytes(None) == 0
    assert library.edge_draft_workspace_bytes(handle) > 0
    library.edge_draft_destroy(None)


def test_an_observer_is_in_the_middle_of_a_pass(executor, call):
    """A draft works in memory of its own, but with the threads of the model."""
    statuses = []
    executor.observe(
        lambda _: statuses.append(draft_library().edge_draft_run(call.handle, ctypes.byref(call.step)))
    )
    try:
        from tests.steps import forward

        forward(executor, executor.new_cache(), [1, 2])
    finally:
        executor.observe(None)
    assert set(statuses) == {1} and call.length == 0
