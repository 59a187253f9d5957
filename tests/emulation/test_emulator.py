"""The emulator itself: instructions against their documented layouts, and that planted faults are caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from .programs import FAILURE_STATUS, run

Array = np.ndarray[Any, Any]

LANES = np.arange(32)
#: groupID and threadID_in_group of the PTX manual's matrix fragments.
GROUP, MEMBER = LANES[:, None] >> 2, LANES[:, None] % 4


def compute(program: Path, folder: Path, name: str, data: bytes = b"", seed: int = 0) -> bytes:
    (folder / "input").write_bytes(data)
    done = run(program, name, folder / "input", folder / "output", str(seed))
    assert done.returncode == 0, done.stderr
    return (folder / "output").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mma_m16n8k16(dtype: str, self_test: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    element = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    a, b = rng.normal(size=(16, 16)).astype(element), rng.normal(size=(16, 8)).astype(element)
    c = rng.normal(size=(16, 8)).astype(np.float32)
    i = np.arange(8)
    a_lanes = a[np.where((i < 2) | ((i >= 4) & (i < 6)), GROUP, GROUP + 8), MEMBER * 2 + (i & 1) + 8 * (i >= 4)]
    i = np.arange(4)
    b_lanes = b[MEMBER * 2 + (i & 1) + 8 * (i >= 2), GROUP]
    c_at = (np.where(i < 2, GROUP, GROUP + 8), MEMBER * 2 + (i & 1))
    registers = np.concatenate([a_lanes.view(np.uint32), b_lanes.view(np.uint32), c[c_at].view(np.uint32)], axis=1)
    result = compute(self_test, tmp_path, f"mma_{dtype}", np.ascontiguousarray(registers).tobytes())
    d = np.empty((16, 8))
    d[c_at] = np.frombuffer(result, np.float32).reshape(32, 4)
    np.testing.assert_allclose(d, a.astype(float) @ b.astype(float) + c, rtol=1e-5, atol=1e-6)


def test_mma_m16n8k8_tf32(self_test: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a, b = (
        (rng.normal(size=shape).astype(np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32)
        for shape in ((16, 8), (8, 8))
    )
    c = rng.normal(size=(16, 8)).astype(np.float32)
    i = np.arange(4)
    a_lanes = a[np.where(i % 2 == 0, GROUP, GROUP + 8), np.where(i < 2, MEMBER, MEMBER + 4)]
    b_lanes = b[np.where(i[:2] == 0, MEMBER, MEMBER + 4), GROUP]
    c_at = (np.where(i < 2, GROUP, GROUP + 8), MEMBER * 2 + (i & 1))
    result = compute(self_test, tmp_path, "mma_tf32", np.concatenate([a_lanes, b_lanes, c[c_at]], axis=1).tobytes())
    d = np.empty((16, 8))
    d[c_at] = np.frombuffer(result, np.float32).reshape(32, 4)
    np.testing.assert_allclose(d, a.astype(float) @ b.astype(float) + c, rtol=1e-5, atol=1e-6)


def test_round_to_tf32(self_test: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    # the middle between two TF32 values goes away from zero
    ties = np.array([0x3F801000, 0xBF801000, 0x3F803000], np.uint32).view(np.float32)
    values = np.concatenate([rng.normal(size=1000).astype(np.float32), ties, np.float32([0, np.inf, -np.inf])])
    got = np.frombuffer(compute(self_test, tmp_path, "round_to_tf32", values.tobytes()), np.float32)
    with np.errstate(invalid="ignore"):
        fraction, exponent = np.frexp(values.astype(float))
        scaled = fraction * 2**11
        want = np.where(
            np.isfinite(values), np.ldexp(np.copysign(np.floor(abs(scaled) + 0.5), scaled), exponent - 11), values
        )
    np.testing.assert_array_equal(got, want.astype(np.float32))


def test_ballot(self_test: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(6).integers(-3, 4, 32).astype(np.int32)
    got = np.frombuffer(compute(self_test, tmp_path, "ballot", values.tobytes(), seed=3), np.uint32)
    assert got.tolist() == [sum(1 << i for i in range(32) if values[i] > 0)] * 32 + [int((values > 0).sum())] * 32


def test_an_ignored_cp_async_writes_zeros_and_reads_nothing(self_test: Path, tmp_path: Path) -> None:
    source = np.arange(10, 26).astype(np.uint8)
    got = compute(self_test, tmp_path, "cp_async_unless", source.tobytes())
    assert list(got) == [*range(10, 26), *[0] * 16]


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mma_sparse_m16n8k32(dtype: str, selector: int, self_test: Path, tmp_path: Path) -> None:
    """Fragments as the manual gives them: A [16, 32] stored as [16, 16], metadata in the lanes of the selector."""
    rng = np.random.default_rng(3)
    element = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    stored, b = rng.normal(size=(16, 16)).astype(element), rng.normal(size=(32, 8)).astype(element)
    c = rng.normal(size=(16, 8)).astype(np.float32)
    places = np.sort(rng.random((16, 8, 4)).argsort(axis=2)[..., :2], axis=2)  # of two in every quad of a row
    a = np.zeros((16, 8, 4))
    np.put_along_axis(a, places, stored.reshape(16, 8, 2).astype(float), axis=2)

    # a_i: row groupID for 0 <= i < 2 and 4 <= i < 6; firstcol = threadID_in_group * 4, and + 16 for i >= 4
    i = np.arange(8)
    row = np.where((i < 2) | ((i >= 4) & (i < 6)), GROUP, GROUP + 8)
    a_lanes = stored[row, MEMBER * 2 + (i & 1) + 8 * (i >= 4)]
    # b_i: row threadID_in_group * 2 + (i & 1), and + 8 for every two
    b_lanes = b[MEMBER * 2 + (i & 1) + 8 * (i // 2), GROUP]
    # The first lane of the pair has columns 0-15, the second 16-31; row groupID below, groupID + 8 above.
    words = rng.integers(0, 1 << 32, 32, dtype=np.uint32)  # what the other lanes hold counts for nothing
    for lane in range(32):
        if lane % 4 // 2 == selector:
            first = lane % 2 * 4
            rows = (lane // 4, lane // 4 + 8)
            codes = [places[r, first + q, 0] | places[r, first + q, 1] << 2 for r in rows for q in range(4)]
            words[lane] = sum(int(code) << 4 * at for at, code in enumerate(codes))
    i = np.arange(4)
    c_at = (np.where(i < 2, GROUP, GROUP + 8), MEMBER * 2 + (i & 1))
    registers = np.concatenate(
        [a_lanes.view(np.uint32), b_lanes.view(np.uint32), words[:, None], c[c_at].view(np.uint32)], axis=1
    )
    data = np.ascontiguousarray(registers).tobytes()
    result = compute(self_test, tmp_path, f"mma_sparse_{dtype}_{selector}", data)
    d = np.empty((16, 8))
    d[c_at] = np.frombuffer(result, np.float32).reshape(32, 4)
    np.testing.assert_allclose(d, a.reshape(16, 32) @ b.astype(float) + c, rtol=1e-5, atol=1e-6)


def test_metadata_that_is_not_ascending_is_caught(self_test: Path, tmp_path: Path) -> None:
    registers = np.zeros((32, 13), np.uint32)
    registers[:, 8] = 0x44444444
    registers[13, 8] = 0x44544444
    (tmp_path / "input").write_bytes(registers.tobytes())
    done = run(self_test, "mma_sparse_float16_0", tmp_path / "input", tmp_path / "output")
    assert done.returncode == FAILURE_STATUS
    assert "places 1 and 1 of a quad" in done.stderr
    registers[14, 8], registers[13, 8] = registers[13, 8], 0x44444444  # a lane of the other selector
    compute(self_test, tmp_path, "mma_sparse_float16_0", registers.tobytes())


def test_ldmatrix_x4(self_test: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = rng.permutation(64)[:32].astype(np.int32) * 16  # lane i addresses row i % 8 of matrix i / 8
    shared = rng.integers(0, 65536, (64, 8)).astype(np.uint16)
    result = compute(self_test, tmp_path, "ldmatrix", rows.tobytes() + shared.tobytes())
    got = np.frombuffer(result, np.uint16).reshape(32, 4, 2)  # [lane, matrix, element]
    matrices = shared[rows // 16].reshape(4, 8, 8)
    for matrix in range(4):
        want = matrices[matrix][GROUP, MEMBER * 2 + np.arange(2)]
        np.testing.assert_array_equal(got[:, matrix], want)


def test_cp_async_is_seen_at_its_wait_only(self_test: Path, tmp_path: Path) -> None:
    source = np.arange(10, 26).astype(np.uint8)
    result = np.frombuffer(compute(self_test, tmp_path, "cp_async", source.tobytes()), np.uint8).reshape(3, 2, 16)
    undefined, copied, zeros = [255] * 16, [*range(10, 20), 0, 0, 0, 0, 0, 0], [0] * 16
    assert result.tolist() == [[undefined, undefined], [copied, undefined], [copied, zeros]]


def test_shuffles(self_test: Path, tmp_path: Path) -> None:
    got = np.frombuffer(compute(self_test, tmp_path, "shuffles", seed=7), np.int32).reshape(3, 32)
    down = np.where(LANES + 4 < 32, LANES + 4, LANES)
    np.testing.assert_array_equal(got, 100 + np.array([(LANES * 7 + 3) % 32, LANES ^ 5, down]))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_conversions(self_test: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, 20000, dtype=np.uint32)
    ties = ((np.arange(65536, dtype=np.uint32) << 13) + 0x38000000 + (1 << 12)).view(np.float32)
    values = np.concatenate([
        bits.view(np.float32), rng.normal(size=5000), rng.normal(size=5000) * 1e-6, ties,
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, -65520, 2**-24, 2**-25, 2**-25 * 1.001, 6.1e-5],
    ]).astype(np.float32)  # fmt: skip
    result = compute(self_test, tmp_path, "conversions", values.tobytes())
    widened = np.frombuffer(result[: 2 * 65536 * 4], np.float32).reshape(2, 65536)
    every = np.arange(65536, dtype=np.uint16)
    narrowed = np.frombuffer(result[2 * 65536 * 4 :], np.uint16).reshape(2, len(values))
    for i, element in enumerate((np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))):
        np.testing.assert_array_equal(widened[i], every.view(element).astype(np.float32))
        got, want = narrowed[i].view(element), values.astype(element)
        same = (got.view(np.uint16) == want.view(np.uint16)) | (np.isnan(values) & np.isnan(got.astype(np.float32)))
        assert same.all(), values[~same][:5]


def test_indices(self_test: Path, tmp_path: Path) -> None:
    got = np.frombuffer(compute(self_test, tmp_path, "indices", seed=5), np.int32)
    np.testing.assert_array_equal(got, np.arange(2 * 3 * 2 * 64))


def test_a_barrier_holds_under_every_order_and_its_absence_shows(self_test: Path, tmp_path: Path) -> None:
    want = np.arange(128)[::-1].astype(np.int32).tobytes()
    seeds = range(1, 11)
    assert all(compute(self_test, tmp_path, "reverse", seed=seed) == want for seed in seeds)
    assert all(compute(self_test, tmp_path, "missing_barrier", seed=seed) != want for seed in seeds)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divergent_barrier", "__syncthreads after a thread of the block has ended"),
        ("divergent_barrier_of_the_last", "deadlock: 63 of 64 threads wait"),
        ("divergent_warp", "deadlock: 31 of 32 threads wait"),
        ("mixed_instructions", "in one warp"),
        ("mma_not_tf32", "not a TF32 value"),
        ("copy_misaligned", "not a multiple of 16"),
        ("copy_abandoned", "cp.async under way"),
    ],
)
def test_misuse_ends_with_a_message(name: str, message: str, self_test: Path) -> None:
    done = run(self_test, name)
    assert done.returncode == FAILURE_STATUS
    assert message in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shared_out_of_bounds", "heap-buffer-overflow"),
        ("global_out_of_bounds", "heap-buffer-overflow"),
        ("copy_out_of_bounds", "heap-buffer-overflow"),
        ("misaligned_vector", "misaligned address"),
    ],
)
def test_sanitizers_see_into_fibers(name: str, message: str, self_test: Path) -> None:
    done = run(self_test, name)
    assert done.returncode not in (0, FAILURE_STATUS)
    assert message in done.stderr
