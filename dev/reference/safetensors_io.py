"""Reading and writing safetensors files with NumPy alone.

Format: 8 bytes little-endian length of the header, a JSON header
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the raw little-endian tensors.
"""

import json
import struct

import numpy as np

DTYPES = {"F64": np.float64, "F32": np.float32, "I32": np.int32}


def save(path, tensors):
    """Writes {name: array}. float64, float32 and int32 stay, int64 becomes int32."""
    header, blobs, offset = {}, [], 0
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if array.dtype == np.int64:
            if array.size and np.abs(array).max() > np.iinfo(np.int32).max:
                raise ValueError(f"{name}: value does not fit into int32")
            array = array.astype(np.int32)
        dtype = [key for key, kind in DTYPES.items() if kind == array.dtype]
        if not dtype:
            raise ValueError(f"{name}: dtype {array.dtype} is not supported")
        blob = array.astype(array.dtype.newbyteorder("<")).tobytes()  # row-major
        header[name] = {"dtype": dtype[0], "shape": list(array.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load(path):
    """Returns {name: array}."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<")
        tensors[name] = np.frombuffer(data[begin:end], kind).reshape(entry["shape"]).copy()
    return tensors
