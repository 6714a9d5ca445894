"""What a checkpoint's files hold, read from their headers before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safetensors import SafetensorError, safe_open


def check_files(files: Sequence[str] | None, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse files that are cut off or hold a factor of another shape; transformers names neither in its error.

    Args:
        files: the checkpoint's files, `None` where transformers 4 does not tell. Only safetensors are read.
        shapes: of the tensors of two-factor layers, by name.

    Raises:
        ValueError: naming the file, and the tensor with both shapes.
    """
    for file in files or ():
        if not file.endswith(".safetensors"):
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                found = {key: opened.get_slice(key).get_shape() for key in opened.keys() if key in shapes}
        except SafetensorError as error:
            raise ValueError(f"'{file}' is damaged or cut off ({error}). Save or download it again.") from error
        for key, shape in found.items():
            if list(shape) != list(shapes[key]):
                raise ValueError(
                    f"Tensor '{key}' in '{file}' has shape {list(shape)}; config.json makes it {list(shapes[key])}. "
                    "The two files are of different saves, or one is damaged. Save or download both again."
                )
