"""What stands in the machine code of a kernel that Triton has compiled for a GPU.

Invariant tested: none here; kernels/test_triton_compile.py asks it of every launch. The tools that
read it come with Triton.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from races import disassembled, too_early

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
COUNTED = ("cp.async.cg", "ld.global.v4", "mma.sync", "wgmma.mma_async")


@dataclass(frozen=True)
class Usage:
    """Of one launch, compiled."""

    registers: int  # of a thread
    stack: int  # bytes of a thread
    spills: int  # instructions that move a register to the stack or back
    shared: int  # bytes of a block
    instructions: dict[str, int]  # how often each of COUNTED stands in the PTX
    copies_under_way: int  # that the most generous wait of its PTX leaves
    touched_too_early: list[str]  # registers of products under way, on Hopper: see races.py
    takes_registers: bool  # a product of Hopper's has an operand there
    touched_if_nobody_waits: bool


def usage(compiled: Any) -> Usage:
    """compiled: what `triton.compile` returns."""
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)

        def output(tool: str, option: str) -> str:
            command = [TOOLS / tool, option, file]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        resources = dict(re.findall(r"(REG|STACK):(\d+)", output("cuobjdump", "-res-usage")))
        stack = int(resources["STACK"])
        # What is spilled lies on the stack: without one there is nothing to count.
        machine = output("nvdisasm", "-c") if stack else ""
        early, takes, without = [], False, False
        if "wgmma" in ptx:
            (sass,) = disassembled([cubin], TOOLS / "nvdisasm", Path(folder))
            early, takes = too_early(sass), re.search(r"GMMA\S+ R\d+, R\d+", sass)
            without = too_early(sass.replace("WARPGROUP.DEPBAR.LE gsb0", "NOP"))
    waits = [int(n) for n in re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)]
    return Usage(
        registers=int(resources["REG"]),
        stack=stack,
        spills=len(re.findall(r"\b(?:STL|LDL)\b", machine)),
        shared=compiled.metadata.shared,
        instructions={name: ptx.count(name) for name in COUNTED},
        copies_under_way=max(waits, default=0),
        touched_too_early=early,
        takes_registers=bool(takes),
        touched_if_nobody_waits=bool(without),
    )
