"""Answers that a draft learns from: those of the engine, with the states of the network."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edge.apps.cli.main import main
from edge.config.draft_names import public_name
from edge.errors import EdgeError
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles
from edge.hub.drafts import open_draft
from edge.model.draft import draft_from_files
from edge.model.network.draft import hidden_of
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme
from edge.runtime import Model, load
from edge.train.data.batch import IGNORED
from edge.train.data.errors import DataError
from edge.train.data.loader import Loader, LoaderPlan
from edge.train.data.shards import ShardFolder, States, write_shard
from edge.train.drafts.answers import Earlier, Prompts, Respondent, make_answers
from edge.train.drafts.options import AnswerOptions, state_layers
from tests.drafts import minicpm_target

Edge = Callable[..., tuple[int, str]]
PROMPTS = [f"{'abc' * (number % 5 + 1)}{number}" for number in range(11)]
OPTIONS = AnswerOptions(answer_tokens=24, prompt_tokens=64, answers_at_once=3, shard_prompts=4)


@pytest.fixture(scope="module")
def target(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle(minicpm_target(hidden_size=128, vocab_size=400), tokenizer=True)


@pytest.fixture(scope="module")
def model(target: Bundle) -> Iterator[Model]:
    exact = {"activations": "float32", "kv_type": "float32", "threads": 1}
    with load(target.path, speculate="off", prefix_memory=0, context=128, **exact) as opened:
        yield opened


@pytest.fixture(scope="module")
def answers(model: Model, tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    return make_answers(model, Prompts(PROMPTS), tmp_path_factory.mktemp("answers") / "a", OPTIONS)


def test_answers_are_the_models_own(model: Model, target: Bundle, answers: ShardFolder):
    decoder = reference_from_bundle(target)
    assert answers.documents == len(PROMPTS)
    assert answers.facts.state_width == 128
    answers.verify()
    greedy = sampled = 0
    for number, prompt in enumerate(PROMPTS):
        tokens, begin = answers.document(number).astype(np.int64), int(answers.begins[number])
        assert tokens[:begin].tolist() == model.tokenizer.encode(prompt)
        asked = {"temperature": 0.7 if number % 2 else 0.0, "seed": number, "max_new_tokens": 24}
        said = model.complete(prompt, **asked, repetition_penalty=1.0).tokens
        assert tokens[begin:].tolist() == list(said[: len(tokens) - begin])
        greedy, sampled = greedy + (number % 2 == 0), sampled + (number % 2)
        with torch.inference_mode():
            wanted = decoder.trunk(torch.from_numpy(tokens)).hidden
        found = torch.from_numpy(np.array(answers.states(number, 0, len(tokens)))).float()
        torch.testing.assert_close(found[:-1], wanted[:-1], rtol=2e-3, atol=2e-3)
        assert not found[-1].any()
    assert greedy and sampled


def test_what_was_ended_goes_on_where_it_was(model: Model, answers: ShardFolder, tmp_path: Path):
    """Of three shards the second is gone, as after a kill: it alone is made again, and is the same."""
    out = tmp_path / "answers"
    shutil.copytree(answers.path, out)
    shutil.rmtree(out / "shard-00001")
    (out / "index.json").unlink()
    kept = (out / "shard-00000" / "states.bin").stat().st_mtime_ns
    counts: list[tuple[int, int]] = []
    again = make_answers(
        model, Prompts(PROMPTS), out, replace(OPTIONS, answers_at_once=1), lambda *done: counts.append(done)
    )
    assert [each.tokens_sha256 for each in again.shards] == [each.tokens_sha256 for each in answers.shards]
    assert [each.states_sha256 for each in again.shards] == [each.states_sha256 for each in answers.shards]
    assert (out / "shard-00000" / "states.bin").stat().st_mtime_ns == kept
    assert [prompts for prompts, _ in counts] == [4, 8, 11]
    assert counts[-1][1] == answers.tokens


@pytest.mark.parametrize("changes", [{"first_seed": 1}, {"answer_tokens": 20}, {"sampled_at": 0.5}])
def test_other_options_are_refused(model: Model, answers: ShardFolder, changes: dict[str, Any]):
    with pytest.raises(DataError, match="has answers to other prompts"):
        make_answers(model, Prompts(PROMPTS), answers.path, replace(OPTIONS, **changes))


def test_long_prompts_are_left_out(model: Model, tmp_path: Path):
    made = make_answers(model, Prompts(["abc", "a" * 65, "b" * 200]), tmp_path / "a", OPTIONS)
    assert made.documents == 1


def test_a_row_of_the_loader_has_the_states_of_its_tokens(answers: ShardFolder):
    plan = LoaderPlan(rows=4, length=16, phases=((0, {"a": 1.0}),))
    loader = Loader({"a": answers}, plan)
    known = {}
    for number in range(answers.documents):
        tokens, begin = answers.document(number), int(answers.begins[number])
        states = answers.states(number, 0, len(tokens))
        for place, token in enumerate(tokens.tolist()):
            following = tokens[place + 1] if begin <= place + 1 < len(tokens) else IGNORED
            known[(token, states[place].tobytes())] = int(following)
    seen = 0
    for _ in range(3):
        batch = loader.next()
        for row in range(4):
            for place in range(16):
                key = (int(batch.tokens[row, place]), batch.states[row, place].numpy().tobytes())
                if batch.states[row, place].any():
                    assert known[key] == batch.targets[row, place]
                    seen += 1
    assert seen > 100


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Edge:
    """`edge(*arguments)`: exit code, and the last line of output or the errors."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edge", *map(str, arguments)])
        code = main()
        said = capsys.readouterr()
        return code, said.err if code else said.out.splitlines()[-1]

    return run


@pytest.mark.parametrize("kind", ["eagle3", "mtp", "dspark"])
def test_answers_are_read_again_for_other_kinds(
    model: Model, target: Bundle, answers: ShardFolder, tmp_path: Path, kind: str
):
    layers = state_layers(kind, target.config)
    made = make_answers(model, Earlier(answers), tmp_path / "a", replace(OPTIONS, kind=kind))
    assert made.facts.state_layers == layers and layers[-1] == target.config.num_hidden_layers - 1
    assert made.begins.tolist() == answers.begins.tolist()
    decoder = reference_from_bundle(target)
    for number in (0, 7):
        tokens = made.document(number)
        assert np.array_equal(tokens, answers.document(number))
        with torch.inference_mode():
            stream = decoder.trunk(torch.from_numpy(tokens.astype(np.int64))).stream
        found = torch.from_numpy(np.array(made.states(number, 0, len(tokens)))).float()
        wanted = torch.cat([stream[layer] for layer in layers], -1)
        torch.testing.assert_close(found[:-1], wanted[:-1], rtol=2e-3, atol=2e-3)


def test_some_answers_are_read_again(model: Model, answers: ShardFolder, tmp_path: Path):
    """A folder of some is not gone on with as one of all, nor as one of fewer."""
    made = make_answers(model, Earlier(answers, 6), tmp_path / "a", OPTIONS)
    assert made.documents == 6 and np.array_equal(made.document(5), answers.document(5))
    assert make_answers(model, Earlier(answers, 6), tmp_path / "a", OPTIONS).documents == 6
    assert len(Earlier(answers, 99)) == answers.documents
    for first in (None, 5):
        with pytest.raises(DataError, match="has answers to other prompts"):
            make_answers(model, Earlier(answers, first), tmp_path / "a", OPTIONS)


def test_an_answer_behind_which_nothing_follows_is_read_too(
    model: Model, answers: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The model may end at once behind the tokens that are read: then there are no states of another one."""
    run = Respondent._run

    def ends_at_once(self: Respondent, prompt: list[int], most: int, **sampled: Any) -> Any:
        _, states = run(self, prompt, most, **sampled)
        return (), states[: len(prompt)]

    monkeypatch.setattr(Respondent, "_run", ends_at_once)
    made = make_answers(model, Earlier(answers), tmp_path / "a", OPTIONS)
    made.verify()
    assert made.tokens == answers.tokens
    for number in range(made.documents):
        states = made.states(number, 0, int(made.lengths[number]))
        assert states[:-1].any(-1).all() and not states[-1].any()


def test_states_must_be_there_for_every_token(answers: ShardFolder, tmp_path: Path):
    states = States([1], [np.zeros((4, 128), np.float16)])
    with pytest.raises(DataError, match="Every token of a document must have hidden states"):
        write_shard(tmp_path, "shard-00000", "", [[1, 2, 3, 4, 5]], answers.facts, states)
    wild = States([1], [np.full((2, 128), np.inf, np.float16)])
    with pytest.raises(DataError, match="beyond float16's range"):
        write_shard(tmp_path, "shard-00000", "", [[1, 2]], answers.facts, wild)
    assert not (tmp_path / "shard-00000").exists()


SMALL = ("data.length=64", "data.rows=4", "schedule.warm_up=2", "evaluation.every=10", "evaluation.rows=8")


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("eagle2", None),
        ("eagle2", "int4-g32"),
        ("eagle3", None),
        ("mtp", "int4-g32"),
        ("dspark", "int4-g32"),
    ],
)
def test_from_answers_to_a_draft_that_guesses(
    target: Bundle, tmp_path: Path, edge: Edge, kind: str, scheme: str | None
):
    """The two commands; what was trained is opened, is what was rounded in training, and changes nothing."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 3), encoding="utf-8")
    prompts = (tmp_path / "prompts.txt", "--split", "line", "--kind", kind)
    places = ("--out", tmp_path / "answers", "--context", 128, "--answer-tokens", 24, "--json")
    code, said = edge("train", "answers", target.path, *prompts, *places)
    assert (code, json.loads(said)["answers"]) == (0, 33)
    changes = [*SMALL, "schedule.steps=20", "draft.rows=100"]
    changes += [f"quantization.scheme={scheme}"] if scheme else []
    sets = [part for change in changes for part in ("--set", change)]
    data = ("--kind", kind, "--answers", tmp_path / "answers", "--held-out", tmp_path / "answers")
    code, said = edge("train", "draft", target.path, *data, "--out", tmp_path / "run", *sets, "--json")
    assert (code, json.loads(said)["step"]) == (0, 20)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held_out = [line["held_out/answers"] for line in log if "held_out/answers" in line]
    assert held_out[-1] < held_out[0]
    draft = open_draft(tmp_path / "run" / "model", target)
    assert draft.config.head_rows == 100 and draft.config.kind == kind
    assert draft.config.input_norms != draft.config.is_block
    ids = draft.token_ids
    assert ids is not None and set(target.config.eos_token_ids) <= set(ids.tolist())
    if scheme is not None:
        name = "layers.0.mlp.up_proj.weight"
        tensor = draft.tensors[name]
        assert tensor.scheme == QuantScheme.from_name(scheme)
        rounded = dequantize(draft.data(name), tensor.scheme, tensor.rows, tensor.columns)
        stored = load_file(tmp_path / "run" / "model" / "model.safetensors")
        np.testing.assert_array_equal(rounded, stored[public_name(draft.config.kind, name)])
    agreement = log[-1]["held_out_agreement/answers"]
    if not draft.config.is_block:
        assert_guesses_as_it_learned(tmp_path / "answers", target, draft, agreement)
    spoken = {}
    for speculate in ("off", str(tmp_path / "run" / "model")):
        with load(target.path, speculate=speculate, context=128, threads=1) as opened:
            done = opened.complete(PROMPTS[3], max_new_tokens=60, temperature=0.9, seed=3)
            spoken[speculate] = done.tokens
    assert spoken["off"] == spoken[speculate]


def assert_guesses_as_it_learned(answers: Path, target: Bundle, files: DraftFiles, agreement: float) -> None:
    """The stored draft, run over the answers, agrees with its target as often as training says."""
    decoder, folder = reference_from_bundle(target), ShardFolder.open(answers)
    draft = draft_from_files(files, decoder)
    assert files.token_ids is not None
    ids = torch.from_numpy(files.token_ids.astype(np.int64))
    agreed = places = 0
    for number in range(folder.documents):
        tokens = torch.from_numpy(folder.document(number).astype(np.int64))
        begin = int(folder.begins[number])
        with torch.inference_mode():
            trunk = decoder.trunk(tokens)
            states = draft(tokens[1:-1], draft.features(hidden_of(trunk, draft.config)[:-2]))
            guessed = draft.logits(states).argmax(-1)
            wanted = decoder.logits(trunk.hidden)[1:-1, ids].argmax(-1)
        agreed += int((guessed == wanted)[max(0, begin - 2) :].sum())
        places += len(guessed) - max(0, begin - 2)
    # Rounding to 4 bits, pieces that rows begin with, and documents that a row cuts differ.
    assert abs(agreed / places - agreement) < 0.2


def test_a_draft_learns_from_answers_of_its_own_target(
    make_bundle: Callable[..., Bundle],
    answers: ShardFolder,
    tmp_path: Path,
    edge: Edge,
):
    other = make_bundle(minicpm_target(), tokenizer=True)
    code, said = edge("train", "draft", other.path, "--answers", answers.path, "--out", tmp_path / "run")
    assert code == 1 and "has no answers of" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("loss.z=0.1", "loss.z means nothing in a run that trains a draft"),
        ("attention.kind=sparse", "attention.kind means nothing"),
        ("model.hidden_size=64", "model means nothing"),
        ("draft.kind=eagle3", "make them with `edge train answers --kind eagle3`"),
        ("draft.kind=eagle5", "Unknown kind 'eagle5'; choose one of eagle2, eagle3"),
        ("draft.target=nothing/there/at/all", "nothing/there/at/all"),
    ],
)
def test_what_no_draft_has_is_refused(
    target: Bundle, answers: ShardFolder, tmp_path: Path, edge: Edge, change: str, said: str
):
    out = ("--answers", answers.path, "--out", tmp_path / "run", "--set", change)
    code, error = edge("train", "draft", target.path, *out)
    assert code == 1 and said in " ".join(error.split())


def test_a_dry_run_says_nothing_of_drafts(edge: Edge):
    code, error = edge("train", "run", "draft", "--dry-run", "--set", "draft.target=smollm2-135m")
    assert code == 1 and "What a draft costs can't be said before" in error


@pytest.mark.parametrize(
    "words", [("run", "smoke"), ("run", "smoke", "--dry-run"), ("draft", "x", "--answers", "y")]
)
def test_without_pytorch_a_sentence_says_what_to_install(
    tmp_path: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, error = edge("train", *words, "--out", tmp_path / "run")
    assert code == 1 and "Training needs PyTorch, which is not installed: pip install" in error


def test_one_of_prompts_and_answers_is_named(target: Bundle, tmp_path: Path, edge: Edge):
    code, error = edge("train", "answers", target.path, "x.jsonl", "--first", 3, "--out", tmp_path / "a")
    assert code and "--first: says how many answers of --of are read" in error
    code, error = edge("train", "answers", target.path, "--out", tmp_path / "a")
    assert code == 2 and "give prompts or --of" in error


def test_exported_models_have_no_drafts(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model, "files", object())
    with pytest.raises(EdgeError, match="name the model itself"):
        make_answers(model, Prompts(PROMPTS), tmp_path, OPTIONS)
