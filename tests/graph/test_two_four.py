"""2:4 operators: metadata by hand, an exact inverse, and functions against the oracle."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkp.errors import InputError
from trtkp.graph.ops import ACTIVATIONS, BASES, OpName
from trtkp.graph.packing import pack, unpack
from trtkp.graph.passes.pack import pack_convolutions, packed_nodes, read_packed
from trtkp.graph.two_four import compress, expand
from trtkp.index.index_set import IndexSet, from_mask
from trtkp.plan.lowerings import LOWERINGS
from trtkp.plan.planner import apply_plan
from trtkp.pruning.nm import two_four_mask

NAMES = [OpName(*parts, two_four=True) for parts in product(BASES, (False, True), ACTIVATIONS)]
OF_BASE = {"KernelIndexConv": "kernel", "StripeConv": "stripe", "PatternConv": "product"}


def random_rows(rng: np.random.Generator, shape: tuple[int, int], dtype: Any) -> np.ndarray[Any, Any]:
    rows = rng.normal(size=shape).astype(dtype)
    quads = rows.reshape(shape[0], -1, 4)
    quads[rng.random(quads.shape).argsort(axis=2).argsort(axis=2) >= 2] = 0
    return rows


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([np.float16, np.float32]), st.integers(0, 2**32 - 1))
def test_expand_is_the_inverse(count: int, quads: int, dtype: Any, seed: int) -> None:
    rows = random_rows(np.random.default_rng(seed), (count, quads * 4), dtype)
    weight, metadata = compress(rows)
    steps = -(-quads // 16)
    assert weight.shape == (count, 32 * steps)
    assert metadata.shape == (-(-count // 16), steps, 32)
    assert weight.dtype == dtype
    assert metadata.dtype == np.int32
    assert np.array_equal(expand(weight, metadata, quads * 4), rows)
    # every quad of every word has two places in ascending order, padding too
    codes = metadata.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & np.uint32(15)
    assert ((codes & 3) < codes >> 2).all()


def test_metadata_by_hand() -> None:
    """Row g + 8 in the upper half, a word for 16 columns, the lower place in the lower bits."""
    rows = np.zeros((16, 64), np.float32)
    rows[:, 0::4] = rows[:, 1::4] = 1  # places 0 and 1: 0b0100
    rows[2, 20:24] = [0, 0, 5, 6]  # row 2, columns 16 to 31 (t = 1), second quad: places 2 and 3
    rows[10, 36:40] = [0, 7, 0, 8]  # row 2 + 8, columns 32 to 47 (t = 2), second quad: places 1 and 3
    rows[7, 60:64] = [9, 0, 0, 8]  # row 7, t = 3, last quad: places 0 and 3
    weight, metadata = compress(rows)
    want = np.full(32, 0x44444444, np.uint32)
    want[4 * 2 + 1] = 0x444444E4
    want[4 * 2 + 2] = 0x44D44444
    want[4 * 7 + 3] = 0x4444C444
    assert metadata.view(np.uint32).tolist() == [[want.tolist()]]
    assert weight[2, 10:12].tolist() == [5, 6]
    assert weight[10, 18:20].tolist() == [7, 8]
    assert weight[7, 30:32].tolist() == [9, 8]


def test_three_of_a_quad_are_refused() -> None:
    with pytest.raises(InputError, match="a quad keeps 3 of 4"):
        compress(np.array([[1, 2, 0, 3]], np.float32))


def refined(rng: np.random.Generator, shape: tuple[int, int, int, int], groups: int, kind: str) -> IndexSet:
    """Lists of a kind with 2:4 inside; the entries of kernels and products in any order."""
    mask = np.zeros(shape, bool)
    for filters in np.array_split(np.arange(shape[0]), groups * int(rng.integers(1, 3))):
        channels, taps = np.ones(shape[1], bool), np.ones(shape[2:], bool)
        if kind != "stripe":
            channels &= rng.random(shape[1]) < rng.choice([0.3, 0.7, 1.0])
        if kind != "kernel":
            taps &= rng.random(shape[2:]) < rng.choice([0.0, 0.5, 0.8])
        mask[filters] = channels[:, None, None] & taps
    index = from_mask(mask, groups)
    if kind != "stripe" or rng.random() < 0.3:
        channel = index.channel.copy()
        for first, end in zip(index.entry_ptr[:-1], index.entry_ptr[1:], strict=True):
            channel[first:end] = rng.permutation(channel[first:end])
        index = replace(index, channel=channel)
    return index.refined(two_four_mask(rng.normal(size=shape), index))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_functions_agree_with_the_oracle(
    conv_cases: Any, run: Any, relative_error: Any, error_bound: Any, dtype: Any
) -> None:
    seen = set()

    @settings(max_examples=60)
    @given(conv_cases(), st.sampled_from([1, 4]), st.sampled_from([1, 3, 8]), st.integers(0, 9999))
    def check(case: Any, row_multiple: int, list_multiple: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        index = refined(rng, case.weight.shape, case.groups, str(rng.choice(["kernel", "stripe", "product"])))
        index.validate("w")
        case = replace(case, mask=index.mask()).astype(dtype)
        packed = pack(case.weight, index, row_multiple=row_multiple, list_multiple=list_multiple)
        assert np.array_equal(unpack(packed), np.where(case.mask, case.weight, 0))
        model = case.model()
        (node,) = pack_convolutions(model, {"w": index}, {}, row_multiple=row_multiple, list_multiple=list_multiple)
        op, read = read_packed(node)
        assert (op.two_four, op.base) == (True, packed.base)
        assert np.array_equal(read.weight, packed.weight)
        seen.add(op.base)
        got = run(model, case.feeds())
        assert got.dtype == dtype
        assert relative_error(got, case.want()) < error_bound(dtype, case.weight[0].size)

    check()
    assert seen == set(BASES)


def plain_model(name: OpName, dtype: Any) -> tuple[ir.Model, Any, Any, Any]:
    from tests.conftest import ConvCase

    rng = np.random.default_rng(7)
    index = refined(rng, (20, 8, 3, 3), 1, OF_BASE[name.base])
    if name.base == "PatternConv":
        mask = np.zeros((20, 8, 3, 3), bool)
        mask[:, :6, :2] = True
        index = from_mask(mask)
        index = index.refined(two_four_mask(rng.normal(size=mask.shape), index))
    elif name.base == "StripeConv":
        mask = np.zeros((20, 8, 3, 3), bool)
        mask[:, :, :2] = True
        index = from_mask(mask)
        index = index.refined(two_four_mask(rng.normal(size=mask.shape), index))
    case = ConvCase(
        x=rng.normal(size=(2, 8, 7, 6)), weight=rng.normal(size=(20, 8, 3, 3)), mask=index.mask(),
        bias=rng.normal(size=20), residual=rng.normal(size=(2, 20, 7, 6)) if name.residual else None,
        activation=name.activation, alpha=0.2, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1,
    ).astype(dtype)  # fmt: skip
    model = case.model()
    (node,) = pack_convolutions(model, {"w": index}, {}, list_multiple=8)
    assert node.op_type == str(name)
    return model, case, node, index


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_every_operator(name: OpName, dtype: Any, run: Any, relative_error: Any, error_bound: Any) -> None:
    model, case, _, _ = plain_model(name, dtype)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert relative_error(run(model, case.feeds()), case.want()) < error_bound(dtype, 72)
    assert OpName.parse(str(name)) == name


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("base", BASES)
def test_onnxruntime_folds_the_body_to_a_convolution(base: str, dtype: Any, tmp_path: Path) -> None:
    import onnxruntime

    model, *_ = plain_model(OpName(base, two_four=True), dtype)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert left - {"Cast", "ReorderInput", "ReorderOutput"} == {"Conv"}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_lowering_is_exact(base: str, lowering: str, run: Any, relative_error: Any) -> None:
    model, case, node, _ = plain_model(OpName(base, True, "Relu", True), np.float32)
    if LOWERINGS[lowering].applies(read_packed(node)[1]) is not None:
        return
    lowered = apply_plan(model, {str(node.name): lowering})
    assert not packed_nodes(lowered)
    assert relative_error(run(lowered, case.feeds()), case.want()) < 1e-6
