"""The model that a target lowers: a bundle, read one tensor at a time.

Whatever a person names becomes a bundle first, through the cache of converted models: an export that was
interrupted finds it there and does not quantize again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig, SparseConfig
from edge.config.attention import Selection, asked_attention, resolve_attention, with_selection
from edge.config.families import family_of
from edge.config.fields import listed, unique
from edge.config.roles import DECODER, QK_NORMS, QKV_BIASES
from edge.config.tensors import parts_beyond
from edge.errors import ExportError, TokenizerError
from edge.export.calibration import calibration
from edge.export.options import DEFAULT_HEAD, ExportOptions, named_scheme
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles, PlannedDraft
from edge.formats.guarded_json import parse_object
from edge.hub.convert import Progress
from edge.quant.layout import TILE_ROWS
from edge.quant.packing import dequantize, unpack
from edge.quant.scheme import QuantizedMatrix
from edge.text.end_tokens import named_token
from edge.text.tokenizer.base import Tokenizer
from edge.text.tokenizer.load import open_tokenizer

if TYPE_CHECKING:
    from edge.export.quantize import QuantizeOptions

_BLOCK_WEIGHTS = 1 << 22


def check_parts(config: ModelConfig, what: str) -> None:
    """Raise ExportError for a network with parts that no target computes; what: the sentence's subject.

    Biases and norms of q and k are computed where they are all there.
    """
    own = {(role.name, role.shape) for role in family_of(config).roles}
    groups = [{(role.name, role.shape) for role in roles} for roles in (DECODER, QKV_BIASES, QK_NORMS)]
    computed = groups[0].union(*(group for group in groups[1:] if group <= own))
    parts = parts_beyond(config, lambda role: (role.name, role.shape) in computed)
    if parts:
        raise ExportError(
            f"{what} can't deal with {listed(parts)}, which this {config.model_type} network has; run it "
            "with --executor torch."
        )


class Source:
    """A bundle as targets see it. Tensor names and row order are those of `edge.config.tensors`.

    report: what a quantizer wrote about the error of every layer, as JSON. eos: end tokens beside the model's
    own, by text or id. draft: what goes beside it for speculation.
    """

    def __init__(
        self,
        bundle: Bundle,
        report: bytes | None = None,
        eos: tuple[str, ...] = (),
        draft: DraftFiles | PlannedDraft | None = None,
    ) -> None:
        self.bundle = bundle
        self.report = report
        self.eos = eos
        self.draft = draft

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Opened; TokenizerError when it is missing or contradicts the vocabulary."""
        return open_tokenizer(self.bundle)

    def selecting(self, selection: Selection | None) -> Source:
        """The same with the constants of somebody's choice of blocks, which the artifact will name."""
        config = with_selection(self.bundle.config, selection)
        return Source(self.bundle.with_config(config), self.report, self.eos, self.draft)

    @property
    def config(self) -> ModelConfig:
        """The network, with every end token of the model, whichever of its files names it."""
        more = [named_token(self.tokenizer, token) for token in self.eos]
        return replace(self.bundle.config, eos_token_ids=unique([*self.tokenizer.end_tokens, *more]))

    @property
    def name(self) -> str:
        """Where the weights came from, in words; of a path only its last part, which is nobody's secret."""
        source = self.bundle.manifest.source
        return Path(source).name if Path(source).is_absolute() else source

    @property
    def sha256(self) -> str:
        """Hex digest of what is exported: config, tensors and every file of the bundle."""
        return self.bundle.content_hash

    @property
    def tensors(self) -> Mapping[str, BundleTensor]:
        """Shape and scheme of every tensor, in the order in which decoding reads them."""
        return self.bundle.tensors

    def layers_with(self, name: str) -> int:
        """How many layers have a tensor of this name inside the layer."""
        return sum(
            f"model.layers.{layer}.{name}" in self.tensors for layer in range(self.config.num_hidden_layers)
        )

    def tensor(self, name: str) -> npt.NDArray[np.floating[Any]] | QuantizedMatrix:
        """One tensor in plain order: codes and scales, float16 [rows, columns], or a float32 norm [n]."""
        info = self.tensors[name]
        plain = unpack(self.bundle.data(name), info.scheme, info.rows, info.columns)
        return plain.reshape(info.shape) if isinstance(plain, np.ndarray) else plain

    def row_blocks(self, name: str) -> Iterator[npt.NDArray[np.floating[Any]] | QuantizedMatrix]:
        """A matrix in plain order, some rows at a time, so that a large head never exists twice."""
        info, data = self.tensors[name], self.bundle.data(name)
        # Tiles stand one after another; two of them take a multiple of the padding in every scheme.
        step = max(_BLOCK_WEIGHTS // info.columns // (2 * TILE_ROWS), 1) * 2 * TILE_ROWS
        whole = info.scheme.packed_bytes(step, info.columns)
        for index, start in enumerate(range(0, info.rows, step)):
            rows = min(step, info.rows - start)
            part = data[index * whole : index * whole + info.scheme.packed_bytes(rows, info.columns)]
            yield unpack(part, info.scheme, rows, info.columns)

    def packed(self, name: str) -> npt.NDArray[np.uint8]:
        """One tensor in the canonical layout of `edge.quant.packing`, mapped and read-only, padded to 64
        bytes.
        """
        return self.bundle.data(name)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32 in its own shape."""
        info = self.tensors[name]
        return dequantize(self.bundle.data(name), info.scheme, info.rows, info.columns).reshape(info.shape)

    def context(self, options: ExportOptions) -> int:
        """The context in tokens that the artifact is made for; ContextError beyond the trained one."""
        tokens = self.config.longest_context if options.context is None else options.context
        self.config.check_context(tokens)
        return tokens

    def sparse(self, options: ExportOptions, obstacle: str | None = None) -> SparseConfig | None:
        """The constants of sparse attention, None for dense; obstacle: why the target can't run it, if so."""
        mode = asked_attention(options.attention, options.selection)
        return resolve_attention(self.config, mode, context=self.context(options), obstacle=obstacle)

    def check_parts(self, target: str) -> None:
        """Raise ExportError for a network with parts that a target does not compute."""
        check_parts(self.config, target)

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name. Of a tokenizer.json, added tokens are left out that the embedding
        has no row for: another runtime would read beyond its end.
        """
        files = self.bundle.tokenizer_files
        data = files.get("tokenizer.json", b"{}")
        document = parse_object(data, "tokenizer.json", TokenizerError, "get the model's files again")
        tokens = document.get("added_tokens") or []
        kept = [token for token in tokens if token["id"] < self.bundle.config.vocab_size]
        if len(kept) == len(tokens):
            return files
        return files | {"tokenizer.json": json.dumps({**document, "added_tokens": kept}).encode()}

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, or None."""
        return self.bundle.chat_template

    @property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling settings with all of its end tokens, or an empty dict."""
        own = self.bundle.generation_config
        return {**own, "eos_token_id": list(self.config.eos_token_ids)} if own else {}


def open_source(
    model: str,
    options: ExportOptions,
    progress: Progress | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
) -> Source:
    """Open and, where asked for, quantize what a person names (see `edge.hub.resolve.open_model`).

    Rounding to nearest needs no torch; calibrated and ternary quantization do.
    """
    from edge.hub.drafts import open_draft
    from edge.hub.resolve import open_bundle

    hub: dict[str, Any] = {"revision": revision, "offline": offline}
    if options.calibrated or _packs_trained(model, options):
        source = _quantized(model, options, progress, hub)
    else:
        source = Source(open_bundle(model, **_rounding(options), progress=progress, **hub), eos=options.eos)
    if options.draft is not None:
        wanted = options.draft_vocabulary
        source.draft = open_draft(
            options.draft, source.bundle, vocabulary=wanted, offline=offline, progress=progress
        )
    return source


def plan_source(
    model: str,
    options: ExportOptions,
    progress: Progress | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
) -> Source:
    """What `open_source` would open, for a plan: nothing is quantized, and there may be no weights.

    Reading a tensor of it can raise UnreadWeightsError. Only reading tells whether weights are ternary, so
    for ternary quantization this is `open_source`.
    """
    from edge.hub.drafts import plan_draft
    from edge.hub.resolve import plan_model

    if _packs_trained(model, options):
        return open_source(model, options, progress, revision=revision, offline=offline)
    bundle = plan_model(model, **_rounding(options), progress=progress, revision=revision, offline=offline)
    draft = None
    if options.draft is not None:
        wanted = options.draft_vocabulary
        draft = plan_draft(options.draft, bundle, vocabulary=wanted, offline=offline, progress=progress)
    return Source(bundle, eos=options.eos, draft=draft)


def _packs_trained(model: str, options: ExportOptions) -> bool:
    """Whether weights are looked for that were trained in their codes (ternary); random ones are made so."""
    from edge.hub.resolve import RANDOM

    scheme = named_scheme(options.quantize)
    return scheme is not None and scheme.declared.trained and not model.startswith(RANDOM)


def _rounding(options: ExportOptions) -> dict[str, Any]:
    """Arguments of `edge.hub.resolve.open_model`; calibrated methods give tensors of the same shapes."""
    scheme = named_scheme(options.quantize)
    head = None if scheme is None else options.head or (scheme.kind if scheme.is_float else DEFAULT_HEAD)
    return {"quantize": options.quantize, "head": head}


def quantizing_memory(source: Source, options: ExportOptions) -> int:
    """An estimate of the memory that `open_source` needs, in bytes; 0 where nothing is calibrated.

    Raises ExportError for a calibration text that can't be read or is too short.
    """
    if not options.calibrated:
        return 0
    wanted = _quantize_options(options)
    calibration(source, wanted.calibration, wanted.sequences, wanted.length)
    return wanted.memory(source.config)


def _quantized(model: str, options: ExportOptions, progress: Progress | None, hub: dict[str, Any]) -> Source:
    """What `edge.export.quantize` makes, from the cache if it is there."""
    from edge.hub.resolve import open_checkpoint
    from edge.hub.store import cached_bundle, remove_cached

    wanted = _quantize_options(options)
    from edge.export.quantize import VERSION, quantize_checkpoint, report_path

    checkpoint, key = open_checkpoint(model, progress=progress, **hub)
    facts: dict[str, Any] = {**asdict(wanted), "calibration": None, "version": VERSION}
    if wanted.is_calibrated:
        text = calibration(checkpoint, wanted.calibration, wanted.sequences, wanted.length)
        facts |= {"calibration": text.sha256, "torch": version("torch")}
    key = replace(key, facts={**key.facts, "export": facts})

    def build(out: Path) -> None:
        quantize_checkpoint(checkpoint, out, wanted, progress)

    bundle = cached_bundle(key, build)
    report = report_path(bundle.path)
    if not report.is_file():  # a run was killed between the two
        remove_cached(bundle.path.name)
        bundle = cached_bundle(key, build)
    return Source(bundle, report.read_bytes(), options.eos)


def _quantize_options(options: ExportOptions) -> QuantizeOptions:
    try:
        from edge.export.quantize import QuantizeOptions
    except ImportError as error:
        raise ExportError(
            f"Calibrated and ternary quantization need PyTorch ({error}); install it with "
            "`pip install 'minicpm-edge[export]'`."
        ) from error
    return QuantizeOptions(
        quantize=str(options.quantize),
        method=options.method,
        smooth=options.smooth,
        calibration=options.calibration,
        head=options.head or DEFAULT_HEAD,
    )
