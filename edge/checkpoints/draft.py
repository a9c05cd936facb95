"""Public drafts: a folder of `config.json` and weights, under the names that several programs give.

* EAGLE (SafeAILab): `fc.weight`, `fc.bias`, `layers.0.*`, and a copy of the target's `embed_tokens.weight`;
  of EAGLE-3 `midlayer.*`, `norm.weight`, a head of its own and the map of its rows (`draft_vocabulary`);
* CPM.cu and OpenBMB's MiniCPM4 drafts: `input_norm1` and `input_norm2` too; fc may be in two halves, `fc1`
  and `fc2`; those trained for 4 bits are packed for Marlin, q, k and v in one tensor and gate and up in one;
* vLLM: `model.eagle_layers.0.*` and copies of the target's embedding and head; llama's other input norms;
* multi-token layers of this project's training: DeepSeek-V3's `enorm`, `hnorm`, `eh_proj`, and `layer.*`;
* DeepSpec's DSpark and z-lab's DFlash: `fc.weight`, `hidden_norm.weight`, Qwen3's layers, `norm.weight`, and
  of the former `markov_head.*` and `confidence_head.*`.

Copies of the target's matrices serve one purpose here: they tell whether it is the draft of this target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.draft_matrices import Flat, Matrix, Packed, Plain, SideBySide, shape_text
from edge.checkpoints.draft_vocabulary import VOCABULARY, trained_ids
from edge.checkpoints.frequency_list import TokenIds, checked_ids
from edge.checkpoints.huggingface import TOKENIZER_FILES, TOKENIZERS
from edge.checkpoints.int4_linear import PARTS, Int4Linear, Int4Settings, open_int4
from edge.checkpoints.opened import (
    CONFIG,
    Stored,
    WeightFile,
    open_weights,
    quantization_config,
    read_json,
    read_small,
)
from edge.config import ModelConfig
from edge.config.draft import (
    CONFIDENCE,
    EMBEDDING_NORM,
    FC,
    FC_BIAS,
    DraftConfig,
    DraftKind,
    draft_tensors,
)
from edge.config.draft_huggingface import ONLY, DraftParts, draft_from_hf, plain_fields, refuse_other_kinds
from edge.config.draft_names import MULTI_TOKEN, bundle_name, public_name
from edge.config.roles import DECODER
from edge.errors import CheckpointError, EdgeError
from edge.formats.safetensors import TensorEntry
from edge.quant.scheme import QuantizedMatrix

EMBEDDING_COPY, HEAD_COPY = "embed_tokens.weight", "lm_head.weight"
_REMAP = "token_id_remap"
_FIRST, _SECOND = "fc1", "fc2"
_HALVES = (f"{_FIRST}.weight", f"{_SECOND}.weight", f"{_FIRST}.bias")
_OTHERS = (
    ("mtp.", "a multi-token draft of another program"),
    ("medusa", "a Medusa draft"),
)
"""What the names of tensors begin with in drafts of other kinds."""
_RENAMED = (
    ("eagle_layers.", "layers."),
    ("embedding_layernorm.", "input_norm1."),
    ("hidden_states_layernorm.", "input_norm2."),
)
_KINDS: tuple[tuple[str, DraftKind], ...] = (
    ("midlayer.", "eagle3"),
    ("eh_proj.", "mtp"),
    ("hidden_norm.", "dspark"),
)
"""What a name begins with in drafts of one kind only; all others are EAGLE-2."""
_IN_WORDS: Mapping[DraftKind, str] = {
    "eagle2": "EAGLE-2 draft",
    "eagle3": "EAGLE-3 draft",
    "mtp": "multi-token layer",
    "dspark": "DSpark or DFlash draft",
}
_LISTS = re.compile(r"freq_(\d{1,9})\.pt")


def is_draft_checkpoint(folder: Path) -> bool:
    """Whether a folder's weights are those of a draft, of whatever kind, by the names of their tensors."""
    try:
        names = [name.removeprefix("model.") for name in open_weights(folder)]
    except EdgeError:
        return False  # whoever opens it will say what is wrong
    marks = (*(start for start, _ in (*_OTHERS, *_KINDS)), "eagle_layers.", FC, f"{_FIRST}.")
    return any(name.startswith(marks) for name in names)


class DraftCheckpoint:
    """A public draft of `target`, read tensor by tensor under the names of `edge.config.draft`.

    folder: may be that of a training run, in which `MULTI_TOKEN` lies beside the folder `model`, its target.
    config: the draft with its target's head, unless its own was trained with it. source: where it came from,
    in words, by default its path.
    Raises CheckpointError and ConfigError, naming the tensor or the field, for a folder that lacks a file,
    for damaged files, for other kinds of drafts, and for a draft of another target.
    """

    def __init__(self, folder: Path | str, target: ModelConfig, source: str | None = None) -> None:
        self._folder = Path(folder)
        self._where = f"'{self._folder}'"
        self._source = str(self._folder) if source is None else source
        model = self._folder / "model"
        of_run = (self._folder / MULTI_TOKEN).is_file() and (model / CONFIG).is_file()
        self._home = model if of_run else self._folder  # a run's own config.json says how it was trained
        data = read_json(self._home / CONFIG)
        if data is None:
            raise CheckpointError(
                f"{self._where} has no {CONFIG}, so it is no draft; give the folder with the draft's "
                "config.json and weights."
            )
        where = f"'{self._home / CONFIG}'"
        refuse_other_kinds(plain_fields(data), where)
        files = open_weights(self._folder)
        plain = [name.removeprefix("model.") for name in files]
        kinds: list[DraftKind] = [
            kind for start, kind in _KINDS if any(name.startswith(start) for name in plain)
        ]
        self._kind: DraftKind = kinds[0] if kinds else "eagle2"
        self._files = self._named(files)
        self._refuse_others()
        parts = DraftParts(
            kind=self._kind,
            input_norms=EMBEDDING_NORM in self._files,
            attention_norm="layers.0.input_layernorm.weight" in self._files,
            fc_bias=FC_BIAS in self._files or f"{_FIRST}.bias" in self._files,
            named_by_vllm=any("eagle_layers." in name for name in files),
            confidence=CONFIDENCE in self._files,
        )
        self.config: DraftConfig = draft_from_hf(data, parts, target, where)
        self._matrices = self._place(parts)
        self._tensors = [self._matrices[name].info for name in draft_tensors(self.config)]
        for info in self._tensors:
            self._check_shape(info)

    @property
    def source(self) -> str:
        """The hub id or the folder's path."""
        return self._source

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor of the draft, in the order of `draft_tensors`."""
        return self._tensors

    def read(self, name: str) -> npt.NDArray[np.float32] | QuantizedMatrix:
        """One tensor in the scheme that its TensorInfo names."""
        return self._matrices[name].read()

    def read_float32(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32, exactly as the file means it."""
        return self._matrices[name].read_float32()

    def copy_of(self, name: str, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float32] | None:
        """Some rows of EMBEDDING_COPY or HEAD_COPY as float32; None if the draft has no such copy."""
        if name not in self._files or (name == HEAD_COPY and self.config.trained_head):
            return None
        file, stored = self._files[name]
        wanted = (self.config.vocab_size, self.config.hidden_size)
        shape = file.tensors[stored].shape
        if shape != wanted:
            raise CheckpointError(
                f"Tensor '{stored}' of {self._where} has shape {shape_text(shape)}, but its "
                f"configuration asks for {shape_text(wanted)}; they belong to different models."
            )
        return Stored(file, stored, wanted).at(rows)

    @cached_property
    def token_ids(self) -> TokenIds | None:
        """The list of frequent tokens that the weights' file itself has (`token_id_remap`), or the tokens of
        the rows of a head that was trained with the draft (`d2t`); None for neither.
        """
        if self.config.trained_head:
            return self._trained_ids()
        if _REMAP not in self._files:
            return None
        file, stored = self._files[_REMAP]
        values = file.array(stored)
        where = f"Tensor '{stored}' of {self._where}"
        if values.ndim != 1 or values.dtype.kind not in "iu" or not values.size:
            raise CheckpointError(f"{where} is no list of token ids; download the draft again.")
        return checked_ids(values.astype(np.int64), self.config.vocab_size, where)

    def _trained_ids(self) -> TokenIds:
        stored = {name: self._files[name] for name in VOCABULARY if name in self._files}
        arrays = {name: file.array(own) for name, (file, own) in stored.items()}
        rows = self.config.head_rows
        assert rows is not None
        return trained_ids(arrays, rows, self.config.vocab_size, self._where)

    @cached_property
    def frequency_lists(self) -> Mapping[int, Path]:
        """Lists of frequent tokens that lie beside the weights (`freq_N.pt`), by their number of ids."""
        names = ((_LISTS.fullmatch(path.name), path) for path in self._folder.iterdir())
        return dict(sorted((int(match[1]), path) for match, path in names if match))

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name; empty for a draft without, as most are."""
        found = {name: read_small(self._home / name) for name in TOKENIZER_FILES}
        files = {name: data for name, data in found.items() if data is not None}
        return files if any(name in files for name in TOKENIZERS) else {}

    def _named(self, files: Mapping[str, WeightFile]) -> dict[str, tuple[WeightFile, str]]:
        """Our name of every tensor -> its file and its name there."""
        found: dict[str, tuple[WeightFile, str]] = {}
        for stored, file in files.items():
            name = stored.removeprefix("model.")
            for theirs, ours in _RENAMED:
                if name.startswith(theirs):
                    name = ours + name.removeprefix(theirs)
            name = bundle_name(self._kind, name)
            if name in found:
                raise CheckpointError(
                    f"{self._where} has '{name}' twice, in its tensors '{found[name][1]}' and '{stored}'; "
                    "remove the one that is not meant."
                )
            found[name] = (file, stored)
        return found

    def _refuse_others(self) -> None:
        for name, (_, stored) in self._files.items():
            for start, words in _OTHERS:
                if name.startswith(start):
                    raise CheckpointError(f"{self._where} is {words} (tensor '{stored}'); {ONLY}.")

    def _place(self, parts: DraftParts) -> dict[str, Matrix]:
        """Where the tensors of the draft lie; CheckpointError for what has no place in it, or lacks."""
        wanted = draft_tensors(self.config)
        found: dict[str, Matrix] = dict(self._packed())
        beside = (EMBEDDING_COPY, *(VOCABULARY if self.config.trained_head else (_REMAP, HEAD_COPY)))
        fused = self._fused()
        for name, (file, stored) in self._files.items():
            shape = file.tensors[stored].shape
            if self._is_part(name) or name in beside:
                continue
            if name.endswith("rotary_emb.inv_freq") or (name == "norm.weight" and parts.named_by_vllm):
                continue  # vLLM's MiniCPM drafts have a final norm that nothing is put through
            if name == CONFIDENCE and name in wanted:
                self._add(found, name, Flat(name, Stored(file, stored, shape), self._where))
            elif name in wanted or name in _HALVES:
                ours = FC_BIAS if name == f"{_FIRST}.bias" else name
                self._add(found, ours, Plain(ours, Stored(file, stored, shape), self._where))
            elif name in fused:
                start, rows = 0, sum(wanted[each].shape[0] for each in fused[name])
                if shape[:1] != (rows,):
                    raise CheckpointError(
                        f"Tensor '{stored}' of {self._where} has shape {shape_text(shape)}, but its "
                        f"configuration asks for {rows} rows; they belong to different models."
                    )
                for each in fused[name]:
                    rows = wanted[each].shape[0]
                    part = Stored(file, stored, (rows, *shape[1:]), slice(start, start + rows))
                    self._add(found, each, Plain(each, part, self._where))
                    start += rows
            else:
                raise self._unknown(stored)
        self._join_halves(found)
        for name in wanted:
            if name not in found:
                raise CheckpointError(
                    f"{self._where} has no tensor '{public_name(self._kind, name)}', which its configuration "
                    "asks for; the file is incomplete or belongs to another draft."
                )
        return found

    def _unknown(self, stored: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where} has a tensor '{stored}', which no {_IN_WORDS[self._kind]} of this shape has; "
            "running without it would give wrong guesses."
        )

    def _add(self, found: dict[str, Matrix], name: str, matrix: Matrix) -> None:
        if name in found:
            raise CheckpointError(
                f"{self._where} has '{name}' twice, in one tensor with others and alone; remove the one that "
                "is not meant."
            )
        found[name] = matrix

    def _join_halves(self, found: dict[str, Matrix]) -> None:
        """Put fc in its place if it came in two halves."""
        halves = [found.pop(f"{stem}.weight", None) for stem in (_FIRST, _SECOND)]
        first, second = halves
        if first is not None and second is not None:
            self._add(found, FC, SideBySide(FC, first, second, self._where))
        elif first is not None or second is not None:
            lacks = _FIRST if first is None else _SECOND
            raise CheckpointError(
                f"{self._where} has no tensor '{lacks}.weight', one of fc's two halves; download the draft "
                "again."
            )

    def _fused(self) -> dict[str, list[str]]:
        """Names of tensors that hold several -> the names of those, in their order."""
        found: dict[str, list[str]] = {}
        for layer in range(self.config.num_hidden_layers):
            for role in DECODER:
                if role.fused is not None:
                    whole = f"layers.{layer}.{role.fused}"
                    found.setdefault(whole, []).append(f"layers.{layer}.{role.name}")
        return found

    def _is_part(self, name: str) -> bool:
        """Whether a tensor belongs to a packed matrix: a part of it, or the zeros that some packers add."""
        stem, _, part = name.rpartition(".")
        if f"{stem}.qweight" not in self._files or name == FC_BIAS:
            return False
        file, stored = self._files[name]
        return part in PARTS or (part == "bias" and not file.read_float32(stored).any())

    def _packed(self) -> dict[str, Matrix]:
        """Name of a weight -> its 4-bit matrix; fused ones are taken apart."""
        entry = quantization_config(self._home)
        packed = [name for name in self._files if name.endswith(".qweight")]
        if bool(packed) != (entry is not None):
            has = "packed 4-bit weights but no" if packed else "plain weights but a"
            raise CheckpointError(
                f"{self._where} has {has} 'quantization_config'; its files do not belong together."
            )
        if entry is None:
            return {}
        settings = Int4Settings.from_config(entry, self._where)
        wanted, fused = draft_tensors(self.config), self._fused()
        found: dict[str, Matrix] = {}
        for name in packed:
            stem = name.removesuffix(".qweight")
            parts = fused.get(f"{stem}.weight", [f"{stem}.weight"])
            if any(each not in wanted for each in parts):
                raise self._unknown(self._files[name][1])
            sizes = [wanted[each].shape[0] for each in parts]
            columns = wanted[parts[0]].shape[1]
            if parts == [FC] and self._halves_side_by_side(columns // 2):
                found[FC] = self._open_halves(settings, columns // 2)
                continue
            whole = self._open_int4(stem, sum(sizes), columns, settings)
            start = 0
            for each, size in zip(parts, sizes, strict=True):
                rows = slice(start, start + size)
                found[each] = Packed(each, whole if len(parts) == 1 else whole.rows(rows))
                start += size
        return found

    def _open_int4(
        self, stem: str, rows: int, columns: int, settings: Int4Settings, half: int | None = None
    ) -> Int4Linear:
        """A packed matrix. half: which half of the numbers' last axis is meant, None for all."""

        def cut(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            middle = values.shape[-1] // 2
            return values if half is None else values[..., half * middle : (half + 1) * middle]

        def read(name: str) -> npt.NDArray[Any]:
            file, stored = self._files[name]
            return cut(file.array(stored))

        entries = {}
        for name, (file, stored) in self._files.items():
            dtype, shape = file.tensors[stored]
            if half is not None and name.startswith(f"{stem}."):
                shape = (*shape[:-1], shape[-1] // 2)
            entries[name] = TensorEntry(dtype, shape)
        return open_int4(stem, rows, columns, settings, entries, read, self._where)

    def _halves_side_by_side(self, columns: int) -> bool:
        """CPM.cu packs each half of fc, of so many columns, by itself and puts the numbers side by side."""
        file, stored = self._files["fc.qweight"]
        return file.tensors[stored].shape == (columns // 16, 4 * self.config.hidden_size)

    def _open_halves(self, settings: Int4Settings, columns: int) -> Matrix:
        rows = self.config.hidden_size
        first, second = (self._open_int4("fc", rows, columns, settings, half) for half in (0, 1))
        return SideBySide(FC, Packed(_FIRST, first), Packed(_SECOND, second), self._where)

    def _check_shape(self, info: TensorInfo) -> None:
        wanted = draft_tensors(self.config)[info.name].shape
        if info.shape == wanted:
            return
        raise CheckpointError(
            f"Tensor '{public_name(self._kind, info.name)}' of {self._where} has shape "
            f"{shape_text(info.shape)}, but its configuration asks for {shape_text(wanted)}; weights and "
            "configuration belong to different drafts."
        )
