"""LongRoPE's two regimes against transformers, which changes between them by the length of a sequence.

Also that nothing which one regime has computed is found in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.config import RopeConfig
from edge.config.rope_regime import with_regime
from edge.engine.prefix_cache import PrefixCache
from edge.engine.prefix_files import LEAST_IN_FILE
from edge.engine.scheduler import Scheduler
from edge.engine.session import Session
from edge.errors import ConfigError, EdgeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import Executor, StoresCaches, shares_rows
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from tests.export.tiny import byte_tokenizer_files
from tests.steps import forward

ORIGINAL, PUBLISHED = 32, 128
SHORT, LONG = [1 + i / 8 for i in range(16)], [3 + 2.0 * i for i in range(16)]
TOKENS = np.arange(PUBLISHED, dtype=np.int32) * 7 % 264
EXACT = 5e-5  # of the truth's standard deviation, as in the table of tolerances


def network(kind: str, short: list[float], long: list[float]) -> Any:
    """A random network of transformers whose weights float16 has exactly; its attention factor is not 1."""
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=264,
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=PUBLISHED,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={**rope, "original_max_position_embeddings": ORIGINAL},
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_((parameter + torch.randn_like(parameter) * 0.1).half().float())
    return model


@pytest.fixture(scope="module", params=["Llama", "Phi3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The network from its Hugging Face folder, its matrices as float16."""
    folder = tmp_path_factory.mktemp("regimes")
    network(kind, SHORT, LONG).save_pretrained(folder / "hf")
    for name, data in byte_tokenizer_files().items():
        (folder / "hf" / name).write_bytes(data)
    convert(HuggingFaceCheckpoint(folder / "hf"), folder / "bundle")
    return Bundle.open(folder / "bundle")


@pytest.fixture
def opened(bundle: Bundle) -> Callable[..., Executor]:
    """`opened(regime, context=PUBLISHED, executor="native")`: in exact arithmetic."""
    made: list[Executor] = []

    def one(regime: Any, context: int = PUBLISHED, executor: str = "native") -> Executor:
        exact: Any = {"activations": "float32", "kv_type": "float32"} if executor == "native" else {}
        options = RunOptions(executor=executor, context=context, rope_regime=regime, threads=1, **exact)
        made.append(open_executor(bundle, options))
        return made[-1]

    yield one  # type: ignore[misc]
    for executor in made:
        executor.close()


def logits(executor: Executor, count: int) -> np.ndarray:
    """Of the first tokens, in two steps as a prompt and its answer come."""
    cache, split = executor.new_cache(), count // 2
    steps = [
        forward(executor, cache, tokens, logits="all") for tokens in (TOKENS[:split], TOKENS[split:count])
    ]
    return np.concatenate([step.logits for step in steps])


def error(found: np.ndarray, model: Any) -> float:
    truth = model(torch.from_numpy(TOKENS[: len(found)]).long()[None]).logits[0].numpy()
    return float(np.abs(found - truth).max() / truth.std())


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_each_regime_is_upstreams_at_the_lengths_where_it_has_that(
    kind: str, opened: Callable[..., Executor], executor: str
) -> None:
    """Short up to the original length, long beyond, whatever context a run was opened with."""
    model = network(kind, SHORT, LONG)
    for regime, context, count in (
        ("short", PUBLISHED, ORIGINAL),
        ("short", ORIGINAL, ORIGINAL),
        ("auto", ORIGINAL, ORIGINAL),
        ("long", PUBLISHED, ORIGINAL + 1),
        ("long", PUBLISHED, PUBLISHED),
        ("auto", PUBLISHED, PUBLISHED),
    ):
        found = error(logits(opened(regime, context, executor), count), model)
        assert found < EXACT, (regime, context, count, found)
    # They are two: within the original length upstream never computes what the long regime gives.
    assert error(logits(opened("long", PUBLISHED, executor), ORIGINAL), model) > 0.05
    assert error(logits(opened("short", PUBLISHED, executor), PUBLISHED), model) > 0.05


def test_a_regime_holds_for_every_length(kind: str, opened: Callable[..., Executor]) -> None:
    """Also where upstream has the other one: as if its two lists were the same."""
    for regime, factors in (("short", SHORT), ("long", LONG)):
        model = network(kind, factors, factors)
        for count in (ORIGINAL // 2, PUBLISHED):
            assert error(logits(opened(regime), count), model) < EXACT, (regime, count)
    model = network(kind, LONG, LONG)
    assert error(logits(opened("long", ORIGINAL), ORIGINAL), model) < EXACT


def test_only_longrope_has_regimes(make_bundle: Any, minicpm: Any, bundle: Bundle) -> None:
    plain = make_bundle(minicpm())
    for regime in ("short", "long"):
        with pytest.raises(
            ConfigError, match=rf"no {regime} regime .*longrope.* rope_type is default; leave it"
        ):
            open_executor(plain, RunOptions(rope_regime=regime))  # type: ignore[arg-type]
    with pytest.raises(EdgeError, match="rope_regime"):
        RunOptions(rope_regime="longest")  # type: ignore[arg-type]
    open_executor(plain, RunOptions(rope_regime="auto", threads=1)).close()
    asked = with_regime(bundle.config, "short")
    assert with_regime(asked, "auto") == asked and with_regime(asked, "long") == with_regime(
        bundle.config, "long"
    )
    assert type(bundle.config).from_json(asked.to_json()) == asked
    assert "regime" not in bundle.config.to_json()["rope"]  # bundles that older programs read


def test_what_identifies_a_cache(opened: Callable[..., Executor]) -> None:
    """Asked for or chosen by the context, a regime is the same; the two have nothing in common."""
    short, long, chosen, within = (
        opened(regime, context).cache_identity  # type: ignore[attr-defined]
        for regime, context in (("short", 128), ("long", 128), ("auto", 128), ("auto", ORIGINAL))
    )
    assert long == chosen and short == within
    assert {name for name in short if short[name] != long[name]} == {"rope"}


def test_saved_caches_belong_to_their_regime(opened: Callable[..., Executor], tmp_path: Path) -> None:
    path = tmp_path / "session.kv"
    first = Session(opened("long"))
    first.prefill(TOKENS[:40])
    first.save(path)
    again = Session(opened("auto"))
    again.load(path)
    assert list(again.tokens) == list(TOKENS[:40])
    for regime, context in (("short", PUBLISHED), ("auto", ORIGINAL)):
        other = Session(opened(regime, context))
        with pytest.raises(
            EdgeError, match=r"written with another --context, --rope-regime or --rope-override"
        ):
            other.load(path)
        assert len(other.tokens) == 0


def test_prefixes_are_found_in_their_own_regime_only(minicpm: Any, make_bundle: Any, tmp_path: Path) -> None:
    """In files that runs of both regimes share a folder for; in memory a run sees only its own."""
    lists = {
        "short_factor": tuple(1 + i / 8 for i in range(32)),
        "long_factor": tuple(2.0 + i for i in range(32)),
    }
    rope = RopeConfig("longrope", original_max_position_embeddings=64, **lists)
    model = make_bundle(minicpm(rope=rope, max_position_embeddings=4096))

    def one(regime: Any) -> Any:
        return open_executor(model, RunOptions(threads=1, context=2048, rope_regime=regime))

    tokens = np.random.default_rng(1).integers(0, 77, LEAST_IN_FILE + 50).astype(np.int32)
    writer = one("short")
    prefixes = PrefixCache(writer, 0, tmp_path)
    session = Session(writer)
    session.prefill(tokens)
    prefixes.put(session.tokens, session._cache)
    prefixes.close()
    assert len(list(tmp_path.glob("*.kv"))) == 1
    for regime, found in (("short", len(tokens) - 1), ("long", 0), ("auto", 0)):
        executor = one(regime)
        kept = PrefixCache(executor, 1 << 40, tmp_path)
        session = Session(executor, Scheduler(executor, kept))
        last = session.prefill(tokens)
        assert session.reused_tokens == found, regime
        np.testing.assert_array_equal(last, Session(executor).prefill(tokens))
        executor.close()
    writer.close()


def test_the_reference_keeps_no_prefixes(opened: Callable[..., Executor]) -> None:
    executor = opened("short", executor="torch")
    assert not shares_rows(executor) and not isinstance(executor, StoresCaches)
