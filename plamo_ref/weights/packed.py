"""A quantized weight of a folder: read, and held against what its scheme says.

Invariant: what is returned is of the shape that config.json calls for, and every number is finite.
"""

import torch
from torch import Tensor

from plamo_ref.intake.checkpoint_files import PackedEntry, TensorEntry, fail, open_file
from plamo_ref.quantization.folder import from_tensors, obstacle
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.quantization.weight import FP8, QuantizedWeight
from plamo_ref.weights.device import is_finite


def read_packed(
    entry: PackedEntry, quantization: str | None, shape: torch.Size, device: torch.device | str
) -> QuantizedWeight:
    """The weight of so many rows and columns as it is stored.

    Raises:
        CheckpointError: its tensors do not stand for one, or NaN or infinity in it.
    """
    assert quantization is not None
    scheme, (rows, columns) = SCHEMES[quantization], shape
    values, scale = (_whole(part).to(device) for part in (entry.values, entry.scale))
    wrong = obstacle(values, scale, rows, columns, scheme) or _not_finite(values, scale)
    if wrong:
        asked = f"a weight {[rows, columns]} as {quantization} stores it"
        fail(entry.values.file, entry.values.name, asked, wrong)
    return from_tensors(values, scale, columns, scheme)


def _whole(entry: TensorEntry) -> Tensor:
    with open_file(entry.file) as file:
        found: Tensor = file.get_tensor(entry.name)
    return found


def _not_finite(values: Tensor, scale: Tensor) -> str:
    if not is_finite(scale):
        return "a scale that is NaN or infinite"
    nan = values.dtype == FP8 and bool((values.view(torch.uint8) & 127 == 127).any())
    return "NaN" if nan else ""
