"""Every Triton kernel compiled for sm_90, at the published models' shapes, with no GPU.

Invariant tested: the launches of 1B and 8B compile as they are, with no spill, within the registers
and the shared memory of the device. For sm_80: test_triton_compile_sm_80.py.
"""

import re
from dataclasses import replace
from typing import Any

import pytest
from compiled_launches import (
    BF16,
    F32,
    SHARED_MEMORY,
    TOOLS,
    Compiler,
    Launch,
    check_published,
    empty,
    launches,
)
from races import disassembled, too_early

from plamo_ref.bench.kernels.parts import MODELS
from plamo_ref.kernels.choice import triton_table
from plamo_ref.quantization.quantize import quantize
from plamo_ref.quantization.schemes import SCHEMES


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("cubins"))


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
def test_published_shapes_compile_without_spills(shape, compiler):
    check_published(shape, 90, compiler)


def test_float32_compiles_with_few_spills(compiler):
    """float32 on a GPU is for checking: each operand of a product is two tf32 values."""
    with_products = {"decode_kernel", "prefill_kernel", "scan_kernel"}
    seen = set()
    for launch in launches(MODELS[0], F32):
        name = launch.kernel.__name__
        if name in with_products - seen:
            used = compiler(launch, 90)
            assert used.spills <= 48, f"{name}: {used.spills} spills"
            assert used.shared <= SHARED_MEMORY[90]
            seen.add(name)
    assert seen == with_products


def test_nothing_touches_the_registers_of_a_product_under_way(compiler, tmp_path):
    """And where its operand is in registers, the test would notice if nobody waited for it."""
    cubins, names = dict[bytes, str](), set[str]()
    for launch in (launch for shape in MODELS for launch in launches(shape, BF16)):
        used = compiler(launch, 90)
        if "wgmma" in used.ptx:
            cubins[used.cubin] = f"{launch.kernel.__name__}, {launch.constants}"
    machine = disassembled(list(cubins), TOOLS / "nvdisasm", tmp_path)
    for name, sass in zip(cubins.values(), machine, strict=True):
        assert not too_early(sass), name
        kernel = name.partition(",")[0]
        if kernel not in names and re.search(r"GMMA\S+ R\d+, R\d+", sass):
            assert too_early(sass.replace("WARPGROUP.DEPBAR.LE gsb0", "NOP")), name
            names.add(kernel)
    assert names >= {"prefill_kernel", "scan_kernel", "segment_sum_kernel"}
    assert names >= {"words_linear_kernel", "quantized_linear_kernel"}


def test_products_in_words_fit_in_float32(compiler):
    """There an int4 group of 128 columns is 512 bytes of a row, in two halves."""
    found: list[Launch] = []

    def record(kernel: Any, grid: Any, *arguments: Any, config: Any, **constants: Any) -> None:
        found.append(Launch(kernel, arguments, constants, config.warps, config.stages))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plamo_ref.kernels.linear.triton_words_product.launch", record)
        for scheme in ("int8", "int4"):
            weight = quantize(empty(256, 1024), SCHEMES[scheme])
            for tokens in (1, 128):
                triton_table(pdl=True).quantized_linear(empty(tokens, 1024, dtype=F32), weight)
            triton_table(pdl=True).quantized_linear_swiglu(empty(64, 1024, dtype=F32), weight)
    assert {launch.kernel.__name__ for launch in found} == {
        "few_words_kernel",
        "words_linear_kernel",
    }
    for launch in found:
        used = compiler(launch, 90)
        assert used.shared <= SHARED_MEMORY[90], launch.constants
        assert used.spills <= 48, launch.constants


@pytest.mark.parametrize(
    ("kernel", "capability", "instruction"),
    [
        ("prefill_kernel", 90, "wgmma.mma_async"),  # Hopper's matrix unit
        ("scan_kernel", 90, "wgmma.mma_async"),
        ("segment_sum_kernel", 90, "wgmma.mma_async"),
        ("scan_kernel", 90, "ld.global.v4"),
        ("segment_sum_kernel", 90, "cp.async.cg"),
        ("segment_carry_kernel", 90, "cp.async.cg"),
        ("conv_prefill_kernel", 90, "ld.global.v4"),
        ("prefill_kernel", 80, "mma.sync"),
        ("decode_kernel", 90, "mma.sync"),  # 16 rows are too few for wgmma's 64
        ("decode_kernel", 90, "cp.async.cg"),  # 16 bytes at a time, past the registers
        ("prefill_kernel", 90, "cp.async.cg"),
        ("add_norm_kernel", 90, "ld.global.v4"),  # 16 bytes at a time
        ("state_update_kernel", 90, "ld.global.v4"),
        ("swiglu_kernel", 90, "ld.global.v4"),
        ("quantized_linear_kernel", 90, "wgmma.mma_async"),
        ("quantize_tokens_kernel", 90, "ld.global.v4"),
    ],
)
def test_kernels_use_the_instructions_they_are_written_for(
    kernel, capability, instruction, compiler
):
    of_it = launches(MODELS[0], BF16, capability)
    found = [used for used in of_it if used.kernel.__name__ == kernel]
    assert found
    for launch in found:
        assert instruction in compiler(launch, capability).ptx


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["prefill_kernel", "decode_kernel"])
def test_keys_travel_while_earlier_ones_are_multiplied(kernel, capability, compiler):
    """The loop waits for the oldest copies and leaves the keys and values of a later tile under
    way. A table looked up in the same iteration would make it wait for all of them."""
    for launch in launches(MODELS[0], BF16, capability):
        if launch.kernel.__name__ == kernel:
            ptx = compiler(launch, capability).ptx
            waits = [int(n) for n in re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)]
            assert max(waits) >= 2, f"waits that leave {waits} copies under way"


def test_a_quantized_weight_becomes_numbers_in_registers(compiler):
    """Its bytes are in shared memory once, as they came: nothing is written there in the loop, and
    a word becomes eight or four bfloat16 without another look at it."""
    seen = set()
    for launch in launches(MODELS[0], BF16):
        name, constants = launch.kernel.__name__, launch.constants
        if constants.get("BLOCK_T") not in (8, 16):
            continue
        if name == "quantized_linear_kernel":
            ptx = compiler(launch, 90).ptx
            assert "st.shared" not in ptx
            seen.add("fp8" if constants["IN_FP8"] else "e4m3")
        if name == "few_words_kernel":
            ptx, bits = compiler(launch, 90).ptx, constants["BITS"]
            numbers = constants["BLOCK_N"] * constants["BLOCK_K"] // 32  # of a thread
            scales = 3 * constants["BLOCK_N"] // 8 if bits == 4 else 0
            assert numbers // 2 <= ptx.count("fma.rn.bf16x2") <= numbers // 2 + scales * numbers
            fours = len(re.findall(r"ld\.shared\.v4\.b32", ptx))  # words, 16 bytes at a time
            assert fours >= numbers * bits // 128
            assert ptx.count("mma.sync") == numbers * 32 // 256
            loop = ptx[: ptx.rindex("mma.sync")]  # behind it warps add what they have
            assert not re.search(r"shfl|ld\.shared\.(v\d\.)?b8", loop)
            seen.add(f"int{bits}")
    assert seen == {"fp8", "e4m3", "int8", "int4"}


def test_a_spill_would_be_noticed(compiler):
    """A scan with longer chunks of more rows does not fit the registers."""
    launch = next(x for x in launches(MODELS[0], BF16) if x.kernel.__name__ == "scan_kernel")
    greedy = replace(launch, constants=launch.constants | {"BLOCK_P": 128, "Q": 128}, warps=4)
    used = compiler(greedy, 90)
    assert used.spills > 0
    assert used.stack > 0
