"""Hopper's products in machine code: what touches their registers before they are done.

The matrix unit works on while later instructions run, until a wait says that a product is done.
Until then nobody may write the registers that it reads, nor touch those that it sums in. Neither
the compiler nor the device minds: a wrong number comes out, once in many runs. (So it was in
products of quantized weights with Triton 3.6 to 3.8: see kernels/launch.py, `wait_for_products`.)

    HGMMA.64x16x16.F32.BF16 R24, R32, gdesc[UR20], R24, gsb0   sums in R24 …, reads R32 …; a group
    WARPGROUP.DEPBAR.LE gsb0, 0x1                              ends; all groups but one are done

Invariant: every way through a kernel is looked at, loops as often as it takes; an instruction that
is not known is taken for one that writes its first operand. Tested in kernels/test_races.py, used
in kernels/test_triton_compile.py.
"""

import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\S*)\s*(.*?)\s*;")
PREDICATE = re.compile(r"!?U?P(T|\d)")
PRODUCT = re.compile(r"[BHIQ]GMMA\.64x(\d+)x")
NO_RESULT = re.compile(  # in a register of a thread
    r"(ST[GLSM]?|STSM|RED|LDGSTS|BAR|BRA|EXIT|NOP|DEPBAR|LDGDEPBAR|WARP\w+|R2P|BSSY|BSYNC|MEMBAR"
    r"|FENCE|ERRBAR|CCTL\w*|UTMA\w+|SYNCS|PREEXIT|ACQBULK|CALL|RET|YIELD|NANOSLEEP|U?[IFHD]?SETP2?"
    r"|U?PLOP3)(\.|$)"
)
BYTES = 16  # of an instruction
UNKNOWN_WAYS = re.compile(r"(BRX|JMP|JMX|BREAK|RPCMOV)(\.|$)")


@dataclass(frozen=True)
class Instruction:
    address: int
    is_conditional: bool
    name: str
    text: str  # operands

    def __str__(self) -> str:
        return f"{self.address:x}: {self.name} {self.text}"

    @cached_property
    def operands(self) -> list[str]:
        return [operand.strip() for operand in self.text.split(",")]

    @property
    def target(self) -> int | None:
        found = re.fullmatch(r"0x([0-9a-f]+)", self.operands[-1])
        return int(found[1], 16) if found and self.name.startswith(("BRA", "CALL")) else None

    @property
    def goes_on(self) -> bool:
        """Whether the next instruction may follow."""
        asks = self.is_conditional or PREDICATE.match(self.text) or self.name.startswith("BRA.DIV")
        return bool(asks) or not self.name.startswith(("BRA", "EXIT", "CALL", "RET"))

    @cached_property
    def written(self) -> frozenset[int]:
        """Registers of a thread."""
        if NO_RESULT.match(self.name):
            return frozenset()
        first = next((each for each in self.operands if not PREDICATE.match(each)), "")
        found = re.match(r"R(\d+)\b", first)
        return _registers(found[1], self._width(is_result=True)) if found else frozenset()

    @cached_property
    def touched(self) -> frozenset[int]:
        """Written or read."""
        read = frozenset[int]()
        for operand in self.operands:
            for first, wide in re.findall(r"(?<![A-Z])R(\d+)\b(?:\.reuse)?(\.64)?", operand):
                width = 1 if "[" in operand else self._width(is_result=False)
                read |= _registers(first, 2 if wide else width)
        return self.written | read

    def _width(self, is_result: bool) -> int:
        """Registers of an operand, of four bytes each."""
        if shape := PRODUCT.match(self.name):
            return int(shape[1]) // (2 if re.search(r"\.[FS]32\b", self.name) else 4)
        if re.match(r"LD|ST|ATOM", self.name):
            bits = re.search(r"\.(64|128)\b", self.name)
            matrices = re.match(r"(?:LD|ST)SM\..*\.(\d)$", self.name)
            return int(bits[1]) // 32 if bits else int(matrices[1]) if matrices else 1
        if re.match(r"[HIQ]MMA\.", self.name):
            return 4 if is_result or ".F32" in self.name else 2
        wide = re.match(r"IMAD\.WIDE|D(ADD|MUL|FMA|MNMX)\b|CS2R(?!\.32)|\w+\.[FSU]64", self.name)
        return 2 if wide else 1


def _registers(first: str, width: int) -> frozenset[int]:
    return frozenset(range(int(first), int(first) + width))


@dataclass(frozen=True)
class Product:
    instruction: Instruction
    sums: frozenset[int]
    operand: frozenset[int]  # of registers; empty: it comes from shared memory

    @classmethod
    def of(cls, made_by: Instruction) -> "Product":
        second = re.match(r"R(\d+)\b", made_by.operands[1])
        operand = _registers(second[1], 4) if second else frozenset[int]()
        return cls(made_by, made_by.written, operand)

    def is_harmed_by(self, later: Instruction) -> bool:
        if later.written & self.operand:
            return True
        if not PRODUCT.match(later.name):
            return bool(later.touched & self.sums)
        return bool(Product.of(later).operand & self.sums)  # sums follow sums in order


UnderWay = dict[Product, int]  # groups that have ended since it began; -1: its own has not
DONE = 99


def too_early(sass: str) -> list[str]:
    """What a kernel does to registers of products under way: a line for each such instruction.

    Args:
        sass: a kernel as `nvdisasm --binary` prints it, with addresses as targets.
    """
    program = [
        Instruction(int(found[1], 16), found[2] is not None, found[3], found[4])
        for line in sass.splitlines()
        if (found := LINE.match(line))
    ]
    places = {instruction.address: place for place, instruction in enumerate(program)}
    before: dict[int, UnderWay] = {0: {}}
    todo, harm = [0], dict[tuple[int, int], str]()
    while todo:
        at = todo.pop()
        instruction, state = program[at], before[at]
        for product in state:
            if product.is_harmed_by(instruction):
                where = product.instruction
                harm[instruction.address, where.address] = f"{instruction} | while {where}"
        after = _after(instruction, state)
        for following in _ways(program, places, at):
            known = before.get(following)
            both = after
            if known is not None:
                both = {p: min(after.get(p, DONE), known.get(p, DONE)) for p in known | after}
            if both != known:
                before[following] = both
                todo.append(following)
    return [harm[key] for key in sorted(harm)]


def _after(instruction: Instruction, state: UnderWay) -> UnderWay:
    """What is under way behind an instruction."""
    if "GMMA" in instruction.name:
        state = state | {Product.of(instruction): -1}
        if "gsb0" in instruction.operands:
            state = {product: ended + 1 for product, ended in state.items()}
    elif state and (wait := re.match(r"gsb0, (0x\w+)", instruction.text)):
        left = int(wait[1], 16)
        state = {product: ended for product, ended in state.items() if ended < left}
    return state


def _ways(program: Sequence[Instruction], places: dict[int, int], at: int) -> Iterator[int]:
    """Where it may go on."""
    instruction = program[at]
    if UNKNOWN_WAYS.match(instruction.name):
        raise ValueError(f"where does this go? {instruction}")
    if instruction.target is not None:
        yield places[instruction.target]
    if instruction.name.startswith("RET"):  # behind any of the calls
        yield from (i + 1 for i, each in enumerate(program) if each.name.startswith("CALL"))
    if instruction.goes_on and at + 1 < len(program):
        yield at + 1


def disassembled(cubins: Sequence[bytes], nvdisasm: Path, folder: Path) -> Iterator[str]:
    """The machine code of each of these kernels for Hopper, as `too_early` takes it. All in one go:
    to start takes longer than the rest."""
    codes = [code_of(cubin) for cubin in cubins]
    raw = folder / "kernels.bin"
    raw.write_bytes(b"".join(codes))
    command = [nvdisasm, "--binary", "SM90a", raw]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.splitlines() if LINE.match(line)]
    assert len(lines) * BYTES == sum(map(len, codes)), "an instruction that was not read"
    start = 0
    for code in codes:
        end = start + len(code) // BYTES
        yield "\n".join(lines[start:end])
        start = end


def code_of(cubin: bytes) -> bytes:
    """The section of an ELF file of 64 bits that has a kernel's instructions."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, index_of_names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[index_of_names][4]
    for name, _, _, _, start, length in sections:
        if cubin[names + name :].startswith(b".text."):
            return cubin[start : start + length]
    raise ValueError("a cubin without code")
