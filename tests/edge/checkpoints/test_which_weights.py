"""Folders that say something twice, a head beside a tied embedding or two sets of weights, or not at all."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edge.checkpoints import huggingface
from edge.checkpoints.huggingface import HuggingFaceCheckpoint, is_complete
from edge.config.tensors import EMBEDDING, HEAD
from edge.errors import CheckpointError, ConfigError
from edge.hub.convert import plan_bundle
from edge.hub.resolve import open_model, plan_model
from edge.system.notices import EdgeWarning
from tests.conftest import letter_tokenizer

from .test_huggingface import CONFIG, make_weights
from .test_int4_checkpoints import draw, pack_gptq

Weights = dict[str, torch.Tensor]
MINICPM = {
    "model_type": "minicpm",
    "architectures": ["MiniCPMForCausalLM"],
    **{"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32},
}


def write(folder: Path, files: dict[str, Weights], **changes: Any) -> Path:
    """A checkpoint of these files of weights; a name that ends in .index.json gets an index of all shards."""
    folder.mkdir(exist_ok=True)
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    for name, weights in files.items():
        if name.endswith(".index.json"):
            (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
        elif name.endswith(".safetensors"):
            save_file(weights, folder / name)
        else:
            torch.save(weights, folder / name)
    return folder


def weights_of(seed: int = 0, head: torch.Tensor | None = None) -> Weights:
    weights = make_weights(CONFIG, torch.bfloat16)
    weights[EMBEDDING] = weights[EMBEDDING] + seed
    weights[HEAD] = weights[EMBEDDING].clone() if head is None else head
    return weights


def notices(read: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        read()
    return [str(warning.message) for warning in caught if warning.category is EdgeWarning]


# A head beside a tied embedding ----------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {**MINICPM, "tie_word_embeddings": None}])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_head_is_tied_if_it_is_the_embedding(tmp_path: Path, file: str, changes: dict[str, Any]) -> None:
    weights = weights_of()
    folder = write(tmp_path / "same", {file: weights}, **changes)
    assert notices(lambda: HuggingFaceCheckpoint(folder)) == []
    checkpoint = HuggingFaceCheckpoint(folder)
    assert checkpoint.config.tie_word_embeddings
    assert HEAD not in plan_bundle(checkpoint).tensors

    other = weights[HEAD].clone()
    other[-1, -1] += 1  # the last weight, in the last block
    folder = write(tmp_path / "other", {file: {**weights, HEAD: other}}, **changes)
    with pytest.warns(EdgeWarning, match=r"'.*other' has a head of its own.*config\.json ties"):
        checkpoint = HuggingFaceCheckpoint(folder)
    assert not checkpoint.config.tie_word_embeddings
    assert HEAD in plan_bundle(checkpoint).tensors
    np.testing.assert_array_equal(checkpoint.read(HEAD), other.float().numpy())


def test_heads_are_compared_in_blocks_and_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 rows of 64 in blocks of 3 rows, float32 against bfloat16."""
    monkeypatch.setattr(huggingface, "_BLOCK_WEIGHTS", 200)
    weights = weights_of()
    weights[HEAD] = weights[HEAD].float()
    folder = write(tmp_path, {"model.safetensors": weights}, tie_word_embeddings=True)
    largest = 0
    rows = HuggingFaceCheckpoint._rows

    def counted(self: HuggingFaceCheckpoint, name: str, at: slice) -> Any:
        nonlocal largest
        found = rows(self, name, at)
        largest = max(largest, len(found))
        return found

    monkeypatch.setattr(HuggingFaceCheckpoint, "_rows", counted)
    assert HuggingFaceCheckpoint(folder).config.tie_word_embeddings and largest == 3
    for row in (0, 2, 3, 78, 79):
        weights[HEAD] = weights[EMBEDDING].float()
        weights[HEAD][row, 5] *= 1.0001
        write(tmp_path, {"model.safetensors": weights}, tie_word_embeddings=True)
        with pytest.warns(EdgeWarning, match="head of its own"):
            assert not HuggingFaceCheckpoint(folder).config.tie_word_embeddings


def test_a_packed_head_is_not_lost(tmp_path: Path) -> None:
    """GPTQ with `lm_head: true` beside a config that ties."""
    truth = draw(80, 64, 32, symmetric=True, seed=1)
    weights = weights_of()
    del weights[HEAD]
    packed = {f"lm_head.{part}": torch.from_numpy(array.copy()) for part, array in pack_gptq(truth).items()}
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 32, "lm_head": True}
    changes = {"tie_word_embeddings": True, "quantization_config": entry}
    folder = write(tmp_path, {"model.safetensors": {**weights, **packed}}, **changes)
    with pytest.warns(EdgeWarning, match="head of its own"):
        checkpoint = HuggingFaceCheckpoint(folder)
    assert not checkpoint.config.tie_word_embeddings
    np.testing.assert_array_equal(checkpoint.read_float32(HEAD), truth.weights)
    weights[EMBEDDING] = torch.from_numpy(truth.weights)
    write(tmp_path, {"model.safetensors": {**weights, **packed}}, **changes)
    assert HuggingFaceCheckpoint(folder).config.tie_word_embeddings


@pytest.mark.parametrize("tie", [False, None])
def test_a_head_that_is_neither_there_nor_tied_is_missed(tmp_path: Path, tie: bool | None) -> None:
    """transformers starts with a random one."""
    weights = weights_of()
    del weights[HEAD]
    folder = write(tmp_path, {"model.safetensors": weights}, tie_word_embeddings=tie)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*set tie_word_embeddings to true"):
        HuggingFaceCheckpoint(folder)
    assert HuggingFaceCheckpoint(
        write(tmp_path, {}, **MINICPM, tie_word_embeddings=tie or None)
    ).config.tie_word_embeddings


def test_transformers_decides_alike(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = weights_of()
    for name, head in (("same", weights[EMBEDDING].clone()), ("other", weights[EMBEDDING] * 2)):
        folder = write(
            tmp_path / name, {"model.safetensors": {**weights, HEAD: head}}, tie_word_embeddings=True
        )
        peer = AutoModelForCausalLM.from_pretrained(folder)
        tied = peer.lm_head.weight is peer.model.embed_tokens.weight
        assert tied == (name == "same") == HuggingFaceCheckpoint(folder).config.tie_word_embeddings


# Several sets of weights -----------------------------------------------------------------------------------


def shards(stem: str, suffix: str, weights: Weights) -> dict[str, Any]:
    names = list(weights)
    files: dict[str, Any] = {
        f"{stem}-0000{number}-of-00002.{suffix}": {name: weights[name] for name in part}
        for number, part in ((1, names[:9]), (2, names[9:]))
    }
    index = {name: file for file, part in files.items() for name in part}
    return {**files, f"{stem}.{suffix}.index.json": index}


SETS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "model.safetensors": lambda weights: {"model.safetensors": weights},
    "model.safetensors.index.json": lambda weights: shards("model", "safetensors", weights),
    "pytorch_model.bin": lambda weights: {"pytorch_model.bin": weights},
    "pytorch_model.bin.index.json": lambda weights: shards("pytorch_model", "bin", weights),
}
"""Best first, as `_get_resolved_checkpoint_files` of transformers goes through them."""


@pytest.mark.parametrize(("first", "second"), list(combinations(SETS, 2)))
def test_the_best_set_is_used_and_said(tmp_path: Path, first: str, second: str) -> None:
    best, other = weights_of(1), weights_of(2)
    folder = write(tmp_path, {**SETS[second](other), **SETS[first](best)})
    with pytest.warns(EdgeWarning) as caught:
        checkpoint = HuggingFaceCheckpoint(folder)
    (said,) = [str(warning.message) for warning in caught]
    assert f"{first} is used" in said
    left = second.split(".")[0] + "-00001-of-00002" if "index" in second else second
    assert left in said.partition("transformers does, and")[2] and said.endswith(" not.")
    np.testing.assert_array_equal(checkpoint.read(EMBEDDING), best[EMBEDDING].float().numpy())


def test_transformers_takes_the_same_set(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    names = list(SETS)
    for first, second in pairwise(names):
        folder = tmp_path / first
        write(folder, {**SETS[second](weights_of(2)), **SETS[first](weights_of(1))})
        peer = AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight.detach().float()
        np.testing.assert_array_equal(HuggingFaceCheckpoint(folder).read(EMBEDDING), peer.numpy())


def test_other_names_of_weights_are_said(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model.safetensors": weights_of()})
    (folder / "training_args.bin").write_bytes(b"")
    assert notices(lambda: HuggingFaceCheckpoint(folder)) == []
    for name in ("consolidated.00.pth", "consolidated.safetensors", "model.fp16.safetensors"):
        (folder / name).write_bytes(b"")
        with pytest.warns(EdgeWarning, match=f"model.safetensors is used.*{name}"):
            HuggingFaceCheckpoint(folder)
    for number in range(7):
        (folder / f"model-0000{number}-of-00007.safetensors").write_bytes(b"")
    with pytest.warns(EdgeWarning, match="and 7 more not"):
        HuggingFaceCheckpoint(folder)


def test_a_cached_conversion_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    folder = write(
        tmp_path / "m", {**SETS["pytorch_model.bin"](weights_of(2)), "model.safetensors": weights_of()}
    )
    tokenizer = json.loads(letter_tokenizer(80))
    tokenizer["model"]["vocab"] = {f"word{token}": token for token in range(80)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for read in (plan_model, open_model, open_model):
        (said,) = notices(partial(read, folder))
        assert "model.safetensors is used" in said


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards_without_an_index(tmp_path: Path, stem: str, suffix: str) -> None:
    files = shards(stem, suffix, weights_of())
    index = files.pop(f"{stem}.{suffix}.index.json")
    folder = write(tmp_path, files)
    message = (
        rf"has shards of weights \({stem}-00001-of-00002\.{suffix}\), but '{stem}\.{suffix}\.index\.json'"
    )
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(folder)
    assert not is_complete(folder)
    (folder / f"{stem}-00002-of-00002.{suffix}").unlink()  # one shard alone is not a whole file
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(folder)
    write(folder, {**files, f"{stem}.{suffix}.index.json": index})
    assert is_complete(folder) and notices(lambda: HuggingFaceCheckpoint(folder)) == []


def test_names_of_ones_own(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model-00001-of-00001.safetensors": weights_of()})
    assert HuggingFaceCheckpoint(folder).tensors
    shutil.copy(folder / "model-00001-of-00001.safetensors", folder / "copy.safetensors")
    with pytest.raises(CheckpointError, match=r"copy\.safetensors and model-00001.* nothing says which"):
        HuggingFaceCheckpoint(folder)


def test_a_shard_has_a_tensor_that_its_index_leaves_out(tmp_path: Path) -> None:
    """A head, which would be lost beside a tied embedding without a word."""
    from transformers import AutoModelForCausalLM

    weights = weights_of(head=weights_of(5)[EMBEDDING])
    files = shards("model", "safetensors", weights)
    del files["model.safetensors.index.json"][HEAD]
    folder = write(tmp_path, files, tie_word_embeddings=True)
    said = notices(lambda: HuggingFaceCheckpoint(folder))
    assert any(f"model.safetensors.index.json' leaves out {HEAD}: used all the same" in each for each in said)
    head = HuggingFaceCheckpoint(folder).read_float32(HEAD)
    peer = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.detach().float().numpy()
    np.testing.assert_array_equal(head, peer)
    np.testing.assert_array_equal(head, weights[HEAD].float().numpy())


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    files = shards("model", "safetensors", weights_of())
    files["model-00001-of-00002.safetensors"][HEAD] = weights_of(5)[HEAD]
    write(tmp_path, files)
    with pytest.raises(CheckpointError, match=rf"'{HEAD}' in model-00002.* and in model-00001"):
        HuggingFaceCheckpoint(tmp_path)


def test_hidden_copies_are_no_weights(tmp_path: Path) -> None:
    folder = write(tmp_path, {"weights.safetensors": weights_of()})
    (folder / "._weights.safetensors").write_bytes(b"\0\5\x16\7")  # as macOS leaves it
    assert notices(lambda: HuggingFaceCheckpoint(folder)) == []


def test_gguf_files_in_a_folder_are_named(tmp_path: Path) -> None:
    """A folder is never taken for the GGUF file in it, and says so if it has other weights."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"is a folder with a\.gguf; name a GGUF file itself"):
        HuggingFaceCheckpoint(tmp_path)
    folder = write(tmp_path, {})
    with pytest.raises(CheckpointError, match=r"has no weights but a\.gguf; name a GGUF file itself"):
        HuggingFaceCheckpoint(folder)
    write(folder, {"model.safetensors": weights_of()})
    (said,) = notices(lambda: HuggingFaceCheckpoint(folder))
    assert "model.safetensors is used" in said and said.endswith("a.gguf not.")


# Several chat templates ------------------------------------------------------------------------------------

NAMED = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("jinja", "config", "older", "used", "said"),
    [
        ("J", "C", None, "J", "that of chat_template.jinja is used.* and that of tokenizer_config.json not"),
        (None, "C", "O", "C", "that of tokenizer_config.json is used.* and that of chat_template.json not"),
        ("J", NAMED, None, "J", "that of chat_template.jinja is used"),
        ("J", "J", "J", "J", None),
        (None, NAMED, None, "D", None),
        (None, NAMED[:1], "O", "O", "tokenizer_config.json has no default .* those named 'rag'"),
        (None, 5, None, None, "tokenizer_config.json has no default .* is no text"),
    ],
)
def test_chat_templates_in_several_places(
    tmp_path: Path, jinja: Any, config: Any, older: Any, used: str | None, said: str | None
) -> None:
    folder = write(tmp_path, {})
    for name, template in (("tokenizer_config.json", config), ("chat_template.json", older)):
        if template is not None:
            (folder / name).write_text(json.dumps({"chat_template": template}))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    found: list[str | None] = []
    told = notices(lambda: found.append(huggingface.HuggingFaceTexts(folder).chat_template))
    assert found == [used]
    assert len(told) == (said is not None) and all(re.search(said or "", each) for each in told)


# Two descriptions of a packing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("group_size", 128), ("bits", 8), ("checkpoint_format", "gptq_v2"), ("version", "x")]
)
def test_two_quantization_configs(tmp_path: Path, name: str, value: Any) -> None:
    entry = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "checkpoint_format": "gptq",
        "version": "gemm",
    }
    folder = write(tmp_path, {"model.safetensors": weights_of()}, quantization_config=entry)
    older = folder / "quantize_config.json"
    older.write_text(json.dumps({key: entry[key] for key in ("bits", "group_size")}))
    assert huggingface.quantization_config(folder) == entry
    older.write_text(json.dumps({**entry, name: value}))
    with pytest.raises(
        ConfigError, match=rf"'quantization_config\.{name}' is .*'quantize_config\.json: {name}'"
    ):
        HuggingFaceCheckpoint(folder)
