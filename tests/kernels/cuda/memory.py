"""Arrays to a device and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.executors.cuda.device import Address, Device


def sent(device: Device, values: npt.NDArray[Any]) -> Address:
    """The address of a copy."""
    address = device.allocate(max(values.nbytes, 1))
    device.upload(address, values)
    return address


def fetched(
    device: Device, address: Address, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """The array that stands there."""
    found = np.empty(shape, dtype)
    device.download(address, found)
    return found
