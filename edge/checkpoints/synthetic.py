"""Random weights of a known shape, made straight in the packed layout: what to profile before having weights.

The float model never exists, so an 8B network takes its 4-bit size and a few seconds. The numbers are chosen
so that activations and logits keep a sane size; the text is noise. The tokenizer belongs to nobody: it is a
byte-level one with made-up words, so that every id decodes to something and any text can be encoded.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.config import ModelConfig
from edge.config.presets import preset
from edge.config.tensors import EMBEDDING, HEAD, network_tensors
from edge.errors import CheckpointError
from edge.quant.layout import PAD_COLUMNS, TILE_ROWS
from edge.quant.packing import pack, unpack
from edge.quant.scheme import PackedMatrix, QuantScheme

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, which MiniCPM models use."""
VERSION = 1
"""Changes when the same arguments would give other bytes."""
MINIMUM_VOCABULARY = 261
"""3 special tokens, 256 bytes, <|im_end|> and <|im_start|>."""
_IM_END = 73440  # in MiniCPM4's vocabulary; <|im_start|> follows
_LOGIT_STD = 2.0
_CHUNK = 1 << 20  # words drawn at once


class RandomCheckpoint:
    """A checkpoint of random weights; the same arguments give the same bytes.

    shape: a preset's name (`edge.config.presets`) or any dense config. scheme: of every matrix. head: of the
    embedding and the LM head, by default what its kind says (`QuantScheme.beside`).
    """

    def __init__(
        self, shape: str | ModelConfig, scheme: QuantScheme, head: QuantScheme | None = None, seed: int = 0
    ) -> None:
        self._name = shape if isinstance(shape, str) else shape.model_type
        self._config = preset(shape) if isinstance(shape, str) else shape
        if self._config.vocab_size < MINIMUM_VOCABULARY:
            raise CheckpointError(
                f"A random model needs a vocabulary of at least {MINIMUM_VOCABULARY} tokens, "
                f"not {self._config.vocab_size}."
            )
        if head is None:
            head = scheme.beside
        self._seed = seed
        self._network = network_tensors(self._config)
        self._tensors = []
        for name, tensor in self._network.items():
            matrix_scheme = head if name in (EMBEDDING, HEAD) else scheme
            chosen = QuantScheme("f32") if len(tensor.shape) == 1 else matrix_scheme
            self._tensors.append(TensorInfo(name, tensor.shape, "random", chosen))
        self._infos = {info.name: info for info in self._tensors}

    @property
    def source(self) -> str:
        """`random:` and the preset's name."""
        return f"random:{self._name}"

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return self._config

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor of the network."""
        return self._tensors

    def read(self, name: str) -> npt.NDArray[np.float32] | PackedMatrix:
        """One tensor: norms are ones, biases zeros, matrices random."""
        info = self._infos[name]
        if len(info.shape) == 1:
            return np.full(info.shape, 0 if self._network[name].role.is_bias else 1, np.float32)
        rows, columns = info.shape
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        return random_matrix(rng, rows, columns, info.scheme, self._std(name, columns))

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """A synthetic byte-level tokenizer with as many tokens as the network has."""
        return _tokenizer_files(self._config)

    @property
    def chat_template(self) -> str:
        """ChatML."""
        return CHAT_TEMPLATE

    @property
    def generation_config(self) -> dict[str, Any]:
        """Empty: there is nothing to tune."""
        return {}

    def _std(self, name: str, columns: int) -> float:
        """Standard deviation of a matrix: outputs as large as inputs, and logits of a few units."""
        if name == HEAD or (name == EMBEDDING and self._config.tie_word_embeddings):
            return _LOGIT_STD / (self._config.logit_scale * columns**0.5)
        if name == EMBEDDING:
            return 1 / self._config.embedding_scale
        return columns**-0.5


def random_matrix(
    rng: np.random.Generator, rows: int, columns: int, scheme: QuantScheme, std: float
) -> PackedMatrix:
    """A packed matrix of about standard deviation `std` and mean 0, drawn as bytes."""
    size = scheme.packed_bytes(rows, columns)
    if scheme.is_float:
        data = _random_words(rng, size // 2, _bits(rng.standard_normal(_WORDS, np.float32) * std))
    else:
        kind = scheme.declared
        data = _random_words(rng, size // 2, _legal_words(scheme))
        # The root mean square of the scales' own spread is 1.
        scales = rng.uniform(0.65, 1.3, _WORDS) * (std / kind.rms)
        if kind.low != -kind.high:
            # The mean of such codes is not 0 (of int4's -0.5): with one sign, every matrix would amplify the
            # vector of ones into itself, layer after layer.
            scales[::2] *= -1
        _write_scales(data, rows, columns, scheme, scales)
    packed = data.view(np.uint8)
    _clear_padding(packed, rows, columns, scheme)
    return PackedMatrix(scheme, (rows, columns), packed)


def _write_scales(
    data: npt.NDArray[np.uint16],
    rows: int,
    columns: int,
    scheme: QuantScheme,
    choices: npt.NDArray[np.float64],
) -> None:
    """Let every word that stands where a scale belongs pick one of `choices`."""
    padded = -(-columns // PAD_COLUMNS) * PAD_COLUMNS
    group = min(scheme.group or padded, padded)
    tails = TILE_ROWS * scheme.packing.tails
    whole, rest = divmod(padded, group)
    regular = whole * (
        TILE_ROWS * group * scheme.packing.layout.bits // 16 + tails
    )  # words of a tile's whole groups
    tiles = -(-rows // TILE_ROWS)
    stream = data[: tiles * _tile_bytes(columns, scheme) // 2].reshape(tiles, -1)
    parts = [stream[:, :regular].reshape(tiles, whole, -1)]
    if rest:
        parts.append(stream[:, None, regular:])
    for part in parts:  # views: only last axes were split
        picks = part[..., -tails:][..., :TILE_ROWS].copy()
        part[..., -tails:][..., :TILE_ROWS] = _bits(choices)[picks]
        if scheme.minimum:
            part[..., -TILE_ROWS:] = _bits(choices * (-scheme.code_range[1] / 2))[picks]


def _clear_padding(packed: npt.NDArray[np.uint8], rows: int, columns: int, scheme: QuantScheme) -> None:
    """Padding must be weights of zero: pack again what has any (the last tile, or all with odd columns)."""
    tile = _tile_bytes(columns, scheme)
    end = -(-rows // TILE_ROWS) * tile
    packed[end:] = 0
    first = 0 if columns % PAD_COLUMNS else rows // TILE_ROWS
    ragged = rows - first * TILE_ROWS
    if ragged:
        part = np.zeros(scheme.packed_bytes(ragged, columns), np.uint8)
        part[: end - first * tile] = packed[first * tile : end]
        part = pack(unpack(part, scheme, ragged, columns), scheme)
        packed[first * tile : end] = part[: end - first * tile]


def _tile_bytes(columns: int, scheme: QuantScheme) -> int:
    """Bytes of 16 rows; those of 32 are always a multiple of the alignment."""
    return scheme.packed_bytes(2 * TILE_ROWS, columns) // 2


def _bits(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    return values.astype("<f2").view("<u2")


_WORDS = 1 << 16


@cache
def _legal_words(scheme: QuantScheme) -> npt.NDArray[np.uint16] | None:
    """A random word to one whose fields are all codes of the scheme; None if every word is such a one."""
    packing = scheme.packing
    layout, (low, high) = packing.layout, scheme.code_range
    codes = np.arange(low + packing.zero, high + packing.zero + 1)
    legal = sum(
        codes[np.arange(codes.size**layout.fields) // codes.size**place % codes.size] << layout.bits * place
        for place in range(layout.fields)
    )
    assert isinstance(legal, np.ndarray)
    if legal.size == 256:
        return None
    if layout.fields == 1:
        table = legal[np.arange(256) * legal.size // 256]
    else:  # whole rounds of all, and the bytes that are left over become zeros
        zeros = sum(packing.zero << layout.bits * place for place in range(layout.fields))
        rounds, rest = divmod(256, legal.size)
        table = np.concatenate([np.tile(legal, rounds), np.full(rest, zeros)])
    # For words, which looks up twice as fast.
    wide = table.astype(np.uint16)
    return (wide[:, None] * 256 + wide).astype(np.uint16).reshape(-1)


def _random_words(
    rng: np.random.Generator, count: int, table: npt.NDArray[np.uint16] | None
) -> npt.NDArray[np.uint16]:
    """`count` random words (a multiple of 4), each replaced by its entry of the table if there is one."""
    words = np.empty(count, "<u2")
    for start in range(0, count, _CHUNK):
        chunk = words[start : start + _CHUNK]
        drawn = rng.integers(0, 1 << 64, chunk.size // 4, np.uint64).view("<u2")
        chunk[:] = drawn if table is None else table[drawn]
    return words


def _tokenizer_files(config: ModelConfig) -> dict[str, bytes]:
    """`tokenizer.json` (byte-level BPE without merges) and its configuration.

    Ids: <s> and </s> are the config's, 1 and 2 without any, <unk> is the first that is left (0 with those),
    then the 256 bytes, made-up words; <|im_end|> and <|im_start|> have MiniCPM4's ids when the vocabulary
    reaches that far, else the last two.
    """
    size = config.vocab_size
    im_end = _IM_END if size > _IM_END + 1 else size - 2
    special = {im_end: "<|im_end|>", im_end + 1: "<|im_start|>"}
    special.setdefault(1 if config.bos_token_id is None else config.bos_token_id, "<s>")
    special.setdefault(next(iter(config.eos_token_ids), 2), "</s>")
    special[next(token_id for token_id in range(size) if token_id not in special)] = "<unk>"
    spellings = iter(_byte_alphabet())
    vocabulary: dict[str, int] = {}
    words = 0
    for token_id in range(size):
        text = special.get(token_id) or next(spellings, None)
        if text is None:
            text, words = "Ġ" + _word(words), words + 1
        vocabulary[text] = token_id
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": text, **flags} for token_id, text in sorted(special.items())
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for every byte: itself if visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _word(index: int) -> str:
    """A different word for every index: syllables of a consonant and a vowel."""
    word = ""
    index += 1
    while index:
        index, syllable = divmod(index - 1, 90)
        word = "bcdfghjklmnprstvwz"[syllable // 5] + "aeiou"[syllable % 5] + word
    return word
