"""record(): one run of the reference with every quantity on the way, named in the order it arises.

Invariant: what is recorded is what the run computed: hooks and a listener copy it, nothing is
computed a second time.
Built in notebooks/04_reference_generation.ipynb. T tokens, D hidden, L layers, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plamo_ref.reference import Plamo2Reference, ReferenceOutput, attention, mamba

# The order inside a layer. Names without a dot are the layer's own.
_ORDER = (
    "input", "pre_mixer_norm",
    "mixer.qkv_proj", "mixer.q after norm", "mixer.k after norm", "key_cache_prerope",
    "value_cache", "mixer.q after rope", "mixer.k after rope", "mixer.attention", "mixer.o_proj",
    "mixer.in_proj", "conv_state", "mixer.u after conv", "mixer.bcdt_proj", "mixer.B after norm",
    "mixer.C after norm", "mixer.dt after norm", "mixer.dt_proj", "mixer.delta", "mixer.A",
    "mixer.scan", "ssm_state", "mixer.gated", "mixer.out_proj",
    "post_mixer_norm", "after mixer", "pre_mlp_norm", "mlp.gate_up_proj", "mlp.gated",
    "mlp.down_proj", "post_mlp_norm",
)  # fmt: skip
_STATES = ("conv_state", "ssm_state", "key_cache_prerope", "value_cache")
FINAL = ("after the last norm", "logits")


@dataclass(frozen=True)
class Quantity:
    """What was recorded: in which layer (None: after the layers), and how its tokens lie.

    along: "tokens": axis 0 is every token; "newest": axis 0 is the newest tokens only (a window);
    "state": no token axis.
    """

    layer: int | None
    name: str
    along: Literal["tokens", "newest", "state"] = "tokens"

    @property
    def is_state(self) -> bool:
        return self.name in _STATES

    @property
    def order(self) -> tuple[float, int]:
        if self.layer is None:
            return float("inf"), FINAL.index(self.name)
        return self.layer, _ORDER.index(self.name)

    def __str__(self) -> str:
        return self.name if self.layer is None else f"layer {self.layer} {self.name}"


@dataclass(frozen=True)
class Run:
    """The quantities of one run, in the order of the forward pass."""

    tokens: int  # fed in all; the states are those after the last of them
    values: Mapping[Quantity, Any] = field(repr=False)  # tensors or numpy arrays

    @classmethod
    def of(cls, run: Any) -> "Run":
        """A Run as it is; a ReferenceOutput, or arrays by name, as a Run.

        Raises:
            ValueError: batched, or of a type that holds no run.
        """
        if isinstance(run, Run):
            return run
        if isinstance(run, ReferenceOutput):
            return cls.sorted(run.logits.shape[-2], _from_output(run))
        if isinstance(run, Mapping):
            hidden = run.get("hidden_states")
            tokens = hidden.shape[1] if hidden is not None else len(run.get("logits", ()))
            return cls.sorted(tokens, _from_arrays(run))
        raise ValueError(f"no run: {type(run).__name__}; pass what record() or model.run() returns")

    @classmethod
    def sorted(cls, tokens: int, values: Mapping[Quantity, Any]) -> "Run":
        return cls(tokens, {q: values[q] for q in sorted(values, key=lambda q: q.order)})


def record(model: Plamo2Reference, ids: Tensor) -> Run:
    """Run the model on ids [T] and keep every quantity inside every layer.

    While it runs, the reference's rms_norm, rope and scan are listened to, so it must not run in
    two threads at once.

    Raises:
        ValueError: ids has a batch dimension.
    """
    if ids.ndim != 1:
        raise ValueError(f"record: ids must be [T], not {list(ids.shape)}: record one sequence")
    values: dict[Quantity, Any] = {}
    with ExitStack() as stack, torch.no_grad():
        for index, layer in enumerate(model.get_submodule("model.layers.layers").children()):
            _hook_layer(stack, layer, index, values)
        output = model.run(ids)
    return Run.sorted(len(ids), values | _from_output(output))


def _from_output(output: ReferenceOutput) -> dict[Quantity, Any]:
    """Layer inputs, states, final hidden states, logits."""
    if output.logits.ndim != 2:
        raise ValueError(f"logits {list(output.logits.shape)}: run one sequence, without a batch")
    values: dict[Quantity, Any] = {
        Quantity(i, "input"): x.detach() for i, x in enumerate(output.layer_inputs)
    }
    for i, state in enumerate(output.state.layers):
        if isinstance(state, mamba.MambaState):
            values[Quantity(i, "conv_state", "state")] = state.conv.detach()
            values[Quantity(i, "ssm_state", "state")] = state.ssm.detach()
        elif isinstance(state, attention.AttentionState):
            values[Quantity(i, "key_cache_prerope", "newest")] = state.keys.detach()
            values[Quantity(i, "value_cache", "newest")] = state.values.detach()
    values[Quantity(None, FINAL[0])] = output.final_hidden.detach()
    return values | {Quantity(None, FINAL[1]): output.logits.detach()}


def _from_arrays(arrays: Mapping[str, Any]) -> dict[Quantity, Any]:
    """From another implementation's arrays; unknown names (ids and the like) are passed over."""
    values: dict[Quantity, Any] = {}
    for name, array in arrays.items():
        last = name.rpartition(".")[2]
        if name == "logits":
            values[Quantity(None, FINAL[1])] = array
        elif name == "hidden_states":
            values |= {Quantity(i, "input"): array[i] for i in range(len(array) - 1)}
            values[Quantity(None, FINAL[0])] = array[-1]
        elif last in ("conv_state", "ssm_state"):
            values[Quantity(int(name.split(".")[1]), last, "state")] = array
        elif last in ("key_cache_prerope", "value_cache"):
            newest = array.swapaxes(0, 1)  # [KV heads, n, P] → [n, KV heads, P]
            values[Quantity(int(name.split(".")[1]), last, "newest")] = newest
    return values


# --- listening -----------------------------------------------------------------------------------


def _hook_layer(
    stack: ExitStack, layer: nn.Module, index: int, values: dict[Quantity, Any]
) -> None:
    """Keep inputs and outputs of the layer's modules, and what its mixer computes in between."""

    def keep(name: str, value: Tensor, along: Literal["tokens", "state"] = "tokens") -> None:
        values[Quantity(index, name, along)] = value.detach()

    def after(path: str) -> None:
        hook = layer.get_submodule(path).register_forward_hook(
            lambda _module, _args, out: keep(path, out)
        )
        stack.callback(hook.remove)

    def before(path: str, name: str) -> None:
        hook = layer.get_submodule(path).register_forward_pre_hook(
            lambda _module, args: keep(name, args[0])
        )
        stack.callback(hook.remove)

    norms = ("pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm")
    for path in (*norms, "mlp.gate_up_proj", "mlp.down_proj"):
        after(path)
    before("pre_mlp_norm", "after mixer")
    before("mlp.down_proj", "mlp.gated")
    mixer = layer.get_submodule("mixer")
    if isinstance(mixer, mamba.Mamba):
        for path in ("mixer.in_proj", "mixer.bcdt_proj", "mixer.dt_proj", "mixer.out_proj"):
            after(path)
        before("mixer.bcdt_proj", "mixer.u after conv")
        before("mixer.out_proj", "mixer.gated")
        _while_running(stack, mixer, lambda: _listen_mamba(keep))
    else:
        after("mixer.qkv_proj")
        after("mixer.o_proj")
        before("mixer.o_proj", "mixer.attention")
        _while_running(stack, mixer, lambda: _listen_attention(keep))


def _while_running(stack: ExitStack, module: nn.Module, listen: Callable[[], ExitStack]) -> None:
    """Open `listen()` when the module starts and close it when it ends."""
    open_now: list[ExitStack] = []
    pre = module.register_forward_pre_hook(lambda _module, _args: open_now.append(listen()))
    post = module.register_forward_hook(lambda _module, _args, _out: open_now.pop().close())
    for hook in (pre, post):
        stack.callback(hook.remove)
    stack.callback(lambda: open_now[0].close() if open_now else None)  # the module raised


def _listen_attention(keep: Callable[..., None]) -> ExitStack:
    stack = ExitStack()
    norms, ropes = iter(("q", "k")), iter(("q", "k"))
    hear = _results(norms, "after norm", keep)
    stack.enter_context(_replaced(attention, "rms_norm", hear))
    stack.enter_context(_replaced(attention, "rope", _results(ropes, "after rope", keep)))
    return stack


def _listen_mamba(keep: Callable[..., None]) -> ExitStack:
    def hear_scan(args: tuple[Any, ...], result: Any) -> None:
        keep("mixer.delta", args[1])
        keep("mixer.A", args[2], "state")
        keep("mixer.scan", result[0])

    stack = ExitStack()
    hear = _results(iter(("B", "C", "dt")), "after norm", keep)
    stack.enter_context(_replaced(mamba, "rms_norm", hear))
    for name in ("scan_chunks", "scan_steps"):
        stack.enter_context(_replaced(mamba, name, hear_scan))
    return stack


def _results(
    letters: Iterator[str], suffix: str, keep: Callable[..., None]
) -> Callable[[tuple[Any, ...], Any], None]:
    """The n-th result that is heard belongs to the n-th letter."""

    def hear(_args: tuple[Any, ...], result: Any) -> None:
        letter = next(letters, None)
        if letter is not None:
            keep(f"mixer.{letter} {suffix}", result)

    return hear


@contextmanager
def _replaced(
    module: ModuleType, name: str, hear: Callable[[tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Tell `hear` arguments and result of every call of module.name."""
    original = getattr(module, name)

    def listening(*args: Any) -> Any:
        result = original(*args)
        hear(args, result)
        return result

    setattr(module, name, listening)
    try:
        yield
    finally:
        setattr(module, name, original)
