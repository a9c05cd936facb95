"""What was built: `manifest.json` beside the archives of kernels, written by `make cubins` and read here.

An archive holds the images of all kernels for one kind of device (a variant): `sm_87.zip` cubins for compute
capability 8.7, `compute_80.zip` PTX that a driver compiles for anything from 8.0 on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import NativeError
from edge.executors.cuda.device import DeviceFacts
from edge.formats.guarded_json import parse_object
from edge.formats.names import accept_name

MANIFEST = "manifest.json"
SCHEMA = 1
ADVICE = "build the CUDA kernels again with `make cubins`"
WIDTHS = {"i32": 4, "i64": 8, "fp32": 4}
"""Bytes of an argument that is no address, by its type."""

_VARIANT = re.compile(r"(sm|compute)_([0-9]{2,3})")
_SYMBOL = re.compile(r"[A-Za-z_]\w{0,199}", re.ASCII)
_POINTER = re.compile(r"\*[a-z0-9]{2,8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_SHARED = 1 << 20


def cuda_version(number: int) -> str:
    """A driver's number, 12060, as people say it: 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"


@dataclass(frozen=True)
class Variant:
    """One kind of image. name: `sm_87`, or `compute_80` for PTX. driver: the least number that a driver must
    give as its own (12060 is CUDA 12.6) to take it.
    """

    name: str
    driver: int

    def __post_init__(self) -> None:
        _require(_VARIANT.fullmatch(self.name) and self.driver > 0, "variant")

    @property
    def architecture(self) -> int:
        """The compute capability that it is for, of PTX the least one, as 87."""
        return int(self.name.partition("_")[2])

    @property
    def is_ptx(self) -> bool:
        """Whether the driver compiles it."""
        return self.name.startswith("compute_")

    @property
    def file(self) -> str:
        """The archive."""
        return f"{self.name}.zip"

    def member(self, kernel: str) -> str:
        """The name of a kernel's image in the archive."""
        return f"{kernel}.{'ptx' if self.is_ptx else 'cubin'}"

    def fits(self, facts: DeviceFacts) -> bool:
        """Whether it runs on that device. A cubin also runs on later devices of the same major version, but
        not on Jetson's, which take no other than their own.
        """
        if self.is_ptx:
            return facts.architecture >= self.architecture
        if facts.integrated:
            return facts.architecture == self.architecture
        same = facts.architecture // 10 == self.architecture // 10
        return same and facts.architecture >= self.architecture


@dataclass(frozen=True)
class Kernel:
    """One kernel that can be launched.

    symbol: its name inside an image. signature: type of every argument by name, in order. aligned: those that
    must be multiples of 16, beside all addresses. warps: of a block, 32 threads each. shared: bytes of
    dynamic shared memory. scratch: addresses that follow the arguments and are 0. sources: digest of all that
    it was compiled from. images: SHA-256 by name of the variant.
    """

    id: str
    symbol: str
    signature: Mapping[str, str]
    aligned: tuple[str, ...]
    warps: int
    shared: int
    scratch: int
    sources: str
    images: Mapping[str, str]

    def __post_init__(self) -> None:
        accept_name(self.id, "it", NativeError)
        _require(_SYMBOL.fullmatch(self.symbol), "symbol")
        kinds = self.signature.values()
        _require(all(kind in WIDTHS or _POINTER.fullmatch(kind) for kind in kinds), "signature")
        _require({self.signature.get(name, "") for name in self.aligned} <= {"i32", "i64"}, "aligned")
        _require(self.warps in (1, 2, 4, 8, 16, 32), "warps")
        _require(0 <= self.shared <= _MOST_SHARED, "shared")
        _require(0 <= self.scratch <= 8, "scratch")
        _require(all(_DIGEST.fullmatch(each) for each in (self.sources, *self.images.values())), "digest")


@dataclass(frozen=True)
class Manifest:
    """All kernels, and the variants that there are archives of."""

    variants: Mapping[str, Variant]
    kernels: Mapping[str, Kernel]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        kernels = {
            kernel.id: {
                **{name: value for name, value in vars(kernel).items() if name != "id"},
                "signature": [[name, kind] for name, kind in kernel.signature.items()],
                "aligned": list(kernel.aligned),
                "images": dict(kernel.images),
            }
            for kernel in self.kernels.values()
        }
        variants = {variant.name: {"driver": variant.driver} for variant in self.variants.values()}
        return {"schema": SCHEMA, "variants": variants, "kernels": kernels}

    @classmethod
    def parse(cls, data: bytes, where: Path) -> Manifest:
        """The manifest in a file's bytes; NativeError, with one sentence, for anything else."""
        found = parse_object(data, where, NativeError, ADVICE)
        if found.get("schema") != SCHEMA:
            raise NativeError(
                f"'{where}' has the schema {found.get('schema')!r}, this version reads {SCHEMA}; {ADVICE}."
            )
        try:
            variants = {
                name: Variant(name, _whole(facts["driver"])) for name, facts in found["variants"].items()
            }
            kernels = {id: _kernel(id, facts) for id, facts in found["kernels"].items()}
            _require(all(set(kernel.images) <= set(variants) for kernel in kernels.values()), "images")
        except KeyError as error:
            raise NativeError(f"'{where}' lacks {error}; {ADVICE}.") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise NativeError(f"'{where}' is not what this version writes ({error}); {ADVICE}.") from None
        return cls(variants, kernels)


def _kernel(id: str, facts: Mapping[str, Any]) -> Kernel:
    pairs = [(_text(name), _text(kind)) for name, kind in facts["signature"]]
    _require(len(dict(pairs)) == len(pairs), "signature")
    return Kernel(
        id=id,
        symbol=_text(facts["symbol"]),
        signature=dict(pairs),
        aligned=tuple(_text(name) for name in facts["aligned"]),
        warps=_whole(facts["warps"]),
        shared=_whole(facts["shared"]),
        scratch=_whole(facts["scratch"]),
        sources=_text(facts["sources"]),
        images={_text(name): _text(digest) for name, digest in facts["images"].items()},
    )


def _require(sound: object, field: str) -> None:
    if not sound:
        raise ValueError(f"field '{field}'")


def _text(value: Any) -> str:
    _require(isinstance(value, str), f"{value!r:.80}")
    return str(value)


def _whole(value: Any) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool), f"{value!r:.80}")
    return int(value)
