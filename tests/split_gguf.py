"""Splits GGUF files with the gguf package's own writer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def split_gguf(path: Path, out: Path, tensors: int, **options: bool) -> list[Path]:
    """Write `out` in parts of up to so many tensors; options: of `gguf.GGUFWriter`. Returns the parts."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture, split_max_tensors=tensors, **options)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            item = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(out.parent.glob(f"{out.stem}-*-of-*.gguf"))
