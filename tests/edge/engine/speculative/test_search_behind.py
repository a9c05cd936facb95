"""Searches for the next tree right behind the pass before it, on a thread of its pool or in its call."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.synthetic_draft import draft_shape
from edge.config.tensors import HEAD
from edge.engine.speculative.eagle import Eagle, EagleDrafter
from edge.engine.speculative.speculation import Speculation
from edge.errors import NativeError
from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.quant.scheme import QuantScheme
from edge.runtime import Model
from tests.draft_story import RICH, Story
from tests.planted import FreeRows
from tests.random_draft import write_draft

ROOT = Path(__file__).resolve().parents[4]
KINDS = ["eagle2", "eagle3", "mtp", "dspark"]
ALL = RICH._replace(least_chance=1e-6)  # random networks think little of their guesses


@pytest.fixture
def opened(make_bundle, tiny_config, tmp_path) -> Iterator[Callable[..., tuple[NativeExecutor, Eagle]]]:
    """`opened(kind, threads)`: a tiny model with a draft of random weights."""
    executors = []

    def make(kind: str, threads: int = 2) -> tuple[NativeExecutor, Eagle]:
        bundle = make_bundle(replace(tiny_config, max_position_embeddings=256, scale_emb=12.0))
        options = RunOptions(threads=threads, activations="float32", kv_type="float32", max_batch=128)
        executor = open_executor(bundle, options)
        assert isinstance(executor, NativeExecutor)
        executors.append(executor)
        config, ids = draft_shape(bundle.config, kind), None
        if kind == "eagle3":
            ids = np.arange(60, dtype=np.int32)
            config = config.with_head(len(ids))
        files = write_draft(tmp_path / "draft", bundle, config, token_ids=ids)
        return executor, Eagle(executor.open_draft(files))

    yield make
    for executor in executors:
        executor.close()


def same_as_fresh(story: Story, root: int) -> None:
    """The tree is that of a drafter which sees the sequence for the first time."""
    tree = story.propose(root, ALL)
    wanted = story.fresh().propose(root, ALL)
    assert len(tree) == ALL.rows
    np.testing.assert_array_equal(tree.tokens, wanted.tokens)
    np.testing.assert_array_equal(tree.parents, wanted.parents)


class Searching:
    """Counts the searches of a network that are not made behind a pass."""

    def __init__(self, eagle: Eagle, monkeypatch: Any) -> None:
        self.count, run = 0, eagle.network.run

        def counted(*arguments: Any) -> Any:
            self.count += 1
            return run(*arguments)

        monkeypatch.setattr(eagle.network, "run", counted)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_they_find_what_one_made_later_finds(opened, kind, threads, monkeypatch):
    """Passes with right guesses and wrong ones, answers that end before what was drawn, cuts, prompts."""
    executor, eagle = opened(kind, threads)
    story, rng = Story(executor, eagle), np.random.default_rng(threads)
    story.go_on(rng.integers(0, 77, 9).tolist())
    root = 5
    story.propose(root, ALL)
    for turn in range(24):
        right, wrong = int(rng.integers(0, 4)), int(rng.integers(0, 3))
        left = int(rng.integers(0, right + 1)) if turn % 5 == 4 else 0
        root = story.draw(root, right, wrong, left)
        if turn % 6 == 5:
            story.cut(len(story.tokens) - int(rng.integers(1, 4)))
            root = 7
        if turn % 8 == 7:
            story.go_on(rng.integers(0, 77, int(rng.integers(1, 20))).tolist())
        same_as_fresh(story, root)
    searching = Searching(eagle, monkeypatch)
    for _ in range(5):
        root = story.draw(root, 2, 1)
        assert len(story.propose(root, ALL)) == ALL.rows
    assert searching.count == 0


def test_one_behind_another_root_is_of_no_use(opened, monkeypatch):
    """The rows hold, but the last one is made again."""
    executor, eagle = opened("eagle2")
    story = Story(executor, eagle)
    story.go_on([3, 9, 11])
    story.propose(5, ALL)
    root = story.draw(5, 1)
    searching = Searching(eagle, monkeypatch)
    same_as_fresh(story, root ^ 1)
    assert searching.count == 2  # its own, and the fresh one


def test_what_disturbs_one_waits_for_it(opened):
    """Weights that leave memory, rows of its cache that go, caches and drafts that are gone."""
    executor, eagle = opened("eagle2")
    story, tensor = Story(executor, eagle), "model.layers.0.mlp.down_proj.weight"
    story.go_on([3, 9, 11])
    story.propose(5, ALL)
    root = story.draw(5, 1)
    executor.rest()
    same_as_fresh(story, root)
    root = story.draw(root, 1)
    values = np.random.default_rng(0).standard_normal(executor._tensors[tensor].shape).astype(np.float32)
    executor.update({tensor: values})
    assert len(story.propose(root, ALL)) == ALL.rows
    story.draw(root, 1)
    story.cut(2)
    story.go_on([4])
    assert len(story.propose(6, ALL)) == ALL.rows
    for _ in range(20):
        other = Story(executor, eagle)
        other.go_on([3, 9])
        other.propose(5, ALL)
        other.draw(5, 2)
        del other
    gc.collect()
    story.draw(6, 1)
    executor.close()
    with pytest.raises(NativeError, match="closed"):
        story.propose(7, ALL)


def test_a_draft_that_is_closed_before_the_pass_disturbs_nothing(opened, monkeypatch):
    executor, eagle = opened("eagle2")
    story, plain = Story(executor, eagle), Story(executor, eagle)
    for each in (story, plain):
        each.go_on([3, 9, 11])
    story.propose(5, ALL)
    search_behind = story.drafter.search_behind

    def closed(*arguments: Any) -> Any:
        search = search_behind(*arguments)
        assert search is not None
        eagle.network.close()
        return search

    monkeypatch.setattr(story.drafter, "search_behind", closed)
    assert story.draw(5, 2) == plain.draw(5, 2)
    with pytest.raises(NativeError, match="closed"):
        story.propose(7, ALL)


def test_what_is_dropped_is_gone_at_once(make_bundle, tiny_config, tmp_path):
    """A sequence and its caches, then the model, while a search may be under way; nothing waits for the
    garbage collector.
    """
    bundle = make_bundle(replace(tiny_config, max_position_embeddings=256))
    executor = open_executor(bundle, RunOptions(threads=2))
    files = write_draft(tmp_path / "draft", bundle, draft_shape(bundle.config))
    eagle = Eagle(executor.open_draft(files))
    gc.collect()
    gc.disable()
    try:
        story = Story(executor, eagle)
        story.go_on([3, 9, 11])
        story.propose(5, ALL)
        story.draw(story.draw(5, 1), 1)
        seen = weakref.ref(story.cache), weakref.ref(executor)
        del story
        assert seen[0]() is None
        executor.wait_for_weights()
        other = Story(executor, eagle)
        other.go_on([4, 5])
        other.propose(5, ALL)
        other.draw(5, 1)
        del other, eagle, executor
        assert seen[1]() is None
    finally:
        gc.enable()


def test_a_process_that_ends_waits_for_what_is_under_way(make_bundle, tiny_config, tmp_path):
    """What the search uses goes in any order then."""
    bundle = make_bundle(replace(tiny_config, max_position_embeddings=256))
    files = write_draft(tmp_path / "draft", bundle, draft_shape(bundle.config, num_hidden_layers=4))
    code = f"""
from edge.engine.speculative.eagle import Eagle
from edge.executors.opening import open_executor
from edge.executors.native.searches import Searches
from edge.executors.options import RunOptions
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles
from tests.draft_story import RICH, Story
wait = Searches.wait
Searches.wait = lambda searches: (print("waits"), wait(searches))
executor = open_executor(Bundle.open({str(bundle.path)!r}), RunOptions(threads=2))
story = Story(executor, Eagle(executor.open_draft(DraftFiles.open({str(files.path)!r}))))
story.go_on(list(range(20)))
story.propose(5, RICH._replace(least_chance=1e-6))
story.draw(5, 1)
print("the end")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "waits" in done.stdout.partition("the end")[2]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_several_sequences(make_bundle, tiny_config, tmp_path, monkeypatch, kind, threads):
    """Each has its search behind every pass, and its tokens are those without; one runs into the context."""

    def few(
        tensor: str, weights: Any
    ) -> None:  # that the model says, so that a random draft is right at times
        if tensor == HEAD:
            weights[8:] = 0
            weights[:8] *= 3

    shape = replace(tiny_config, vocab_size=120, num_hidden_layers=7, max_position_embeddings=96)
    bundle = make_bundle(shape, QuantScheme("f16"), change=few, tokenizer=True)
    config, ids = draft_shape(bundle.config, kind), None
    if kind == "eagle3":
        config, ids = config.with_head(40), np.arange(40, dtype=np.int32)
    files = write_draft(tmp_path / "draft", bundle, config, token_ids=ids)
    with Model(bundle, open_executor(bundle, RunOptions(threads=threads)), name="few") as model:
        eagle = Eagle(model.executor.open_draft(files))
        monkeypatch.setattr(eagle, "_cost", lambda step, token_seconds: 0.0)
        model.scheduler.costs = FreeRows()
        prompts = [list(range(5 + n, 20 + 20 * n)) for n in range(4)]  # the last has room for 16 tokens
        settings: dict[str, Any] = {"temperature": 0.8, "seed": 3, "max_new_tokens": 40, "ignore_eos": True}
        alone = [model.session(speculate=False) for _ in prompts]
        plain = [
            model.complete(prompt, session=session, **settings)
            for prompt, session in zip(prompts, alone, strict=True)
        ]
        model.scheduler.speculation = Speculation(kind, lambda: lambda: EagleDrafter(eagle))
        searching = Searching(eagle, monkeypatch)
        streams = [model.stream(prompt, **settings) for prompt in prompts]
        left = list(streams)
        while left:
            left = [stream for stream in left if next(stream, None) is not None]
        for stream, wanted in zip(streams, plain, strict=True):
            found = stream.result
            assert (found.tokens, found.stop_reason) == (wanted.tokens, wanted.stop_reason)
        counted = [stream.result.speculation for stream in streams]
        assert all(each.drafted > 0 and 0 < each.draft_seconds < each.seconds for each in counted)
        assert sum(each.accepted for each in counted) > 0
        assert searching.count < sum(each.passes for each in counted) / 4
