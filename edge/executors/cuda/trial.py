"""Small arrays on a device for a check of one operator, freed at its end."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import NativeError
from edge.executors.cuda.device import Address, Device


class Trial:
    """A context manager; `device` is what the operator is given."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._addresses: list[Address] = []

    def room(self, size: int) -> Address:
        """So many bytes of zeros."""
        self._addresses.append(self.device.allocate(size))
        return self._addresses[-1]

    def sent(self, values: npt.NDArray[Any]) -> Address:
        """A copy of an array."""
        address = self.room(values.nbytes)
        self.device.upload(address, values)
        return address

    def expect(self, address: Address, wanted: npt.NDArray[Any], tolerance: float = 0.0) -> None:
        """NativeError unless the array there differs by `tolerance` of the largest value at most."""
        found = np.empty_like(wanted, order="C")
        self.device.download(address, found)
        difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
        if not difference <= tolerance * np.abs(wanted).max():  # nor is a NaN small
            raise NativeError(f"the largest difference from the right values is {difference:g}")

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # after a failure of the GPU nothing can be freed; closing it does
            for address in self._addresses:
                self.device.free(address)
