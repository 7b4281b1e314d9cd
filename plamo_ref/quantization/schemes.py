"""The schemes by name, which weights they are for, and how many bytes these then have.

    scheme            a weight                          activations                     bytes
    fp8               e4m3, a scale for each output     e4m3, a scale for each token    1
    fp8_tensor        e4m3, a scale for all of it       e4m3, a scale for each token    1
    fp8_weight_only   e4m3, a scale for each output     as they are                     1
    int8              whole, a scale for each output    as they are                     1
    int4              whole, a scale for 128 inputs     as they are                     0.516

A decode step reads every weight once, so its time is that of these bytes. fp8 multiplies in fp8 as
well, which is what a prompt gains from. A scale for each token is found where a program has a whole
row of activations: in the norm before a product, and in SwiGLU where that is a pass of its own
(beyond 64 tokens). Behind the scan, the attention and a product with SwiGLU it costs a kernel: two
of a layer's four products have one, with many tokens one of them.

Invariant: this is the one place that says which products are quantized; nothing here imports torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Format = Literal["fp8", "int8", "int4"]
SCALE_BYTES = {"fp8": 4, "int8": 4, "int4": 2}


@dataclass(frozen=True)
class Scheme:
    """How weights, and activations beside them, are stored.

    Attributes:
        per_tensor: one scale for a weight; else one for each of its rows, which are outputs.
        quantized_activations: e4m3 with a scale for each token, found when they are there.
        group: columns that share a scale, at most; 0: a whole row does.
    """

    name: str
    format: Format
    per_tensor: bool = False
    quantized_activations: bool = False
    group: int = 0


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp8", "fp8", quantized_activations=True),
        Scheme("fp8_tensor", "fp8", per_tensor=True, quantized_activations=True),
        Scheme("fp8_weight_only", "fp8"),
        Scheme("int8", "int8"),
        Scheme("int4", "int4", group=128),
    )
}

# The products that read nearly all bytes of a step. Of the others docs/ledger.md says, for the
# embedded model: rounding bcdt or dt as well costs nothing that can be seen, but they are 1 % of
# the weights and steer a recurrence that a longer text lives in; rounding the head adds half of
# what all products cost, and where it is tied to the embedding it would be a second tensor.
PRODUCTS = ("in_proj", "out_proj", "qkv_proj", "o_proj", "gate_up_proj", "down_proj")
LEAST_GROUP = 32  # a product of matrices takes 16 columns, and a group is two halves


def group_of(columns: int, scheme: Scheme) -> int:
    """Columns that share a scale in a row of so many: as the scheme says, or the largest part of
    that of which there is a whole number; 0: the row."""
    return math.gcd(columns, scheme.group) if scheme.group else 0


def is_quantized(name: str, shape: tuple[int, ...], scheme: Scheme | None) -> bool:
    """Whether the tensor with the checkpoint's `name` is stored as the scheme says."""
    words = name.split(".")
    if scheme is None or words[-1] != "weight" or words[-2] not in PRODUCTS:
        return False
    return not scheme.group or group_of(shape[1], scheme) >= LEAST_GROUP


def stored_bytes(name: str, shape: tuple[int, ...], itemsize: int, quantization: str | None) -> int:
    """Bytes of a tensor on the device.

    Args:
        itemsize: of a weight that is not quantized.
        quantization: the scheme's name, or None.
    """
    count, scheme = math.prod(shape), SCHEMES[quantization] if quantization else None
    if scheme is None or not is_quantized(name, shape, scheme):
        return count * itemsize
    groups = shape[1] // group_of(shape[1], scheme) if scheme.group else 1
    weights = count // 2 if scheme.format == "int4" else count
    return weights + shape[0] * groups * SCALE_BYTES[scheme.format]
