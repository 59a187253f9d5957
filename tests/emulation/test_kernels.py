"""Every kernel on random layers, emulated under sanitizers, against the float64 oracle.

TRTKP_EMULATION_CASES sets the number of cases of each tier (``make test-emulation`` runs many).
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .cases import BASES, TACTIC, TACTICS, TOLERANCE, Array, Case, random_case
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


@pytest.mark.parametrize("tactic", ["mma_64x64_k64", "tf32_64x64", "single_128x16"])
def test_a_list_of_several_windows_of_units(tactic: str, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    """The table of units holds two windows (gemm.cuh): a third one takes the place of the first."""
    takes = TACTIC[tactic]
    options = {"dtype": takes.dtypes[0], "blocks": True, "whole": True, "tf32": takes.tf32, "shape": (20, 48, (7, 7))}
    cases = (random_case(seed, base="KernelIndexConv", **options) for seed in range(1000))
    case = next(case for case in cases if case.packed.weight.shape[1] > 2048)
    check(case, tactic, 7, run_conv, oracle, tmp_path)
