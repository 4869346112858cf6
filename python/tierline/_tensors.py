"""NumPy arrays as the Open Inference Protocol writes them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_NAMES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    # Of the package ml_dtypes.
    "bfloat16": "BF16",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items() if dtype != "bfloat16"}


def datatype(array: npt.NDArray[Any]) -> str:
    """The protocol's name of an array's element type."""
    if array.dtype.kind in "SUO":
        return "BYTES"
    name = _NAMES.get(array.dtype.name)
    if name is None:
        raise TypeError(f"arrays of {array.dtype} can't be sent; use one of {', '.join(sorted(_NAMES))} or strings")
    return name


def encode(array: npt.NDArray[Any]) -> bytes:
    """Elements in order, little-endian; strings behind their lengths."""
    if datatype(array) != "BYTES":
        ordered = np.ascontiguousarray(array)
        if ordered.dtype.byteorder == ">":
            ordered = ordered.astype(ordered.dtype.newbyteorder("<"))
        return ordered.tobytes()
    parts = []
    for item in array.reshape(-1):
        text = item if isinstance(item, bytes) else str(item).encode()
        parts += [struct.pack("<I", len(text)), text]
    return b"".join(parts)


def decode(data: bytes, name: str, shape: list[int]) -> npt.NDArray[Any]:
    """The array of so many elements. Strings come as `object` arrays of bytes,
    BF16 as `float32`, which holds every such number."""
    if name == "BYTES":
        items, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            items.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array.reshape(shape)
    if name == "BF16":
        halves = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    if name not in _TYPES:
        raise TypeError(f"elements of {name} are unknown here; update the package")
    dtype = np.dtype(_TYPES[name]).newbyteorder("<")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def of_json(values: list[Any], name: str, shape: list[int]) -> npt.NDArray[Any]:
    """The array of elements that came as JSON."""
    if name == "BYTES":
        array = np.empty(len(values), dtype=object)
        array[:] = [value.encode() if isinstance(value, str) else value for value in values]
        return array.reshape(shape)
    dtype = np.dtype(np.float32 if name == "BF16" else _TYPES[name])
    return np.array(values, dtype=dtype).reshape(shape)
