"""What touches the registers of a product of matrices that is still under way.

Invariant tested: such an instruction is found on every way through a kernel, in a later iteration
and behind a call too; what comes behind a sufficient wait, or concerns other registers, is none.
"""

import re

import pytest
from races import too_early

# Two groups of products in a loop, each of which reads registers: the first four of them are
# written for the next iteration while the last group may be under way.
LOOP = """
        /*0000*/                   IMAD.MOV.U32 R24, RZ, RZ, RZ ;
        /*0010*/                   LDS.128 R40, [R2+UR4] ;
        /*0020*/                   LDS.128 R44, [R2+UR4+0x400] ;
        /*0030*/                   WARPGROUP.ARRIVE ;
        /*0040*/                   HGMMA.64x16x16.F32.BF16 R24, R40, gdesc[UR20], R24, gsb0 ;
        /*0050*/                   UIADD3 UR4, UR4, 0x10, URZ ;
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, {first} ;
        /*0070*/                   HGMMA.64x16x16.F32.BF16 R24, R44, gdesc[UR8], R24, gsb0 ;
        /*0080*/                   WARPGROUP.DEPBAR.LE gsb0, {second} ;
        /*0090*/              @!P5 BRA 0x10 ;
        /*00a0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*00b0*/                   STG.E.128 desc[UR14][R4.64], R24 ;
        /*00c0*/                   EXIT ;
"""


def loop(first="0x1", second="0x1", **more):
    """more: what stands at an address."""
    text = LOOP.format(first=first, second=second)
    for place, line in more.items():
        text, count = re.subn(rf"(/\*{place[1:]}\*/\s+).*;", rf"\g<1>{line} ;", text)
        assert count == 1
    return text


def found(text):
    return [line.partition(":")[0] for line in too_early(text)]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("0x0", "0x0", []),
        ("0x1", "0x0", []),
        ("0x1", "0x1", ["20"]),  # its operand is the second group's, which nobody waited for
        ("0x2", "0x2", ["10", "20"]),
    ],
)
def test_an_operand_is_written_when_the_next_iteration_begins(first, second, expected):
    assert found(loop(first, second)) == expected


WAITED = {"first": "0x1", "second": "0x0"}


@pytest.mark.parametrize(
    ("line", "is_harm"),
    [
        ("IMAD.WIDE R40, R4, 0x2, R6", True),
        ("IMAD.WIDE R38, R4, 0x2, R6", False),
        ("IMAD.WIDE R39, R4, 0x2, R6", True),  # 39 and 40
        ("@P0 MOV R43, RZ", True),
        ("LDSM.16.M88.4 R37, [R2]", True),
        ("LDSM.16.M88.2 R37, [R2]", False),
        ("SHFL.BFLY PT, R41, R2, 0x1, 0x1f", True),
        ("ISETP.GE.AND P0, PT, R40, R41, PT", False),  # reading is no harm
        ("STS.128 [R40], R40", False),
        ("FADD R3, R24, R24", True),  # sums are neither written nor read
        ("STS.128 [R3], R21", True),  # 21 to 24
        ("STS.64 [R3], R21", False),
        ("LDGSTS.E.BYPASS.128 [R60+0x10], desc[UR4][R22.64], P2", False),  # 22 and 23
        ("LDGSTS.E.BYPASS.128 [R60+0x10], desc[UR4][R24.64], P2", True),
        ("UMOV UR24, UR40", False),
        ("HGMMA.64x8x16.F32.BF16 R60, R24, gdesc[UR8], R60", True),
        ("QGMMA.64x16x32.F32.E4M3.E4M3 R36, gdesc[UR8], R36", True),  # 36 to 43
    ],
)
def test_who_touches_what(line, is_harm):
    assert ("50" in found(loop(**WAITED, _0050=line))) == is_harm


def test_a_branch_and_a_call_are_followed():
    skips = loop("0x1", "0x0", _0060="BRA P2, 0x70")  # the wait between the groups is left out
    assert found(skips) == []
    behind = LOOP.format(first="0x1", second="0x1") + (
        "        /*00d0*/                   MOV R44, R3 ;\n"
        "        /*00e0*/                   RET.REL.NODEC R8 0x0 ;\n"
    )
    called = behind.replace("BRA 0x10 ;", "EXIT ;").replace(
        "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;", "CALL.REL.NOINC 0xd0 ;"
    )
    assert found(called) == ["b0", "d0"]  # the sums behind the return, too
    with pytest.raises(ValueError, match="where does this go"):
        too_early(loop(_0050="BRX R4 -0x20"))
