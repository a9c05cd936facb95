"""Every export ends answers where chat does: read back from the files as other programs read them.

ExecuTorch's, whose export takes long, is asked in test_executorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.errors import EdgeError, ExportError
from edge.export.artifact import dry_run, export_model, plan_export
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.export.targets.gguf.tokenizer import tokenizer_metadata, unnamed_end_tokens
from edge.formats.artifact.folder import Artifact
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.hub.resolve import open_model
from edge.hub.store import cached_models
from edge.system.notices import EdgeWarning
from edge.text.tokenizer.load import load_tokenizer, open_tokenizer
from tests.export.tiny import byte_tokenizer_files, llama_config, make_checkpoint

TEMPLATE = "{% for m in messages %}<turn>{{ m.content }}<turn_over>{% endfor %}"
TURN, TURN_OVER, IM_END = 270, 271, 272
# config.json, generation_config.json, tokenizer_config.json (</s>), the template, known by its text, --eos
ENDS = {5, 6, 2, TURN_OVER, IM_END, 7}


def texts() -> dict[str, bytes]:
    added = {"<turn>": TURN, "<turn_over>": TURN_OVER, "<|im_end|>": IM_END}
    mapped = {"additional_special_tokens": ["<turn>", "<turn_over>"]}
    return byte_tokenizer_files() | {
        "added_tokens.json": json.dumps(added).encode(),
        "special_tokens_map.json": json.dumps(mapped).encode(),
    }


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Artifact]:
    config = llama_config(num_hidden_layers=1, eos_token_ids=(5,))
    checkpoint = make_checkpoint(config, tokenizer_files=texts())
    settings = {"eos_token_id": [6, 5], "do_sample": False, "temperature": 0.6, "top_k": -1}
    convert(replace(checkpoint, chat_template=TEMPLATE, generation_config=settings), tmp_path / "bundle")

    def make(target: Any, **options: Any) -> Artifact:
        source = Source(Bundle.open(tmp_path / "bundle"), eos=("7",))
        with pytest.warns(EdgeWarning, match=r"do_sample false beside temperature 0\.6: answers are greedy"):
            artifact = export_model(source, ExportOptions(target, **options), tmp_path / "out")
        assert source.config.eos_token_ids[0] == 5 and set(source.config.eos_token_ids) == ENDS
        assert set(Artifact.open(artifact.path).config.eos_token_ids) == ENDS
        assert open_tokenizer(artifact).eos_ids == ENDS  # what a chat with the folder uses
        return artifact

    return make


def json_file(artifact: Artifact, name: str) -> Any:
    return json.loads((artifact.path / name).read_bytes())


def test_bundle(export: Callable[..., Artifact]) -> None:
    artifact = export("bundle")
    assert set(json_file(artifact, "decoder.json")["end_tokens"]) == ENDS
    assert set(json_file(artifact, "manifest.json")["config"]["eos_token_ids"]) == ENDS
    assert open_tokenizer(open_model(artifact.path)).eos_ids == ENDS


def test_onnx(export: Callable[..., Artifact]) -> None:
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    artifact = export("onnx", portable=True)
    document = json_file(artifact, "genai_config.json")
    assert set(document["model"]["eos_token_id"]) == ENDS
    assert (document["search"]["do_sample"], document["search"]["top_k"]) == (False, 0)
    assert set(json_file(artifact, "generation_config.json")["eos_token_id"]) == ENDS


def test_gguf(export: Callable[..., Artifact]) -> None:
    """There are three keys: they go to those that llama.cpp does not know by their text."""
    artifact = export("gguf")
    found = GGUFCheckpoint(artifact.model)
    assert found.config.eos_token_ids == (5, 6, 2)
    assert {5, 6, 2, TURN_OVER, IM_END} <= open_tokenizer(found).eos_ids
    assert found.generation_config == {"temperature": 0.0, "top_k": 0, "do_sample": False}
    source = Source(Bundle.open(artifact.path.parent / "bundle"), eos=("7",))
    (note,) = plan_export(source, ExportOptions("gguf")).notes
    assert note.endswith(f"llama.cpp will not stop at {TURN_OVER} and 7.")


def test_gguf_keys_are_for_what_llama_cpp_does_not_know() -> None:
    """<|im_end|> stands second, and llama.cpp finds it by itself: its key goes to another."""
    config = llama_config(eos_token_ids=(5, IM_END, 6, TURN_OVER, 7))
    metadata = tokenizer_metadata(texts(), config)
    found = [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert found == [5, 6, TURN_OVER]
    assert unnamed_end_tokens(load_tokenizer(texts(), config), config) == [7]


def test_a_gguf_files_template_is_checked_before_it_is_converted(
    export: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    data = export("gguf").model.read_bytes()
    assert data.count(b"for m in messages") == 1
    (tmp_path / "m.gguf").write_bytes(data.replace(b"for m in messages", b"for m on messages"))
    with pytest.raises(EdgeError, match="chat template is not valid Jinja"):
        open_model(tmp_path / "m.gguf")
    assert cached_models() == []


def test_other_runtimes_get_no_token_beyond_the_embedding(tmp_path: Path) -> None:
    """The padding token of a fine-tune: its id would be read behind the last row."""
    config = llama_config(num_hidden_layers=1, vocab_size=263, eos_token_ids=(2,))  # as many as the file has
    files = byte_tokenizer_files()
    tokenizer = json.loads(files["tokenizer.json"])
    padding = {**tokenizer["added_tokens"][0], "id": config.vocab_size, "content": "<pad>"}
    tokenizer["added_tokens"].append(padding)
    files["tokenizer.json"] = json.dumps(tokenizer).encode()
    convert(make_checkpoint(config, tokenizer_files=files), tmp_path / "bundle")
    source = Source(Bundle.open(tmp_path / "bundle"))
    with pytest.warns(EdgeWarning, match=f"'<pad>' beyond the {config.vocab_size} tokens"):
        artifact = export_model(source, ExportOptions("gguf"), tmp_path / "out")
    ids = [token["id"] for token in json_file(artifact, "tokenizer.json")["added_tokens"]]
    assert ids == [0, 1, 2]
    assert len(GGUFCheckpoint(artifact.model)._metadata["tokenizer.ggml.tokens"]) == config.vocab_size


def test_a_model_without_any_needs_one_from_its_user(tmp_path: Path) -> None:
    files = byte_tokenizer_files()
    tokenizer = json.loads(files["tokenizer.json"])
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "</s>"]
    files = {"tokenizer.json": json.dumps(tokenizer).encode()}
    config = llama_config(num_hidden_layers=1, eos_token_ids=())
    convert(make_checkpoint(config, tokenizer_files=files), tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    with pytest.raises(ExportError, match="name one with `--eos`"):
        plan_export(Source(bundle), ExportOptions("bundle"))
    artifact = export_model(Source(bundle, eos=("</s>",)), ExportOptions("bundle"), tmp_path / "out")
    assert artifact.config.eos_token_ids == (2,)
    with pytest.raises(ExportError, match="has no token '<nothing>'"):
        plan_export(Source(bundle, eos=("<nothing>",)), ExportOptions("bundle"))


def test_the_option_reaches_plan_and_export(tmp_path: Path) -> None:
    """Of `edge export`: a name that the model does not have is refused before anything is written."""
    with pytest.raises(ExportError, match="has no token '<nothing>'"):
        dry_run("random:minicpm4-0.5b", ExportOptions("bundle", eos=("<nothing>",)))
