# SPDX-License-Identifier: Apache-2.0
"""Element types of rows and of arrays on the wire.

NumPy has no bfloat16, so a bf16 array is carried as uint16 bit patterns; `widen` and `narrow` turn
any of the three into float32 and back (round to nearest even). Thread safety: pure functions.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rowhouse.error import InvalidRequestError
from rowhouse.v1 import rowhouse_pb2 as pb

FLOAT32: Final = int(pb.DTYPE_FLOAT32)
FLOAT16: Final = int(pb.DTYPE_FLOAT16)
BFLOAT16: Final = int(pb.DTYPE_BFLOAT16)

CODES: Final = {"fp32": FLOAT32, "fp16": FLOAT16, "bf16": BFLOAT16}
"""Wire code of each name that a config may use."""

NAMES: Final = {code: name for name, code in CODES.items()}

STORAGE: Final[dict[int, np.dtype[Any]]] = {
    FLOAT32: np.dtype("<f4"), FLOAT16: np.dtype("<f2"), BFLOAT16: np.dtype("<u2"),
}  # fmt: skip
"""NumPy dtype that carries each code's elements."""


def widen(array: NDArray[Any], code: int) -> NDArray[np.float32]:
    """Elements of `array` (dtype STORAGE[code]) as float32; float32 input is returned as it is."""
    if code == BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def narrow(array: NDArray[np.float32], code: int, what: str | None = None) -> NDArray[Any]:
    """float32 `array` as STORAGE[code], rounded to nearest even; float32 is returned as it is.

    Parameters
    ----------
    array
        float32 of any shape.
    code
        One of NAMES.
    what
        None: what is too large for the narrow dtype becomes an infinity. Else its name, for the
        InvalidRequestError that is raised for it.
    """
    with np.errstate(over="ignore" if what is None else "raise"):
        try:
            narrowed = _to_bfloat16(array) if code == BFLOAT16 else array.astype(STORAGE[code], copy=False)
        except FloatingPointError:
            narrowed = None
    if narrowed is None or (what is not None and code == BFLOAT16 and _grew_infinite(array, narrowed)):
        largest = float(np.abs(array[np.isfinite(array)]).max())
        raise InvalidRequestError(f"{what}: an element is {largest:g}, too large for {NAMES[code]}; use fp32")
    return narrowed


def _to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # a NaN keeps its sign and stays a NaN
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)


def _grew_infinite(array: NDArray[np.float32], narrowed: NDArray[np.uint16]) -> bool:
    return bool((((narrowed & 0x7FFF) == 0x7F80) & np.isfinite(array)).any())
