"""What `quantization_config` of a config.json says, in compressed-tensors' convention.

    fp8, fp8_tensor    float-quantized, 8 bits, strategy channel or tensor; activations by token
    fp8_weight_only    the same, without activations
    int8               pack-quantized, 8 bits, strategy channel
    int4               pack-quantized, 4 bits, strategy group, 32, 64 or 128

Which modules are quantized is read from the tensors that are there, not from `targets` and
`ignore`: they are patterns over module classes of another library.

Invariant: a scheme that is not one of ours is refused by name; nothing here reads a tensor.
"""

from collections.abc import Mapping
from typing import Any

from plamo_ref.intake.config_values import ConfigError
from plamo_ref.intake.values import shown
from plamo_ref.quantization.schemes import PRODUCTS, SCHEMES, Scheme, group_of, is_quantized

METHOD = "compressed-tensors"
FORMATS = {"fp8": "float-quantized", "int8": "pack-quantized", "int4": "pack-quantized"}
_CURE = "take the checkpoint in bfloat16, and give quantization= one of " + ", ".join(SCHEMES)


def scheme_of(data: Any, where: str) -> str | None:
    """The name of the scheme; None: there is no `quantization_config`.

    Raises:
        ConfigError: it is none of ours.
    """
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise _strange(where, f"must be an object, not {shown(data)}")
    method = data.get("quant_method")
    if method != METHOD:
        raise _strange(where, f"quant_method={shown(method)} is not read, {METHOD!r} is")
    if data.get("kv_cache_scheme") is not None:
        raise _strange(where, "kv_cache_scheme: keys and values are not quantized here")
    groups = data.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _strange(where, f"config_groups={shown(groups)}: an object is expected")
    found = {_scheme(group, where) for group in groups.values()}
    if len(found) > 1:
        raise _strange(where, f"{' and '.join(sorted(found))} in one model: one scheme can be had")
    return found.pop()


def _scheme(group: Any, where: str) -> str:
    """The scheme of one of the config's groups."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise _strange(where, f"a group without weights: {shown(group)}")
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    strategy = weights.get("strategy")
    acts = group.get("input_activations")
    if weights.get("symmetric", True) is not True:
        raise _strange(where, "weights.symmetric=false: weights with a zero point are not read")
    if group.get("output_activations") is not None:
        raise _strange(where, "output_activations are not quantized here")
    by_token = isinstance(acts, Mapping) and _by_token(acts)
    if acts is not None and not (kind == "float" and by_token):
        said = "input_activations can be e4m3 by token and dynamic, beside e4m3 weights, or null"
        raise _strange(where, f"{said}; found {shown(acts)}")
    names: dict[Any, str] = {
        ("float", 8, "channel", True): "fp8",
        ("float", 8, "tensor", True): "fp8_tensor",
        ("float", 8, "channel", False): "fp8_weight_only",
        ("int", 8, "channel", False): "int8",
        ("int", 4, "group", False): "int4",
    }
    name = names.get((kind, bits, strategy, by_token))
    if name is None:
        said = f"weights of type={shown(kind)}, num_bits={shown(bits)}, strategy={shown(strategy)}"
        raise _strange(where, f"{said} are not read")
    if name == "int4" and weights.get("group_size") not in (32, 64, 128):
        size = shown(weights.get("group_size"))
        raise _strange(where, f"group_size={size}: 32, 64 and 128 are read")
    return name


def _by_token(acts: Mapping[str, Any]) -> bool:
    told = [acts.get(key) for key in ("type", "num_bits", "strategy", "dynamic")]
    return told == ["float", 8, "token", True]


def _strange(where: str, what: str) -> ConfigError:
    return ConfigError(f"{where}: quantization_config cannot be honoured: {what}; {_CURE}")


def quantization_config(scheme: Scheme, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The key for a model with tensors of such shapes, for those who read its targets."""
    sizes: dict[int, set[str]] = {}
    for name, shape in shapes.items():
        if is_quantized(name, shape, scheme):
            sizes.setdefault(group_of(shape[1], scheme), set()).add(name.split(".")[-2])
    acts = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    groups = {}
    for number, (size, products) in enumerate(sorted(sizes.items())):
        one = len(sizes) == 1
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if one else [f"re:.*\\.{name}$" for name in sorted(products)],
            "weights": _weights(scheme, size),
            "input_activations": acts if scheme.quantized_activations else None,
            "output_activations": None,
        }
    modules = {n.removesuffix(".weight") for n in shapes if n.endswith("_proj.weight")}
    plain = {n for n in modules if n.split(".")[-1] not in PRODUCTS}
    return {
        "quant_method": METHOD,
        "format": FORMATS[scheme.format],
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", *sorted(plain)],
        "kv_cache_scheme": None,
    }


def _weights(scheme: Scheme, group: int) -> dict[str, Any]:
    strategy = "tensor" if scheme.per_tensor else "group" if group else "channel"
    return {
        "num_bits": 4 if scheme.format == "int4" else 8,
        "type": "float" if scheme.format == "fp8" else "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group or None,
        "dynamic": False,
        "actorder": None,
    }
