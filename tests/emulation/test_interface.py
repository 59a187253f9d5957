"""The C interface: every argument is checked on the host, and the tactics are those that compute the layer."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtkp.graph.packing import pack
from trtkp.index.index_set import from_mask

from .cases import ConvDesc, random_case, write_case
from .programs import COMPILER, ROOT, build, run

INVALID, UNSUPPORTED, CUDA_ERROR = 1, 2, 3

Array = np.ndarray[Any, Any]


def good_desc(**changes: int) -> ConvDesc:
    """3x3 over 16 channels in blocks of 8, 24 filters, 2 x 14 x 14, fp16."""
    values = {
        "structSize": 0, "interfaceVersion": 2, "dataType": 1, "batch": 2, "height": 14, "width": 14, "channels": 16,
        "filters": 24, "kernelRows": 3, "kernelColumns": 3, "strideH": 1, "strideW": 1, "padTop": 1, "padLeft": 1,
        "padBottom": 1, "padRight": 1, "dilationH": 1, "dilationW": 1, "groups": 1, "listKind": 0, "listGroups": 2,
        "listLength": 8, "rows": 24, "listBlock": 8, "xPitch": 16, "yPitch": 24, "residualPitch": 0, "hasBias": 1,
        "hasResidual": 0, "activation": 1, "alpha": 0.0, "allowTf32": 0, "twoFour": 0,
    }  # fmt: skip
    desc = ConvDesc(**values)
    desc.structSize = len(bytes(desc))
    for name, value in changes.items():
        setattr(desc, name, value)
    return desc


def ask(program: Path, folder: Path, desc: ConvDesc, lists: Any = None, metadata: Any = None) -> Any:
    """Status and what run_conv prints, without a launch."""
    write_case(folder / "case", desc, 0, 0, [None, None, *(lists or [None] * 3), None, None, metadata], 0)
    done = run(program, folder / "case")
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structSize": 4}, "desc.structSize is 4, not "),
        ({"interfaceVersion": 1}, "desc.interfaceVersion is 1, not 2"),
        ({"dataType": 3}, "dataType is 3"),
        ({"dataType": -1}, "dataType is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"height": -5}, "height is -5"),
        ({"width": 1 << 30}, "width is 1073741824"),
        ({"channels": 0}, "channels is 0"),
        ({"channels": 65537, "xPitch": 65544}, "channels is 65537"),
        ({"filters": 0}, "filters is 0"),
        ({"strideH": 0}, "strideH is 0"),
        ({"dilationW": 0}, "dilationW is 0"),
        ({"padLeft": -1}, "padLeft is -1"),
        ({"kernelRows": 65}, "kernelRows is 65"),
        ({"kernelRows": 13, "kernelColumns": 5}, "kernelRows * kernelColumns is 65"),
        ({"dilationH": 8}, "the kernel's height with dilation is 17, more than the padded input's 16"),
        ({"groups": 5}, "filters (24) is not a multiple of groups (5)"),
        ({"groups": 2}, "xPitch (16) is less than channels * groups (32)"),
        ({"yPitch": 23}, "yPitch (23) is less than filters (24)"),
        ({"hasResidual": 1}, "residualPitch (0) is less than filters (24)"),
        ({"hasBias": 2}, "hasBias is 2"),
        ({"listKind": 3}, "listKind is 3"),
        ({"listLength": 0}, "listLength is 0"),
        ({"listGroups": 25}, "listGroups (25) is more than rows (24)"),
        ({"listBlock": 4}, "listBlock is 4"),
        ({"rows": 23}, "rows (23) is less than filters (24)"),
        ({"activation": 6}, "activation is 6"),
        ({"allowTf32": 2}, "allowTf32 is 2"),
        ({"twoFour": 2}, "twoFour is 2"),
        ({"twoFour": 1, "listLength": 6}, "listLength is 6: 2:4 weights need a multiple of 4"),
        ({"twoFour": 1, "listKind": 2, "listLength": 10}, "listLength is 10: 2:4 weights need a multiple of 4"),
        ({"twoFour": 1, "listKind": 1, "channels": 15}, "channels is 15: 2:4 weights need a multiple of 4"),
        ({"batch": 1 << 20}, "x with its padding has 2^31 elements or more"),
        ({"padTop": 1 << 23, "padBottom": 1 << 23}, "x with its padding has 2^31 elements or more"),
        ({"batch": 1 << 17, "yPitch": 1 << 10}, "y has 2^31 elements or more"),
        ({"listLength": 1 << 30}, "a row of weight has 2^31 elements or more"),
        ({"rows": 1 << 24, "listLength": 1 << 10}, "weight has 2^31 elements or more"),
    ],
)
def test_a_bad_description_is_refused(changes: dict[str, int], message: str, run_conv: Path, tmp_path: Path) -> None:
    status, output = ask(run_conv, tmp_path, good_desc(**changes))
    assert status == INVALID
    assert message in output


NARROW = ["mma_128x128", "mma_128x64", "mma_64x64", "mma_64x32"]
NARROW_SPLIT4 = ["mma_64x64_split4", "mma_64x32_split4"]
WIDE = ["mma_128x128_k64", "mma_128x64_k64", "mma_64x64_k64", "mma_128x32_k64"]
SINGLE = ["single_128x64", "single_128x32", "single_128x16"]
SINGLE_SPLIT4 = "single_128x32_split4"
SIMT = ["simt_128x64", "simt_64x32", "simt_64x32_split4", "single_simt_64x32"]
TF32 = ["tf32_128x64", "tf32_64x64", "tf32_64x64_split4", "single_tf32_128x64"]
ANY = ["reference", *SINGLE, "direct"]
EVERY = [*ANY, *NARROW, *WIDE]
LONG = {"channels": 64, "xPitch": 64}
WIDE_KERNEL = {"kernelRows": 1, "kernelColumns": 31, "padLeft": 15, "padRight": 15}
SPARSE = ["reference", "sparse_128x128", "sparse_128x64", "sparse_64x64"]
SPARSE_SINGLES = ["sparse_singles_64x64", "sparse_singles_64x128"]


@pytest.mark.parametrize(
    ("changes", "tactics"),
    [
        ({}, EVERY),
        ({"twoFour": 1}, [*SPARSE, *SPARSE_SINGLES]),
        ({"twoFour": 1, "listBlock": 1}, ["reference", *SPARSE_SINGLES]),
        ({"twoFour": 1, "dataType": 0}, ["reference"]),
        ({"twoFour": 1, "dataType": 0, "allowTf32": 1}, ["reference"]),
        ({"twoFour": 1, "yPitch": 25}, ["reference", *SPARSE_SINGLES]),
        ({"twoFour": 1, "rows": 70000}, [*SPARSE[1:], *SPARSE_SINGLES]),
        ({"twoFour": 1, **LONG, "listLength": 24}, [*SPARSE, *SPARSE_SINGLES]),
        ({"twoFour": 1, **LONG, "listLength": 32}, [*SPARSE, "sparse_64x64_split4", *SPARSE_SINGLES]),
        ({"twoFour": 1, "listKind": 1, "listLength": 3, "listBlock": 1}, [*SPARSE, *SPARSE_SINGLES]),
        ({"dataType": 2}, EVERY),
        ({"allowTf32": 1}, EVERY),
        ({"dataType": 0}, ["reference", "simt_128x64", "simt_64x32", "single_simt_64x32", "direct"]),
        ({"dataType": 0, **LONG, "listLength": 16}, ["reference", *SIMT, "direct"]),
        ({"dataType": 0, **LONG, "listLength": 16, "allowTf32": 1}, ["reference", *SIMT, *TF32, "direct"]),
        ({"listBlock": 1}, ANY),
        ({**LONG, "listLength": 16}, [*EVERY, *NARROW_SPLIT4]),
        (
            {**LONG, "listLength": 32},
            [*EVERY, *NARROW_SPLIT4, SINGLE_SPLIT4, "mma_64x64_k64_split4"],
        ),
        (
            {**LONG, "listLength": 64},
            [*EVERY, *NARROW_SPLIT4, "mma_64x64_split16", SINGLE_SPLIT4, "mma_64x64_k64_split4"],
        ),
        (
            {"channels": 128, "xPitch": 128, "listLength": 120},
            [
                *EVERY,
                *NARROW_SPLIT4,
                "mma_64x64_split16",
                SINGLE_SPLIT4,
                "mma_64x64_k64_split4",
                "mma_64x64_k64_split16",
            ],
        ),
        ({"channels": 12}, [*ANY, *NARROW]),
        ({"channels": 12, "groups": 2, "xPitch": 24}, ANY),
        ({"listLength": 12}, ANY),
        ({"listKind": 1, "listLength": 3, "listBlock": 1}, EVERY),
        ({"listKind": 1, "listLength": 3, "channels": 12}, ANY),
        ({"listKind": 2, "listLength": 24}, EVERY),
        ({"xPitch": 20}, ANY),
        ({"yPitch": 25}, ANY),
        ({"hasResidual": 1, "residualPitch": 25}, ANY),
        ({"hasResidual": 1, "residualPitch": 32}, EVERY),
        ({"rows": 70000}, [tactic for tactic in EVERY if tactic != "reference"]),
        (WIDE_KERNEL, ["reference", *NARROW, *NARROW_SPLIT4, "direct"]),
        ({**WIDE_KERNEL, "kernelColumns": 30}, [*EVERY, *NARROW_SPLIT4]),
        (
            {"height": 2000, "width": 2000, "dilationH": 400, "dilationW": 400},
            [tactic for tactic in EVERY if tactic != "direct"],
        ),
    ],
)
def test_tactics(changes: dict[str, int], tactics: list[str], run_conv: Path, tmp_path: Path) -> None:
    status, output = ask(run_conv, tmp_path, good_desc(**changes))
    assert status == 0
    assert sorted(output.splitlines()[0].split()[1:]) == sorted(tactics)


def lists(kind: int) -> tuple[Array, Array, Array]:
    """Good lists for `good_desc` of a kind: two filter groups of 12, in blocks of 8."""
    index = {
        0: [range(8), range(8, 16)],
        1: [[0, 4, 9], [1, 2, 3]],
        2: [[*range(8), *range(65544, 65552)], [*range(65536, 65544), *[9 * 65536] * 8]],
    }[kind]
    row_group = np.repeat([0, 1], 12)
    return np.array([list(i) for i in index], np.int32), row_group.astype(np.int32), np.arange(24, dtype=np.int32)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_good_lists_may_promise_blocks(kind: int, run_conv: Path, tmp_path: Path) -> None:
    index, row_group, row_filter = lists(kind)
    desc = good_desc(listKind=kind, listLength=index.shape[1])
    assert "listBlock: 8" in ask(run_conv, tmp_path, desc, (index, row_group, row_filter))[1]


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        (0, [0, 1, 2, 3, 4, 5, 6, 8]),
        (0, [4, 5, 6, 7, 8, 9, 10, 11]),
        (0, [8, 9, 10, 11, 16, 16, 16, 16]),
        (0, [16, 16, 16, 16, 16, 16, 16, 8]),
        (2, [0, 1, 2, 3, 4, 5, 6, 65536 + 7]),
        (2, [4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_lists_out_of_block_promise_nothing(kind: int, block: list[int], run_conv: Path, tmp_path: Path) -> None:
    index, row_group, row_filter = lists(kind)
    index[1, :8] = block
    desc = good_desc(listKind=kind, listLength=index.shape[1])
    status, output = ask(run_conv, tmp_path, desc, (index, row_group, row_filter))
    assert status == 0
    assert "listBlock: 1\n" in output


def test_a_last_block_may_run_past_the_channels(run_conv: Path, tmp_path: Path) -> None:
    mask = np.ones((24, 13, 3, 3), bool)
    packed = pack(np.zeros(mask.shape, np.float16), from_mask(mask), list_multiple=8)
    desc = good_desc(channels=13, listGroups=1, listLength=16)
    status, output = ask(run_conv, tmp_path, desc, (packed.index, packed.row_group, packed.filters))
    assert (status, "listBlock: 8" in output) == (0, True)


@pytest.mark.parametrize(
    ("kind", "array", "at", "value", "message"),
    [
        (0, 0, 3, 17, "index[3] is 17, not in [0, 16]"),
        (0, 0, 3, -1, "index[3] is -1"),
        (1, 0, 2, 10, "index[2] is 10, not in [0, 9]"),
        (2, 0, 2, 9 * 65536 + 1, "index[2] is 589825"),
        (2, 0, 2, 65536 + 16, "index[2] is 65552: its channel is not below 16"),
        (0, 1, 5, 2, "rowGroup[5] is 2, not in [0, 2)"),
        (0, 1, 5, 1, "rowGroup[6] descends"),
        (0, 2, 5, 25, "rowFilter[5] is 25"),
        (0, 2, 5, 4, "rowFilter[5]: filter 4 has a row already"),
        (0, 2, 5, 24, "rowFilter[6]: padding rows must follow"),
        (0, 2, 23, 24, "filter 23 has no row"),
    ],
)
def test_bad_lists_are_refused(
    kind: int, array: int, at: int, value: int, message: str, run_conv: Path, tmp_path: Path
) -> None:
    arrays = lists(kind)
    arrays[array].flat[at] = value
    status, output = ask(run_conv, tmp_path, good_desc(listKind=kind, listLength=arrays[0].shape[1]), arrays)
    assert status == INVALID
    assert message in output


def test_metadata_is_checked(run_conv: Path, tmp_path: Path) -> None:
    desc = good_desc(twoFour=1)
    metadata = np.full((2, 2, 32), 0x44444444, np.int32)
    assert ask(run_conv, tmp_path, desc, lists(0), metadata)[0] == 0
    metadata.view(np.uint32)[1, 1, 30] = 0xEDC98444  # all that is valid, 0b0100 on the left apart
    assert ask(run_conv, tmp_path, desc, lists(0), metadata)[0] == 0
    metadata.view(np.uint32)[1, 1, 30] = 0x44F44444
    assert "metadata[126]: places 3 and 3 of quad 5" in ask(run_conv, tmp_path, desc, lists(0), metadata)[1]
    metadata.view(np.uint32)[1, 1, 30] = 0x44444446
    assert "metadata[126]: places 2 and 1 of quad 0" in ask(run_conv, tmp_path, desc, lists(0), metadata)[1]


def test_a_quad_of_two_taps_is_refused(run_conv: Path, tmp_path: Path) -> None:
    index, row_group, row_filter = lists(2)
    index[0, 8:12] = [1, 2, 65536 + 3, 65536 + 4]
    desc = good_desc(listKind=2, listLength=16, twoFour=1)
    status, output = ask(run_conv, tmp_path, desc, (index, row_group, row_filter))
    assert status == INVALID
    assert "index[10] is 65539: not of the tap that its quad begins with" in output


def test_a_filter_group_across_onnx_groups_is_refused(run_conv: Path, tmp_path: Path) -> None:
    status, output = ask(run_conv, tmp_path, good_desc(groups=4, xPitch=64), lists(0))
    assert status == INVALID
    assert "rowFilter[6]: filter group 0 crosses ONNX groups" in output


def test_what_a_launch_refuses() -> None:
    done = run(build("launch_checks"))
    assert done.returncode == 0, done.stderr
    got = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for name in ("x", "weight", "index", "rowGroup", "rowFilter", "y"):
        assert got[f"{name} null"] == f"{INVALID} {name} is null"
    assert got["nothing"] == "0 "
    assert got["bias null"] == f"{INVALID} bias is null, unlike hasBias"
    assert got["residual null"] == f"{INVALID} residual is null, unlike hasResidual"
    assert got["bias not described"] == f"{INVALID} bias is given, unlike hasBias"
    for name, alignment in (("x", 16), ("weight", 16), ("y", 16), ("index", 4)):
        assert got[f"{name} misaligned"] == f"{INVALID} {name} is not aligned to {alignment} bytes"
    assert got["y on x"] == f"{INVALID} y overlaps x"
    assert got["y on residual"] == f"{INVALID} y overlaps residual"
    assert got["y in weight"] == f"{INVALID} y overlaps weight"
    for name in ("index", "rowGroup", "rowFilter", "metadata"):
        assert got[f"y on {name}"] == f"{INVALID} y overlaps {name}"
    assert got["tensors size"].startswith(f"{INVALID} tensors.structSize is 8, not ")
    assert got["tactic negative"] == f"{INVALID} tactic is -1, which is none"
    assert got["tactic unknown"] == f"{INVALID} tactic is 51, which is none"
    assert got["tactic gap"] == f"{INVALID} tactic is 31, which is none"
    assert got["metadata given"] == "0 "
    assert got["metadata null"] == f"{INVALID} metadata is null, unlike twoFour"
    assert got["metadata misaligned"] == f"{INVALID} metadata is not aligned to 16 bytes"
    assert got["metadata not described"] == f"{INVALID} metadata is given, unlike twoFour"
    assert got["2:4 weights for T1"] == f"{UNSUPPORTED} tactic mma_64x32 takes no 2:4 weights (twoFour 1)"
    assert got["dense weights for T4"] == f"{UNSUPPORTED} tactic sparse_64x64 needs 2:4 weights (twoFour 1)"
    assert got["tactic unfit"].startswith(f"{UNSUPPORTED} tactic mma_64x32 needs lists in blocks of 8")
    assert got["workspace given"] == "0 "
    assert got["workspace null"] == f"{INVALID} workspace is null"
    assert got["workspace short"] == f"{INVALID} workspaceBytes is 4095, less than 4096"
    assert got["y in workspace"] == f"{INVALID} y overlaps workspace"
    for tactic in ("mma_64x32", "reference"):
        refused = f"launching {tactic}: no kernel image is available for execution on the device"
        assert got[f"other architecture, {tactic}"] == f"{CUDA_ERROR} {refused}"
    assert got["launched in vain"] == "0 0"
    assert got["desc null"] == f"{INVALID} desc is null"
    assert got["tensors null"] == f"{INVALID} tensors is null"
    assert got["other thread"] == "0 []"
    assert (got["workspace"], got["output"], got["version"], got["name"]) == ("0 4096", "0 2x2", "0 2", "0 none")


@pytest.mark.parametrize("standard", ["c99", "c17"])
def test_the_header_is_plain_c(standard: str, run_conv: Path, tmp_path: Path) -> None:
    source = tmp_path / "use.c"
    source.write_text(f'#include "{ROOT / "plugins/capi/trtkp.h"}"\nint main(void) {{ return TRTKP_OK; }}\n')
    command = [COMPILER, "-x", "c", f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]
    subprocess.run([*command, str(source)], check=True)


@pytest.mark.parametrize(("base", "blocks"), [("KernelIndexConv", True), ("PatternConv", False)])
def test_unchecked_bad_lists_stay_inside_the_tensors(base: str, blocks: bool, run_conv: Path, tmp_path: Path) -> None:
    """Lists of any integers: wrong values, but no access that a sanitizer minds."""
    case = random_case(5, base=base, dtype="float16", blocks=blocks, whole=blocks)
    rng = np.random.default_rng(0)
    for array in (case.packed.index, case.packed.row_group, case.packed.filters):
        array[...] = rng.integers(-(1 << 31), 1 << 31, array.shape)
        small = rng.random(array.shape) < 0.7
        array[small] = rng.integers(-2, 20, int(small.sum()))
    tactics = ["reference", "single_128x16", "direct", *(["mma_64x32", "mma_64x64_k64"] if blocks else [])]
    for tactic in tactics:
        case.write(tmp_path / "case", tactic, 1)
        done = run(run_conv, tmp_path / "case", tmp_path / "y", "unchecked")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("blocks", [True, False])
def test_unchecked_bad_lists_of_two_four_stay_inside_the_tensors(blocks: bool, run_conv: Path, tmp_path: Path) -> None:
    """Lists of any integers; metadata stays as packed, as the instruction promises nothing of another."""
    case = random_case(6, base="PatternConv", dtype="float16", blocks=blocks, two_four=True)
    rng = np.random.default_rng(1)
    for array in (case.packed.index, case.packed.row_group, case.packed.filters):
        array[...] = rng.integers(-(1 << 31), 1 << 31, array.shape)
        small = rng.random(array.shape) < 0.7
        array[small] = rng.integers(-2, 20, int(small.sum()))
    for tactic in ("reference", "sparse_64x64" if blocks else "sparse_singles_64x64"):
        case.write(tmp_path / "case", tactic, 1)
        done = run(run_conv, tmp_path / "case", tmp_path / "y", "unchecked")
        assert done.returncode == 0, done.stderr
