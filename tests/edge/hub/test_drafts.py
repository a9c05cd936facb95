"""Drafts by name: converted through the cache for their target, with heads of frequent tokens, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge.checkpoints.frequency_list import write_frequency_list
from edge.checkpoints.synthetic_draft import draft_shape
from edge.config.draft import CONFIDENCE, MARKOV_AFTER, MARKOV_BEFORE
from edge.config.draft_names import MULTI_TOKEN
from edge.config.tensors import HEAD
from edge.errors import EdgeError
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles
from edge.hub.drafts import bundled_draft, names_draft, open_draft, plan_draft
from edge.hub.store import cached_models
from edge.quant.packing import dequantize, unpack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme
from tests.conftest import letter_tokenizer
from tests.drafts import (
    block_fields,
    block_state,
    cpmcu_state,
    draft_fields,
    eagle3_fields,
    eagle3_state,
    floats,
    minicpm_target,
    multi_token_state,
    write_draft,
)
from tests.hub_server import Hub

TARGET = minicpm_target()
INT4, INT8, F16 = (QuantScheme.from_name(name) for name in ("int4", "int8", "f16"))
Make = Callable[..., Bundle]


@pytest.fixture
def target(make_bundle: Make) -> Bundle:
    return make_bundle(TARGET, INT4, tokenizer=True)


@pytest.fixture
def folder(tmp_path: Path, target: Bundle) -> Path:
    """A public draft of the target, with the target's own embedding and head beside its weights."""
    copies = {"embed_tokens.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    state = cpmcu_state(TARGET)
    for theirs, ours in copies.items():
        state[theirs] = torch.tensor(matrix(target, ours)).half()
    return write_draft(tmp_path / "public", draft_fields(TARGET), state)


def matrix(files: Any, name: str) -> np.ndarray:
    tensor = files.tensors[name]
    return dequantize(files.data(name), tensor.scheme, tensor.rows, tensor.columns)


def fails(says: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(EdgeError, match=says) as caught:
        open_draft(*arguments, **options)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_public_draft_is_converted_once(folder: Path, target: Bundle) -> None:
    calls: list[tuple[int, int, str]] = []
    draft = open_draft(folder, target, progress=lambda *each: calls.append(each))
    assert calls[-1] == (calls[0][1], calls[0][1], "") and calls[0][0] == 0
    state = cpmcu_state(TARGET)
    for name, tensor in draft.tensors.items():
        if len(tensor.shape) == 1:
            assert str(tensor.scheme) == "f32"
            np.testing.assert_array_equal(draft.data(name)[: 4 * 144].view("<f4"), floats(state, name))
        else:
            assert tensor.scheme == INT4 and tensor.source_type == "BF16" and not tensor.exact
            expected = quantize(floats(state, name), INT4).dequantize()
            np.testing.assert_array_equal(matrix(draft, name), expected)
    assert draft.config.head_rows is None and draft.source == str(folder)
    draft.check_target(target)
    calls.clear()
    again = open_draft(str(folder), target, progress=lambda *each: calls.append(each))
    assert again.path == draft.path and not calls
    assert [(entry.source, entry.quantization) for entry in cached_models()] == [(str(folder), ("int4-g32",))]
    assert open_draft(folder, target, quantize="f16").path != draft.path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scheme", ["int4", "int4-min", "int8", "ternary", "f16"])
def test_rows_of_the_head_are_the_targets_own(
    tmp_path: Path, make_bundle: Make, scheme: str, tied: bool
) -> None:
    config = minicpm_target(tie_word_embeddings=tied)
    own = QuantScheme.from_name(scheme)
    target = make_bundle(config, INT4, head=own, tokenizer=True)
    ids = [200, 5, 90, 17, 3]
    write_frequency_list(tmp_path / "freq_5.pt", ids)
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    whole = matrix(target, name)
    kept = open_draft("random:eagle2", target, vocabulary=tmp_path / "freq_5.pt", head="source")
    assert kept.token_ids is not None and kept.token_ids.tolist() == [200, 5, 90, 17, 2]  # 2 ends an answer
    assert kept.tensors["lm_head.weight"].scheme == own
    np.testing.assert_array_equal(matrix(kept, "lm_head.weight"), whole[kept.token_ids])
    if not own.is_float:
        stored, gathered = (
            unpack(files.data(each), own, files.tensors[each].rows, 144)
            for files, each in ((target, name), (kept, "lm_head.weight"))
        )
        assert isinstance(stored, QuantizedMatrix) and isinstance(gathered, QuantizedMatrix)
        np.testing.assert_array_equal(gathered.codes, stored.codes[kept.token_ids])
        np.testing.assert_array_equal(gathered.scales, stored.scales[kept.token_ids])
    usual = open_draft("random:eagle2", target, vocabulary=tmp_path / "freq_5.pt")
    assert usual.tensors["lm_head.weight"].scheme == (INT4 if own.is_float else own)
    chosen = open_draft("random:eagle2", target, vocabulary=tmp_path / "freq_5.pt", head="int4")
    if own != INT4:
        expected = quantize(whole[kept.token_ids], INT4).dequantize()
        np.testing.assert_array_equal(matrix(chosen, "lm_head.weight"), expected)


def test_which_list_is_used(folder: Path, target: Bundle) -> None:
    lists = {count: [*range(100 - count // 2, 100 + count // 2)] for count in (20, 60, 150)}
    for count, listed in lists.items():
        write_frequency_list(folder / f"freq_{count}.pt", listed)

    def ids(vocabulary: Any) -> list[int] | None:
        found = open_draft(folder, target, vocabulary=vocabulary).token_ids
        return None if found is None else found.tolist()

    nearest = ids(None)  # 203 / 4 is nearest to 60
    assert nearest == [*lists[60][:59], 2]  # 90 is in it
    assert ids(60) == ids("60") == nearest
    forty = ids(40)
    assert forty == [*lists[60][:39], 2]
    assert ids("all") is None and ids(203 - 60) is not None
    fails("has no list of its 170 most frequent tokens .freq_170.pt.", folder, target, vocabulary=170)
    fails("must have from 1 to the model's 203 tokens, not 0", folder, target, vocabulary=0)
    fails("must have from 1 to the model's 203 tokens, not 204", folder, target, vocabulary=204)
    fails("A list of 1 token ids is too short", folder, target, vocabulary=1)
    fails("Cannot read", folder, target, vocabulary="none.pt")
    write_frequency_list(folder / "freq_60.pt", range(20))
    fails("holds 20 token ids, but its name says 60: it is truncated", folder, target)
    write_frequency_list(folder / "freq_60.pt", range(150, 210))
    fails("token id 203, which lies outside", folder, target)


def test_random_drafts(target: Bundle, make_bundle: Make) -> None:
    draft = open_draft("random:eagle2", target, vocabulary=64)
    assert draft.token_ids is not None and draft.token_ids.tolist() == [*range(63), 90]
    assert draft.config.head_rows == 64 and draft.source == "random:eagle2"
    assert open_draft("random:eagle2", target, vocabulary=64).path == draft.path
    assert open_draft("random:eagle2", target).config.head_rows is None
    assert open_draft("random:eagle2", target, vocabulary=203).config.head_rows is None
    halves = open_draft("random:eagle2", target, quantize="f16")
    assert halves.tensors["fc.weight"].scheme == F16
    assert np.std(matrix(halves, "fc.weight")) == pytest.approx(144**-0.5, rel=0.05)
    assert open_draft("random:eagle2", make_bundle(TARGET, INT4, seed=3)).path != draft.path
    fails(
        "'random:eagle4'; there are random:eagle2, random:eagle3, random:mtp and random:dspark",
        "random:eagle4",
        target,
    )


def test_random_drafts_of_other_kinds(target: Bundle) -> None:
    chained = open_draft("random:mtp", target, vocabulary=64)
    assert chained.config == draft_shape(TARGET, "mtp", head_rows=64)
    assert open_draft("random:mtp", target).config.head_rows is None
    joined = open_draft("random:eagle3", target)
    assert joined.config == draft_shape(TARGET, "eagle3") and joined.source == "random:eagle3"
    assert joined.token_ids is not None and joined.token_ids.tolist() == [
        *range(203)
    ]  # 32,000 of larger ones
    assert joined.tensors["lm_head.weight"].scheme == INT4
    assert np.std(matrix(joined, "lm_head.weight")) == pytest.approx(144**-0.5, rel=0.1)
    fails(
        "random:eagle3 has a head that was trained with it, over 203", "random:eagle3", target, vocabulary=64
    )
    for draft, name in ((chained, "random:mtp"), (joined, "random:eagle3")):
        assert names_draft(name)
        vocabulary = 64 if draft is chained else None
        assert plan_draft(name, target, vocabulary=vocabulary).weights_bytes == draft.weights_bytes


def test_an_eagle3_draft(tmp_path: Path, target: Bundle, make_bundle: Make) -> None:
    """Its head is rounded as its other matrices are, and its tokens are those of its map."""
    state = eagle3_state(TARGET, taps=2)
    state["embed_tokens.weight"] = torch.tensor(matrix(target, "model.embed_tokens.weight")).half()
    folder = write_draft(tmp_path / "public", eagle3_fields(TARGET), state)
    draft = open_draft(folder, target)
    assert draft.config == draft_shape(TARGET, "eagle3", head_rows=40)
    assert draft.token_ids is not None
    assert draft.token_ids.tolist() == (state["d2t"] + torch.arange(40)).tolist()
    for ours, theirs in (("lm_head.weight", "lm_head.weight"), ("fc.weight", "fc.weight")):
        assert draft.tensors[ours].scheme == INT4
        expected = quantize(floats(state, theirs), INT4).dequantize()
        np.testing.assert_array_equal(matrix(draft, ours), expected)
    np.testing.assert_array_equal(matrix(draft, "norm.weight")[0], floats(state, "norm.weight"))
    assert open_draft(folder, target, head="int8").tensors["lm_head.weight"].scheme == INT8
    halves = open_draft(folder, target, quantize="source")
    assert {each.scheme for each in halves.tensors.values() if len(each.shape) == 2} == {F16}
    assert names_draft(folder) and plan_draft(folder, target).weights_bytes == draft.weights_bytes
    fails("has a head that was trained with it, over 40 tokens", folder, target, vocabulary="all")
    other = make_bundle(TARGET, INT4, seed=1, tokenizer=True)
    fails("its copy 'embed_tokens.weight' differs", folder, other)
    deeper = make_bundle(minicpm_target(num_hidden_layers=8), INT4, tokenizer=True)
    fails("'fc.weight' .* has shape 144x288, but its configuration asks for 144x432", folder, deeper)


def test_the_layer_in_the_folder_of_a_run(tmp_path: Path, target: Bundle) -> None:
    fields = draft_fields(TARGET, num_hidden_layers=2)
    run = write_draft(tmp_path / "run", fields, multi_token_state(TARGET), name=MULTI_TOKEN)
    (run / "model").mkdir()
    (run / "config.json").rename(run / "model" / "config.json")
    assert names_draft(run)
    draft = open_draft(run, target)
    assert draft.config == draft_shape(TARGET, "mtp") and draft.token_ids is None
    small = open_draft(run, target, vocabulary=tmp_list(tmp_path, 30))
    assert small.token_ids is not None and small.token_ids.tolist() == [*range(29), 90]
    (run / "model" / "tokenizer.json").write_bytes(letter_tokenizer(203).replace(b'"word1', b'"term1'))
    fails("is a draft for another tokenizer", run, target, quantize="f16")


def tmp_list(folder: Path, count: int) -> Path:
    write_frequency_list(folder / f"freq_{count}.pt", range(count))
    return folder / f"freq_{count}.pt"


def test_drafts_of_other_targets(folder: Path, target: Bundle, make_bundle: Make) -> None:
    other = make_bundle(TARGET, INT4, seed=1, tokenizer=True)
    fails("is a draft for another model: its copy 'embed_tokens.weight' differs", folder, other)
    assert not cached_models()
    for head in (INT8, F16):  # other forms of the same model
        open_draft(folder, make_bundle(TARGET, INT4, head=head, tokenizer=True))
    wider = make_bundle(minicpm_target(hidden_size=160), INT4, tokenizer=True)
    fails("whose hidden_size is 144, not 160 as here", folder, wider)
    larger = make_bundle(minicpm_target(vocab_size=219), INT4, tokenizer=True)
    fails("whose vocab_size is 203, not 219 as here", folder, larger)
    (folder / "tokenizer.json").write_bytes(letter_tokenizer(203))
    open_draft(folder, target)
    (folder / "tokenizer.json").write_bytes(letter_tokenizer(203).replace(b'"word1', b'"term1'))
    fails("is a draft for another tokenizer: 100 of its 203 tokens", folder, target)


def test_a_converted_draft(tmp_path: Path, folder: Path, target: Bundle, make_bundle: Make) -> None:
    draft = open_draft(folder, target, vocabulary=None)
    moved = tmp_path / "moved"
    shutil.copytree(draft.path, moved)
    assert open_draft(moved, target, verify=True).content_hash == draft.content_hash
    fails("is converted already, so its vocabulary can't be changed", moved, target, vocabulary=20)
    fails("so its quantization can't be changed", moved, target, quantize="int8")
    fails("with other weights than", moved, make_bundle(TARGET, INT4, seed=1, tokenizer=True))
    (moved / "weights.safetensors").write_bytes(b"short")
    fails("instead of .*: it is truncated", moved, target)


def test_a_converted_draft_gets_a_head(tmp_path: Path, folder: Path, target: Bundle) -> None:
    """One that guesses with its target's head may guess with some rows of it, as if it were converted so."""
    whole, tokens = open_draft(folder, target), tmp_list(tmp_path, 30)
    assert whole.config.head_rows is None
    for head in (None, "int8"):
        small = open_draft(whole.path, target, vocabulary=tokens, head=head)
        wanted = open_draft(folder, target, vocabulary=tokens, head=head)
        assert small.config == wanted.config and small.path != wanted.path
        assert small.token_ids is not None and wanted.token_ids is not None
        assert small.token_ids.tolist() == wanted.token_ids.tolist()
        for name, tensor in wanted.tensors.items():
            assert small.tensors[name].scheme == tensor.scheme
            assert small.data(name).tobytes() == wanted.data(name).tobytes()
    fails("so its vocabulary can't be changed", small.path, target, vocabulary=tokens)
    fails("so its head can't be changed", small.path, target, head="int8")


def test_a_draft_in_its_targets_bundle(
    tmp_path: Path, folder: Path, target: Bundle, make_bundle: Make
) -> None:
    assert bundled_draft(target) is None
    home = tmp_path / "model"
    shutil.copytree(target.path, home)
    shutil.copytree(open_draft(folder, target).path, home / "draft")
    bundle = Bundle.open(home)
    draft = bundled_draft(bundle, verify=True)
    assert isinstance(draft, DraftFiles) and draft.path == home / "draft"
    assert open_draft(home, bundle).content_hash == draft.content_hash
    strange = tmp_path / "strange"
    shutil.copytree(make_bundle(TARGET, INT4, seed=1, tokenizer=True).path, strange)
    shutil.copytree(home / "draft", strange / "draft")
    with pytest.raises(EdgeError, match="with other weights than"):
        bundled_draft(Bundle.open(strange))


def test_what_a_plan_says(folder: Path, target: Bundle) -> None:
    write_frequency_list(folder / "freq_60.pt", range(60))
    plan, draft = plan_draft(folder, target), open_draft(folder, target)
    assert plan.config == draft.config and plan.weights_bytes == draft.weights_bytes
    assert {name: (each.shape, each.scheme) for name, each in plan.tensors.items()} == {
        name: (each.shape, each.scheme) for name, each in draft.tensors.items()
    }
    assert plan_draft(draft.path, target).weights_bytes == draft.weights_bytes


def test_names_that_are_refused(tmp_path: Path, target: Bundle) -> None:
    fails("There is no draft 'none': give the folder", "none", target)
    fails(f"There is no draft '{tmp_path}/x'", tmp_path / "x", target)
    fails("names a GGUF file, but drafts are read from safetensors", "a/b:q4.gguf", target)
    fails("A revision belongs to a hub id", tmp_path, target, revision="main")
    fails("Unknown quantization 'int3'", "random:eagle2", target, quantize="int3")
    fails("Unknown quantization 'int3'", "random:eagle2", target, head="int3")


def test_ternary_is_not_rounded_to(folder: Path, target: Bundle) -> None:
    fails("is not ternary: 8 of its 8 matrices are not", folder, target, quantize="ternary")


OPENING = """
import json, sys
from edge.formats.bundle.reader import Bundle
from edge.hub.drafts import open_draft
for line in sys.stdin:
    path, spec, options = json.loads(line)
    try:
        draft = open_draft(spec, Bundle.open(path), **options)
        found = {"path": draft.path.name, "source": draft.source, "rows": draft.config.head_rows}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(found), flush=True)
"""


def test_drafts_from_the_hub(
    hub: Hub, folder: Path, target: Bundle, tmp_path: Path, hub_program: Callable[..., Any]
) -> None:
    repository = hub.root / "org" / "draft"
    shutil.copytree(folder, repository)  # without a tokenizer, as public ones
    (repository / "README.md").write_text("not wanted")
    write_frequency_list(repository / "freq_60.pt", range(60))
    write_draft(hub.root / "org" / "dflash", draft_fields(TARGET, medusa_num_heads=3), cpmcu_state(TARGET))
    ask = hub_program(OPENING, hub.url)
    found = ask(str(target.path), "org/draft", {})
    assert found["source"] == "org/draft" and found["rows"] == 60 and found["path"].startswith("org-draft-")
    fetched = {each.rsplit("/", 1)[1] for each in hub.requests if each.startswith("GET /org/draft/resolve")}
    assert fetched == {"config.json", "model.safetensors", "freq_60.pt"}
    hub.requests.clear()
    assert ask(str(target.path), "org/draft", {"offline": True}) == found and hub.requests == []
    refused = ask(str(target.path), "org/dflash", {})
    assert "a Medusa draft (field 'medusa_num_heads')" in refused["message"]
    assert not any("GET" in each and "safetensors" in each for each in hub.requests)  # told before they come


def test_a_random_block_draft(target: Bundle) -> None:
    """With a small head the Markov head has as many rows, of the same tokens."""
    whole, some = (open_draft("random:dspark", target, vocabulary=size) for size in (None, 64))
    assert whole.config == draft_shape(TARGET, "dspark") and whole.source == "random:dspark"
    assert some.config == draft_shape(TARGET, "dspark", head_rows=64)
    assert some.token_ids is not None and whole.token_ids is None
    for name in (MARKOV_BEFORE, MARKOV_AFTER):
        full = matrix(whole, name)
        wanted = full[some.token_ids] if name == MARKOV_AFTER else full
        np.testing.assert_array_equal(matrix(some, name), wanted)
    for draft, size in ((whole, None), (some, 64)):
        assert plan_draft("random:dspark", target, vocabulary=size).weights_bytes == draft.weights_bytes


def test_a_block_draft(tmp_path: Path, target: Bundle, make_bundle: Make) -> None:
    """Its vectors as float32, its matrices in int4; a list of tokens takes rows of floats; copies tell whose
    it is."""
    state = block_state(TARGET, taps=2)
    fields = block_fields(TARGET, target_layer_ids=[0, 1])
    folder = write_draft(tmp_path / "public", fields, state)
    assert names_draft(folder) and names_draft("openbmb/MiniCPM5-2B-DSpark")
    draft = open_draft(folder, target, quantize="f16", vocabulary=tokens_file(tmp_path, [7, 2, 90, 5, 100]))
    assert (draft.config.block_size, draft.config.mask_token, draft.config.head_rows) == (5, 77, 5)
    assert draft.token_ids is not None
    after = floats(state, MARKOV_AFTER)[draft.token_ids]
    np.testing.assert_array_equal(matrix(draft, MARKOV_AFTER), after.astype(np.float16))
    np.testing.assert_array_equal(matrix(draft, CONFIDENCE)[0], floats(state, CONFIDENCE)[0])
    assert open_draft(folder, target).tensors[MARKOV_BEFORE].scheme == INT4
    state["embed_tokens.weight"] = torch.randn(TARGET.vocab_size, TARGET.hidden_size)
    fails("embed", write_draft(tmp_path / "other", fields, state), target)


def test_a_block_draft_with_a_head_of_its_own(tmp_path: Path, target: Bundle) -> None:
    state = block_state(TARGET, taps=2)
    state |= {name: each for name, each in eagle3_state(TARGET).items() if name in ("d2t", "lm_head.weight")}
    state[MARKOV_AFTER] = state[MARKOV_AFTER][:40].clone()
    fields = block_fields(TARGET, target_layer_ids=[0, 1], draft_vocab_size=40)
    folder = write_draft(tmp_path / "public", fields, state)
    draft = open_draft(folder, target, quantize="f16")
    assert draft.token_ids is not None
    assert draft.token_ids.tolist() == (state["d2t"] + torch.arange(40)).tolist()
    for name in (HEAD, MARKOV_AFTER):
        np.testing.assert_array_equal(matrix(draft, name), floats(state, name).astype(np.float16))
    fails("trained with it, over 40 tokens", folder, target, vocabulary=20)


def tokens_file(folder: Path, ids: list[int]) -> Path:
    path = folder / "ids.json"
    path.write_text(json.dumps(ids))
    return path


def test_what_names_a_draft_network(folder: Path, target: Bundle, tmp_path: Path) -> None:
    (tmp_path / "draft.gguf").write_bytes(b"")
    networks = ["openbmb/MiniCPM4-8B-Eagle-FRSpec", "random:eagle2", "random:mtp", folder, str(folder)]
    models = [
        "eagle-lab/tiny-llama",  # an owner says nothing of a repository
        "owner/small-draft-GGUF:small.gguf",
        "owner/small:eagle.gguf",
        "random:minicpm4-0.5b",
        "nothing",
        "~nobody-of-that-name/eagle",
        tmp_path / "eagle",
        str(tmp_path / "draft.gguf"),
        target.path,
    ]
    assert [names_draft(each) for each in networks] == [True] * len(networks)
    assert [names_draft(each) for each in models] == [False] * len(models)
    for name in ("x" * 5000, tmp_path / ("eagle" * 1000)):
        with pytest.raises(EdgeError, match="Cannot read"):
            names_draft(name)
        fails("Cannot read", name, target)
