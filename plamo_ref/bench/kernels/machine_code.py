"""compiled(): what Triton's compiler makes of launches, for a GPU that need not be there.

    def launches():
        x = torch.empty(4096, dtype=torch.bfloat16, device="meta")
        add_kernel[(4,)](x, x, x, 4096, BLOCK=1024)
    for result in compiled(launches): print(result)

Invariant: the kernel is specialised as a real launch would specialise it (dtypes, arguments that
are multiples of 16, arguments that are 1), from tensors without content; nothing runs.
A lesson's own process interprets kernels, and a kernel is either interpreted or compiled: so the
source of `launches`, and of all it uses, goes to a process of its own.
Used by lessons 10 and 11.
"""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from plamo_ref.errors import PlamoRefError

_INSTRUCTION = 16  # bytes, since Volta


class CompileError(PlamoRefError):
    """Launches that cannot be carried to the compiler, or that it refuses."""


@dataclass(frozen=True)
class Compiled:
    """One launch, compiled."""

    kernel: str
    constants: dict[str, Any]
    warps: int
    registers: int  # of one thread; a multiprocessor has 65,536
    spills: int  # instructions that move a register to memory or back, for lack of registers
    shared: int  # bytes of shared memory
    instructions: int
    ptx: str

    def count(self, instruction: str) -> int:
        """Lines of PTX that have `instruction`, such as "ld.global" or "mma.sync"."""
        return sum(instruction in line for line in self.ptx.splitlines())

    def __repr__(self) -> str:
        return (
            f"{self.kernel}: {self.registers} registers, {self.spills} spills, "
            f"{self.shared} bytes shared, {self.instructions} instructions"
        )


def compiled(launches: Callable[[], Any], capability: int = 90) -> list[Compiled]:
    """Compile every launch that `launches` makes, in order, for sm_`capability`.

    Args:
        launches: launches kernels on tensors of device "meta". What it uses may be defined in the
            notebook or imported; numbers, strings and dtypes are taken by value.

    Raises:
        CompileError: something it uses has no source, or the compiler's own message.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "launches.py"
        program.write_text(_program(launches), encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", __name__, str(program), launches.__name__, str(capability)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"{launches.__name__} does not compile:\n{done.stderr[-3000:]}")
        text = (Path(folder) / "results.json").read_text(encoding="utf-8")
    return [Compiled(**fields) for fields in json.loads(text)]


# --- in the lesson's process: the source of a function and of all that it uses --------------------


def _program(launches: Callable[[], Any]) -> str:
    parts: dict[str, str] = {}
    _carry(launches.__name__, launches, parts)
    return "import torch\n" + "\n\n".join(parts.values())


def _carry(name: str, value: Any, parts: dict[str, str]) -> None:
    """Put what defines `name`, after what that itself uses, into `parts`."""
    if name in parts:
        return
    function = getattr(value, "fn", value)  # of a kernel
    if isinstance(value, types.ModuleType):
        parts[name] = f"import {value.__name__} as {name}"
    elif isinstance(value, int | float | str | tuple | torch.dtype):
        parts[name] = f"{name} = {value!r}"
    elif not hasattr(function, "__module__") or not hasattr(function, "__qualname__"):
        raise CompileError(f"{name} is a {type(value).__name__}: make it inside the function")
    elif function.__module__ != "__main__":
        parts[name] = f"from {function.__module__} import {function.__name__} as {name}"
    else:
        parts[name] = ""  # being carried: a function may name itself
        source = inspect.getsource(function)
        for used in _names(source):
            if used in function.__globals__:
                _carry(used, function.__globals__[used], parts)
        del parts[name]
        parts[name] = source


def _names(source: str) -> list[str]:
    """What a function reads and does not make itself, in order."""
    tree = ast.parse(source)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return list(dict.fromkeys(node.id for node in names if node.id not in own))


# --- in the compiler's process --------------------------------------------------------------------


def _main(program: str, function: str, capability: int) -> None:
    from triton.runtime.jit import JITFunction

    recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorded.append((kernel, args, kwargs))

    JITFunction.run = record
    sys.path.insert(0, str(Path(program).parent))
    getattr(__import__(Path(program).stem), function)()
    results = [asdict(_compile(*launch, capability)) for launch in recorded]
    Path(program).with_name("results.json").write_text(json.dumps(results), encoding="utf-8")


def _compile(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], cc: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for index, param in enumerate(kernel.params):
        kind, aligned = _specialised(param, values[param.name])
        signature[param.name] = kind
        if kind == "constexpr":
            constants[(index,)] = values[param.name]
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {"num_warps": 4} | {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
    made = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", cc, 32),
        options=options,
    )
    named = {kernel.arg_names[i]: value for (i,), value in constants.items()}
    return _usage(made, kernel.__name__, named, options["num_warps"])


def _specialised(param: Any, value: Any) -> tuple[str, bool]:
    """The argument's type in Triton's words, and whether it is a known multiple of 16."""
    free = not (param.do_not_specialize or param.do_not_specialize_on_alignment)
    if param.is_constexpr or (type(value) is int and value == 1 and free):
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        names = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}
        bits = f"{'u' if value.dtype == torch.uint8 else 'i'}{8 * value.dtype.itemsize}"
        return "*" + names.get(value.dtype, "i1" if value.dtype == torch.bool else bits), free
    if isinstance(value, float):
        return "fp32", False
    return "i32", free and value % 16 == 0


def _usage(made: Any, name: str, constants: dict[str, Any], warps: int) -> Compiled:
    """Read the resources out of the machine code, with the tools that come with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(made.asm["cubin"])
        cubin.flush()

        def output(tool: str, option: str) -> str:
            command = [str(tools / tool), option, cubin.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        used = dict(re.findall(r"(REG|STACK):(\d+)", output("cuobjdump", "-res-usage")))
        sections = output("cuobjdump", "-elf")  # index, place, size, …, name
        code = re.search(r"^ +\w+ +\w+ +(\w+) .* PROGBITS .* \.text\.", sections, re.MULTILINE)
        # What is spilled lies on the stack: without one, nobody need read the instructions.
        machine = output("nvdisasm", "-c") if int(used["STACK"]) else ""
    assert code is not None, "cuobjdump -elf lists no code"
    return Compiled(
        kernel=name,
        constants={k: v for k, v in constants.items() if isinstance(v, int | float | str | bool)},
        warps=warps,
        registers=int(used["REG"]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", machine)),
        shared=made.metadata.shared,
        instructions=int(code[1], 16) // _INSTRUCTION,
        ptx=made.asm["ptx"],
    )


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
