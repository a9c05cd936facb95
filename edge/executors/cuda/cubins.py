"""Finds the kernels that `make cubins` built, chooses what a device takes, and reads it."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from pathlib import Path

import edge
from edge.errors import NativeError
from edge.executors.cuda.device import DeviceFacts
from edge.executors.cuda.manifest import ADVICE, MANIFEST, Kernel, Manifest, Variant, cuda_version
from edge.formats.model_folder import read_regular

FOLDER_VARIABLE = "EDGE_CUBINS"
"""Environment variable with the path of another folder of built kernels."""

_LARGEST_IMAGE = 16 << 20
_LARGEST_ARCHIVE = 512 << 20


def cubins_folder() -> Path:
    """Where the built kernels are: what EDGE_CUBINS names, those in this package, or those of this checkout;
    NativeError if they are nowhere.
    """
    override = os.environ.get(FOLDER_VARIABLE)
    if override:
        return Path(override)
    packages = [Path(folder) for folder in edge.__path__]
    checkouts = [path.parent for path in packages if (path / "kernels" / "build.py").is_file()]
    places = [path / "executors" / "cuda" / "built" for path in packages]
    places += [path / "build" / "cubins" for path in checkouts]
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    raise NativeError(
        "The CUDA kernels are not built: run `make cubins` in a checkout of the project, or install a wheel "
        "that has them."
    )


class Cubins:
    """Built kernels. Make one with `Cubins.open`. folder: where they are. manifest: what there is."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._archives: dict[str, zipfile.ZipFile] = {}

    @classmethod
    def open(cls, folder: Path | None = None) -> Cubins:
        """Those in `folder`, or where they usually are; NativeError if there are none or they are damaged."""
        place = cubins_folder() if folder is None else folder
        path = place / MANIFEST
        try:
            data = read_regular(path)
        except OSError as error:
            raise NativeError(f"'{path}' can't be read ({error.strerror or error}); {ADVICE}.") from None
        return cls(place, Manifest.parse(data, path))

    def kernel(self, id: str) -> Kernel:
        """One of them; NativeError if it was not built."""
        found = self.manifest.kernels.get(id)
        if found is None:
            raise NativeError(f"The kernel {id} is not among those in '{self.folder}'; {ADVICE}.")
        return found

    def choose(self, kernel: Kernel, facts: DeviceFacts, driver: int) -> Variant:
        """What a device takes of a kernel: a cubin of its own, one of an earlier device of its kind, or PTX.

        driver: the number that the driver gives as its own. NativeError if nothing is right for it.
        """
        built = [self.manifest.variants[name] for name in kernel.images]
        fitting = [variant for variant in built if variant.fits(facts)]
        usable = [variant for variant in fitting if variant.driver <= driver]
        if usable:
            return max(usable, key=lambda each: (not each.is_ptx, each.architecture))
        if fitting:
            needed = min(variant.driver for variant in fitting)
            raise NativeError(
                f"The NVIDIA driver knows CUDA {cuda_version(driver)}, and the kernels need "
                f"{cuda_version(needed)} or newer; update the driver."
            )
        major, minor = divmod(facts.architecture, 10)
        capability = f"{facts.name} has compute capability {major}.{minor}"
        least = min((each.architecture for each in built if each.is_ptx), default=0)
        if facts.architecture < least:
            raise NativeError(
                f"{capability}, and the kernels need {least // 10}.{least % 10} or newer; use another device."
            )
        there = ", ".join(variant.name for variant in built) or "nothing"
        raise NativeError(f"{capability}, and the kernel {kernel.id} was built for {there}; {ADVICE}.")

    def image(self, kernel: Kernel, variant: Variant) -> bytes:
        """A cubin, or the text of PTX; NativeError if it is not what the manifest says."""
        path, member = self.folder / variant.file, variant.member(kernel.id)
        try:
            if variant.name not in self._archives:
                data = read_regular(path, _LARGEST_ARCHIVE)
                self._archives[variant.name] = zipfile.ZipFile(io.BytesIO(data))
            archive = self._archives[variant.name]
            if archive.getinfo(member).file_size > _LARGEST_IMAGE:
                raise ValueError("it is too large")
            image = archive.read(member)
        except KeyError:
            raise NativeError(f"'{path}' lacks {member}; {ADVICE}.") from None
        except OSError as error:
            raise NativeError(f"'{path}' can't be read ({error.strerror or error}); {ADVICE}.") from None
        except (ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise NativeError(f"'{path}' is damaged ({error}); {ADVICE}.") from None
        if hashlib.sha256(image).hexdigest() != kernel.images[variant.name]:
            raise NativeError(f"{member} in '{path}' is not what {MANIFEST} says; {ADVICE}.")
        return image
