"""The reader of disassembled loops."""

from __future__ import annotations

import pytest

from benchmarks.kernels.loops import main_loops

TEXT = """
.text.first:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0030*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0040*/              @P1 LDGSTS.E.BYPASS.128 [R3], [R10.64] ;
        /*0050*/                   DEPBAR.LE SB0, 0x2 ;
        /*0060*/                   HMMA.SP.16832.F32 R8, R4, R6, R8, R9, 0x0 ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
        /*0080*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
.L_x_3:
        /*0090*/                   IADD3 R1, R1, 0x1, RZ ;
        /*00a0*/              @!P2 BRA `(.L_x_3) ;
        /*00b0*/               @P0 BRA `(.L_x_0) ;
.L_x_4:
        /*00c0*/                   BRA `(.L_x_4);
.text.second:
.L_x_0:
        /*0000*/                   FFMA R1, R1, R1, R1 ;
        /*0010*/               @P0 BRA `(.L_x_0) ;
"""


def test_the_loop_with_the_most_products() -> None:
    (loop,) = main_loops(TEXT)
    assert loop.function == "first"
    # The outer loop holds one more product than the inner: it is the one that counts.
    assert (loop.instructions, loop.matrix, loop.shared_loads, loop.async_copies) == (11, 3, 1, 1)
    assert loop.macs == 2 * 16 * 8 * 16 + 16 * 8 * 32
    assert loop.stages == 4
    assert loop.issue_share == pytest.approx(4 / 11)


def test_of_equal_loops_the_inner_counts() -> None:
    inner = TEXT.replace("        /*0080*/                   HMMA.16816.F32 R8, R4, R6, R8 ;\n", "")
    (loop,) = main_loops(inner)
    assert (loop.instructions, loop.matrix) == (7, 2)


def test_nothing_without_products() -> None:
    assert main_loops(TEXT[TEXT.index(".text.second") :]) == []
