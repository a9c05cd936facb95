"""Random weights: legal bytes in every scheme, sane sizes, the same again for the same seed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edge.checkpoints.synthetic import CHAT_TEMPLATE, RandomCheckpoint, random_matrix
from edge.config import ModelConfig
from edge.config.presets import preset
from edge.config.tensors import EMBEDDING, HEAD, expected_tensors
from edge.errors import CheckpointError, ConfigError
from edge.quant.packing import dequantize, pack, unpack
from edge.quant.scheme import PackedMatrix, QuantizedMatrix, QuantScheme

SCHEMES = [
    QuantScheme("int4", 32),
    QuantScheme("int4", 128),
    QuantScheme("int4"),
    QuantScheme("int4", 32, minimum=True),
    QuantScheme("int8", 32),
    QuantScheme("int8"),
    QuantScheme("ternary", 128),
    QuantScheme("ternary"),
    QuantScheme("f16"),
]


def small(tied: bool = True, vocab_size: int = 400) -> ModelConfig:
    return replace(
        preset("minicpm4-0.5b"),
        vocab_size=vocab_size,
        eos_token_ids=(2,),
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(256, 512), (192, 160), (33, 256), (7, 100), (32, 48)], ids=str)
def test_matrices_are_canonical(scheme: QuantScheme, shape: tuple[int, int]) -> None:
    """Packing again what was unpacked gives the same bytes: codes, scales and padding as `pack` has them."""
    matrix = random_matrix(np.random.default_rng(1), *shape, scheme, 0.1)
    assert matrix.shape == shape
    plain = unpack(matrix.data, scheme, *shape)
    np.testing.assert_array_equal(pack(plain, scheme), matrix.data)
    if isinstance(plain, QuantizedMatrix):
        assert np.isfinite(plain.scales).all()
        low, high = {"int4": (0, 15), "int8": (-127, 127), "ternary": (0, 2)}[scheme.kind]
        assert plain.codes.min() >= low and plain.codes.max() <= high


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_embedded_tokens_keep_their_size_under_mup(tied: bool) -> None:
    """Of a normed input of 256 numbers: logits of 2 (hidden / base is 4), and embedded rows of 1."""
    config = replace(small(tied), dim_model_base=64.0, scale_emb=12.0)
    checkpoint = RandomCheckpoint(config, QuantScheme("int4", 32), QuantScheme("f16"))
    head = checkpoint.read(EMBEDDING if tied else HEAD)
    assert isinstance(head, PackedMatrix)
    std = dequantize(head.data, head.scheme, *head.shape).std()
    assert std * 256**0.5 / 4 == pytest.approx(2, rel=0.05)
    if not tied:
        rows = checkpoint.read(EMBEDDING)
        assert isinstance(rows, PackedMatrix)
        assert 12 * dequantize(rows.data, rows.scheme, *rows.shape).std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_size_and_direction_of_the_numbers(scheme: QuantScheme) -> None:
    rows, columns, std = 1024, 1024, 0.05
    matrix = random_matrix(np.random.default_rng(1), rows, columns, scheme, std)
    plain = unpack(matrix.data, scheme, rows, columns)
    weights = plain.dequantize() if isinstance(plain, QuantizedMatrix) else plain.astype(np.float32)
    assert weights.std() == pytest.approx(std, rel=0.05)
    # The vector of ones must not grow into itself through many layers, as codes of mean -0.5 would make it.
    ones_to_ones = weights.sum(dtype=np.float64) / (rows * columns) ** 0.5
    assert abs(ones_to_ones) < 0.3 * std * rows**0.5


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoint_has_every_tensor_in_its_scheme(tied: bool) -> None:
    config = small(tied)
    checkpoint = RandomCheckpoint(config, QuantScheme("ternary", 128))
    assert {info.name: info.shape for info in checkpoint.tensors} == expected_tensors(config)
    for info in checkpoint.tensors:
        values = checkpoint.read(info.name)
        if len(info.shape) == 1:
            np.testing.assert_array_equal(values, np.ones(info.shape, np.float32))
            continue
        assert (
            isinstance(values, PackedMatrix) and values.scheme == info.scheme and values.shape == info.shape
        )
        is_head = info.name in ("model.embed_tokens.weight", "lm_head.weight")
        assert info.scheme == (QuantScheme("int4", 32) if is_head else QuantScheme("ternary", 128))
    head = RandomCheckpoint(config, QuantScheme("int4", 32), QuantScheme("f16")).tensors[0]
    assert head.scheme == QuantScheme("f16")


def test_seeds() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    first, again = (RandomCheckpoint(small(), QuantScheme("int4", 32)).read(name) for _ in range(2))
    other = RandomCheckpoint(small(), QuantScheme("int4", 32), seed=1).read(name)
    neighbour = RandomCheckpoint(small(), QuantScheme("int4", 32)).read(name.replace("1", "0"))
    assert isinstance(first, PackedMatrix)
    np.testing.assert_array_equal(first.data, again.data)
    assert (first.data != other.data).mean() > 0.9 and (first.data != neighbour.data).mean() > 0.9


@pytest.mark.parametrize("name", ["minicpm4-0.5b", "smollm2-135m", "minicpm5-1b", "smollm3-3b"])
def test_presets(name: str) -> None:
    checkpoint = RandomCheckpoint(name, QuantScheme("int4", 32))
    assert checkpoint.source == f"random:{name}"
    assert checkpoint.config == preset(name)
    vocabulary = json.loads(checkpoint.tokenizer_files["tokenizer.json"])["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(checkpoint.config.vocab_size))
    assert vocabulary["<s>"] == checkpoint.config.bos_token_id
    assert vocabulary["</s>"] == checkpoint.config.eos_token_ids[0]
    assert checkpoint.chat_template == CHAT_TEMPLATE and checkpoint.generation_config == {}


def test_unknown_preset_and_tiny_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"minicpm4-8b"):
        RandomCheckpoint("minicpm4-9b", QuantScheme("int4", 32))
    with pytest.raises(CheckpointError, match="at least 261 tokens, not 260"):
        RandomCheckpoint(small(vocab_size=260), QuantScheme("int4", 32))


@pytest.mark.parametrize(("size", "im_end"), [(73448, 73440), (400, 398), (261, 259)])
def test_tokenizer_encodes_any_text_and_decodes_any_id(size: int, im_end: int) -> None:
    from tokenizers import Tokenizer

    files = RandomCheckpoint(small(vocab_size=size), QuantScheme("int4", 32)).tokenizer_files
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.get_vocab_size() == size
    text = "def f(x):\n\treturn x  # 你好, мир 🙂\u0000"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())  # one token per byte
    assert tokenizer.decode(ids) == text
    chat = tokenizer.encode("<|im_start|>user\nhi<|im_end|>").ids
    assert chat[0] == im_end + 1 and chat[-1] == im_end and len(chat) == 9
    everything = [tokenizer.id_to_token(token_id) for token_id in range(size)]
    assert len(set(everything)) == size and None not in everything
    if size > 1000:
        assert tokenizer.decode([500, 60000]).replace(" ", "").isalpha()


@pytest.mark.parametrize(("size", "im_end"), [(73442, 73440), (73441, 73439)])
def test_the_chat_tokens_have_minicpm4s_ids_where_both_fit(size: int, im_end: int) -> None:
    files = RandomCheckpoint(small(vocab_size=size), QuantScheme("int4", 32)).tokenizer_files
    added = {each["content"]: each["id"] for each in json.loads(files["tokenizer.json"])["added_tokens"]}
    assert added == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": im_end, "<|im_start|>": im_end + 1}
