"""Every kernel on random layers, emulated under sanitizers, against the float64 oracle.

TRTKP_EMULATION_CASES sets the number of cases (``make test-emulation`` runs many).
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .cases import BASES, SPARSE_SPLITS, SPLITS, TACTICS, TOLERANCE, Array, Case, random_case
from .programs import run

CASES = int(os.environ.get("TRTKP_EMULATION_CASES", "96"))


def check(case: Case, tactic: str, seed: int, program: Path, oracle: Any, folder: Path) -> None:
    """Runs a case and compares: padded channels are 0, the error is within the operator's tolerance."""
    case.write(folder / "case", tactic, seed)
    done = run(program, folder / "case", folder / "y")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    tolerance = TOLERANCE.get(case.dtype, 1e-6 * max(1.0, (case.packed.weight.shape[1] / 1024) ** 0.5))
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


def parameters(number: int) -> tuple[str, str, str]:
    """Base, data type and tactic: every combination comes in turn."""
    tactic = TACTICS[number % len(TACTICS)]
    base = BASES[number // len(TACTICS) % len(BASES)]
    dtypes = ("float32", "float16", "bfloat16") if tactic == "reference" else ("float16", "bfloat16")
    return base, dtypes[number // (len(TACTICS) * len(BASES)) % len(dtypes)], tactic


@pytest.mark.parametrize("number", range(CASES))
def test_random_layer(number: int, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    base, dtype, tactic = parameters(number)
    blocks = tactic != "reference" or number % 16 == 0
    least = 32 * SPLITS[tactic] if SPLITS[tactic] > 1 else 0  # a split needs a step for each of its blocks
    seeds = range(number, 1 << 20, 10007)
    cases = (random_case(seed, base=base, dtype=dtype, blocks=blocks, long=least > 256) for seed in seeds)
    case = next(case for case in cases if case.packed.weight.shape[1] >= least)
    check(case, tactic, zlib.crc32(b"%d" % number), run_conv, oracle, tmp_path)


def sparse_parameters(number: int) -> tuple[str, str, str]:
    """Base, data type and tactic of a case with 2:4 weights: T4's, and now and then T0."""
    tactics = (*SPARSE_SPLITS, "reference")
    tactic = tactics[number % len(tactics)]
    dtypes = ("float16", "bfloat16", "float32") if tactic == "reference" else ("float16", "bfloat16")
    return (
        BASES[number // len(tactics) % len(BASES)],
        dtypes[number // (len(tactics) * len(BASES)) % len(dtypes)],
        tactic,
    )


def sparse_case(number: int) -> tuple[Case, str]:
    """A random layer with 2:4 weights, and the tactic for it."""
    base, dtype, tactic = sparse_parameters(number)
    splits = SPARSE_SPLITS.get(tactic, 1)
    least = 64 * splits if splits > 1 else 0
    blocks = tactic in SPARSE_SPLITS and "singles" not in tactic
    seeds = range(number, 1 << 20, 10007)
    cases = (random_case(seed, base=base, dtype=dtype, blocks=blocks, two_four=True) for seed in seeds)
    return next(case for case in cases if case.packed.weight.shape[1] >= least), tactic


@pytest.mark.parametrize("number", range(CASES))
def test_random_layer_with_two_four(number: int, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    case, tactic = sparse_case(number)
    check(case, tactic, zlib.crc32(b"2:4 %d" % number), run_conv, oracle, tmp_path)
