"""Every kernel on random layers, emulated under sanitizers, against the float64 oracle.

TRTKP_EMULATION_CASES sets the number of cases of each tier (``make test-emulation`` runs many).
"""

from __future__ import annotations

import os
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .cases import ACTIVATIONS, BASES, TACTIC, TACTICS, TOLERANCE, Array, Case, random_case
from .programs import run

CASES = int(os.environ.get("TRTKP_EMULATION_CASES", "48"))
TIERS = sorted({tactic.tier for tactic in TACTIC.values()})


def check(case: Case, tactic: str, seed: int, program: Path, oracle: Any, folder: Path) -> None:
    """Runs a case and compares: padded channels are 0, the error is within the operator's tolerance."""
    case.write(folder / "case", tactic, seed)
    done = run(program, folder / "case", folder / "y")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    tolerance = TOLERANCE.get(
        "tf32" if "tf32" in tactic else case.dtype, 1e-6 * max(1.0, (case.packed.weight.shape[1] / 1024) ** 0.5)
    )
    compare(*case.read(folder / "y"), case.want(oracle), tolerance)


def compare(got: Array, padded: Array, want: Array, tolerance: float) -> None:
    """Padded channels are 0, the relative error is within the tolerance."""
    assert not padded.any()
    scale = float(np.linalg.norm(want))
    error = float(np.linalg.norm(got - want))
    assert error <= tolerance * scale, f"relative error {error / (scale or 1):.2e}"
    # One wrong element among many hides in a norm.
    rms = scale / np.sqrt(want.size)
    assert float(np.abs(got - want).max()) <= 10 * tolerance * rms


def parameters(tier: str, number: int) -> tuple[str, str, str]:
    """Base, data type and tactic: every combination comes in turn. T0 takes 2:4 weights too."""
    tactics = [name for name in TACTICS if TACTIC[name].tier == tier] + (["reference"] if tier == "T4" else [])
    turn, at = divmod(number, len(tactics))
    dtypes = TACTIC[tactics[at]].dtypes
    return BASES[(at + turn) % len(BASES)], dtypes[(at + turn // len(BASES)) % len(dtypes)], tactics[at]


def layer(tier: str, number: int) -> tuple[Case, str]:
    """The case of a number, and its tactic."""
    base, dtype, tactic = parameters(tier, number)
    takes = TACTIC[tactic]
    options = {"blocks": takes.blocks or number % 16 == 0, "whole": takes.whole, "long": takes.least > 256,
               "two_four": tier == "T4"}  # fmt: skip
    seeds = range(number, 1 << 20, 10007)
    cases = (random_case(seed, base=base, dtype=dtype, tf32=takes.tf32, **options) for seed in seeds)
    return next(case for case in cases if case.packed.weight.shape[1] >= takes.least), tactic


@pytest.mark.parametrize("number", range(CASES))
@pytest.mark.parametrize("tier", TIERS)
def test_random_layer(tier: str, number: int, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    case, tactic = layer(tier, number)
    check(case, tactic, zlib.crc32(b"%d" % number), run_conv, oracle, tmp_path)


@pytest.mark.parametrize("tier", TIERS)
def test_what_the_random_layers_cover(tier: str) -> None:
    """Already the share of ``make test``: every tactic, type, kind of list, epilogue and batch of the tier."""
    cases, tactics = zip(*(layer(tier, number) for number in range(min(CASES, 48))), strict=True)
    takes = [TACTIC[name] for name in TACTICS if TACTIC[name].tier == tier]
    assert {name for name in TACTICS if TACTIC[name].tier == tier} <= set(tactics)
    assert {case.packed.base for case in cases} == set(BASES)
    assert {case.dtype for case in cases} >= {dtype for tactic in takes for dtype in tactic.dtypes}
    epilogues = {(case.activation, case.residual is not None) for case in cases}
    assert epilogues == set(product(ACTIVATIONS, (False, True)))
    assert {case.bias is not None for case in cases} == {False, True}
    assert {len(case.x) for case in cases} == {1, 2, 3, 4, 5}
    assert {case.groups for case in cases} == {1, 2, 3}
    assert any(case.pitches[0] > case.x.shape[1] for case in cases)  # padded channels, full of NaN
    kernels = {case.weight.shape[2:] for case in cases}
    assert {(1, 1), (3, 3), (7, 7)} <= kernels
    kept = [set(case.index.mask().sum((1, 2, 3)).tolist()) for case in cases]
    assert any(0 in filters for filters in kept)
    assert any(case.weight[0].size in filters for case, filters in zip(cases, kept, strict=True))
    if not all(tactic.blocks for tactic in takes):
        assert any((case.index.entry_ptr[1:] - case.index.entry_ptr[:-1] == 1).any() for case in cases)


@pytest.mark.parametrize("kernel", [(8, 8), (1, 64), (64, 1)], ids=str)
@pytest.mark.parametrize(
    "tactic", ["reference", "mma_64x32", "mma_64x64_k64", "single_128x16", "direct", "sparse_64x64"]
)
def test_kernels_of_64_taps(tactic: str, kernel: tuple[int, int], run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    """The most that lists and tables of taps hold; wide steps need R + S of at most 31."""
    takes = TACTIC[tactic]
    options = {"base": "PatternConv", "dtype": takes.dtypes[-1], "blocks": takes.blocks, "two_four": takes.two_four}
    case = random_case(3, **options, whole=takes.blocks, shape=(9, 16, kernel))
    case.write(tmp_path / "case", tactic, 9)
    offered = run(run_conv, tmp_path / "case").stdout.splitlines()[0].split()[1:]
    assert (tactic in offered) == (sum(kernel) <= 31 or tactic not in ("mma_64x64_k64", "single_128x16"))
    if tactic in offered:
        check(case, tactic, 9, run_conv, oracle, tmp_path)


@pytest.mark.parametrize("tactic", ["mma_64x64_k64", "tf32_64x64", "single_128x16"])
def test_a_list_of_several_windows_of_units(tactic: str, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    """The table of units holds two windows (gemm.cuh): a third one takes the place of the first."""
    takes = TACTIC[tactic]
    options = {"dtype": takes.dtypes[0], "blocks": True, "whole": True, "tf32": takes.tf32, "shape": (20, 48, (7, 7))}
    cases = (random_case(seed, base="KernelIndexConv", **options) for seed in range(1000))
    case = next(case for case in cases if case.packed.weight.shape[1] > 2048)
    check(case, tactic, 7, run_conv, oracle, tmp_path)
