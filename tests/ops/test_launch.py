"""`trtkp.ops.launch` end to end on the emulated library: tensors and other arrays, choices, errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.emulation.cases import Case, nhwc, random_case
from trtkp.errors import InputError, JobError
from trtkp.graph.packing import pack
from trtkp.index.index_set import from_mask
from trtkp.kernels import DeviceConv, choose
from trtkp.kernels.capi import Library
from trtkp.ops import conv, upload
from trtkp.ops.torch_op import conv_op, to_torch

Array = np.ndarray[Any, Any]


class DeviceArray:
    """NumPy memory that speaks as device memory does."""

    def __init__(self, array: Array, stream: int | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "version": 3,
            "strides": array.strides, "stream": stream,
        }  # fmt: skip


def aligned(array: Array, offset: int = 0) -> Array:
    """A copy that begins at a multiple of 64 bytes, or ``offset`` bytes past one."""
    space = np.empty(array.nbytes + 128, np.uint8)
    start = -space.ctypes.data % 64 + offset
    copy = space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def options(case: Case) -> dict[str, Any]:
    return {
        "activation": case.activation, "alpha": case.alpha, "stride": case.strides, "padding": case.pads,
        "dilation": case.dilations,
    }  # fmt: skip


def tensor(array: Array | None, pitch: int = 0) -> Any:
    """[N, C, H, W] with a pitch, its padded channels full of NaN; anything else as it is."""
    if array is None or array.ndim == 1:
        return None if array is None else to_torch(array, "cpu")
    channels = array.shape[1]
    return to_torch(nhwc(array, max(pitch, channels)), "cpu").permute(0, 3, 1, 2)[:, :channels]


def small() -> Case:
    """3x3 over 32 channels in fp16, 24 filters in two filter groups that keep two of four blocks of 8 channels."""
    rng = np.random.default_rng(7)
    mask = np.zeros((24, 32, 3, 3), bool)
    mask[:12, :16], mask[12:, 8:24] = True, True
    index = from_mask(mask)
    weight = (rng.normal(size=mask.shape) / 12).astype(np.float16)
    return Case(
        x=rng.normal(size=(2, 32, 5, 6)).astype(np.float16), weight=weight, index=index,
        packed=pack(weight, index, row_multiple=8, list_multiple=8), bias=rng.normal(size=24).astype(np.float16),
        residual=None, activation="Relu", alpha=0.2, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1,
        dtype="float16", block=8, pitches=(32, 24, 24),
    )  # fmt: skip


def error(got: Any, want: Array) -> float:
    got = got.double().numpy() if isinstance(got, torch.Tensor) else got.astype(np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("base", ["KernelIndexConv", "StripeConv", "PatternConv"])
def test_tensors(base: str, dtype: str, library: Library, oracle: Any) -> None:
    case = random_case(11, base=base, dtype=dtype, blocks=dtype != "float32")
    x, residual = tensor(case.x, case.pitches[0]), tensor(case.residual, case.pitches[2])
    y = conv(x, case.packed, bias=tensor(case.bias), residual=residual, **options(case))
    want = case.want(oracle)
    assert y.shape == want.shape
    assert y.dtype == x.dtype
    assert error(y, want) < {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}[dtype]


def test_every_tactic_gives_the_layer(library: Library, oracle: Any) -> None:
    case = random_case(5, base="StripeConv", dtype="float16", blocks=True, long=True)
    x = tensor(case.x, case.pitches[0])
    residual = tensor(case.residual, case.pitches[2])
    seen = []
    for tactic in library.tactic_numbers:
        try:
            y = conv(x, case.packed, bias=tensor(case.bias), residual=residual, tactic=tactic, **options(case))
        except InputError as refused:
            assert f"tactic {tactic} needs" in str(refused)  # noqa: PT017 (others are errors of this test)
            continue
        seen.append(tactic)
        assert error(y, case.want(oracle)) < 2e-3, tactic
    assert "reference" in seen
    assert any("split" in name for name in seen)


@pytest.mark.parametrize("blocks", [True, False])
def test_every_tactic_of_two_four_gives_the_layer(blocks: bool, library: Library, oracle: Any) -> None:
    case = random_case(3, base="KernelIndexConv", dtype="bfloat16", blocks=blocks, two_four=True)
    x, residual = tensor(case.x, case.pitches[0]), tensor(case.residual, case.pitches[2])
    arguments = {"bias": tensor(case.bias), "residual": residual, **options(case)}
    on_device = upload(case.packed, "cpu")
    rows, columns = case.packed.weight.shape
    assert on_device.weight.shape == (rows, 32 * -(-columns // 64))
    assert on_device.metadata.shape == (-(-rows // 16), -(-columns // 64), 32)
    for tactic in ("reference", "sparse_singles_64x64", *(["sparse_64x64", "sparse_128x64"] if blocks else [])):
        assert error(conv(x, on_device, tactic=tactic, **arguments), case.want(oracle)) < 1e-2, tactic
    y = conv(x, case.packed, **arguments)
    assert error(y, case.want(oracle)) < 1e-2
    with pytest.raises(InputError, match="takes no 2:4 weights"):
        conv(x, on_device, tactic="single_128x32", **arguments)
    with pytest.raises(InputError, match="weights that are not 2:4: a quad keeps 4 of 4"):
        upload(replace(case.packed, weight=np.ones_like(case.packed.weight)), "cpu")
    on_device.metadata = None
    with pytest.raises(InputError, match="metadata is None, but the weights are 2:4"):
        conv(x, on_device, out=y, **arguments)


def test_float32_is_rounded_only_where_it_may_be(library: Library, oracle: Any) -> None:
    case = random_case(2, base="KernelIndexConv", dtype="float32", blocks=True, whole=True)
    x, residual = tensor(case.x, case.pitches[0]), tensor(case.residual, case.pitches[2])
    arguments = {"bias": tensor(case.bias), "residual": residual, **options(case)}
    want = case.want(oracle)
    with pytest.raises(InputError, match="tactic tf32_64x64 needs float32 and allowTf32"):
        conv(x, case.packed, tactic="tf32_64x64", **arguments)
    rounded = error(conv(x, case.packed, tactic="tf32_64x64", allow_tf32=True, **arguments), want)
    assert 1e-5 < rounded < 2e-3
    assert error(conv(x, case.packed, tactic="simt_64x32", **arguments), want) < 1e-6


def test_output_has_a_pitch_that_kernels_like(library: Library, oracle: Any) -> None:
    """12 filters: pitch 16, padded channels 0, and the next layer reads it as it is."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 16, 1, 1)).astype(np.float16)
    packed = pack(weight, from_mask(np.ones(weight.shape, bool)))
    x = tensor(rng.normal(size=(2, 16, 3, 5)).astype(np.float16))
    y = conv(x, packed)
    assert y.stride() == (3 * 5 * 16, 1, 5 * 16, 16)
    padded = torch.as_strided(y, (2, 16, 3, 5), y.stride())
    assert not padded[:, 12:].any()
    second = pack(weight.reshape(16, 12, 1, 1), from_mask(np.ones((16, 12, 1, 1), bool)))
    z = conv(y, second)
    assert error(z, oracle(y.numpy(), weight.reshape(16, 12, 1, 1))) < 2e-3


def test_out_is_written_in_place(library: Library, oracle: Any) -> None:
    case = small()
    want = case.want(oracle)
    out = tensor(np.full(want.shape, np.nan, np.float16), 64)
    y = conv(tensor(case.x), case.packed, bias=tensor(case.bias), out=out, **options(case))
    assert y is out
    assert error(out, want) < 2e-3


def test_arrays_without_torch(library: Library, oracle: Any) -> None:
    """Any object with __cuda_array_interface__: it brings its own upload, output, workspace and stream."""
    case = replace(small(), bias=None)
    on_device = DeviceConv(case.packed, lambda array: DeviceArray(aligned(array)), library)
    want = case.want(oracle)
    n, filters, p, q = want.shape
    pitch = -(-filters // 8) * 8
    storage = aligned(np.full((n, p, q, pitch), np.nan, np.float16))
    x = aligned(nhwc(case.x, case.pitches[0])).transpose(0, 3, 1, 2)[:, : case.x.shape[1]]
    out = DeviceArray(storage.transpose(0, 3, 1, 2)[:, :filters])
    assert conv(DeviceArray(x, stream=1), on_device, out=out, **options(case)) is out
    assert error(out.array, want) < 2e-3
    assert not storage[..., filters:].any()

    with pytest.raises(InputError, match="packed is in host memory; make a DeviceConv"):
        conv(DeviceArray(x), case.packed, out=out, **options(case))
    with pytest.raises(InputError, match="out is None; give the output array"):
        conv(DeviceArray(x), on_device, **options(case))
    short = DeviceArray(aligned(storage[:, : p - 1]).transpose(0, 3, 1, 2)[:, :filters])
    with pytest.raises(InputError, match=r"y is float16\[.*\], expected"):
        conv(DeviceArray(x), on_device, out=short, **options(case))
    with pytest.raises(InputError, match=r"x is a numpy\.ndarray; give a CUDA tensor, or an object with"):
        conv(x, on_device, out=out, **options(case))
    moved = aligned(nhwc(case.x, case.pitches[0]), offset=2).transpose(0, 3, 1, 2)[:, : case.x.shape[1]]
    with pytest.raises(InputError, match="trtkpConvLaunch: x is not aligned to 16 bytes"):
        conv(DeviceArray(moved), on_device, out=out, **options(case))
    with pytest.raises(InputError, match="elements of type <f8; use one of float32, float16"):
        conv(DeviceArray(x.astype(np.float64)), on_device, out=out, **options(case))


def test_a_tactic_with_a_workspace_needs_one(library: Library) -> None:
    case = random_case(5, base="StripeConv", dtype="float16", blocks=True, long=True)
    case = replace(case, bias=None, residual=None)
    on_device = DeviceConv(case.packed, lambda array: DeviceArray(aligned(array)), library)
    n, filters = len(case.x), len(case.weight)
    shape = (n, *case.output_size, -(-filters // 8) * 8)
    out = DeviceArray(aligned(np.zeros(shape, np.float16)).transpose(0, 3, 1, 2)[:, :filters])
    x = DeviceArray(aligned(nhwc(case.x, case.pitches[0])).transpose(0, 3, 1, 2)[:, : case.x.shape[1]])
    name = next(n for n in library.tactic_numbers if "split4" in n)
    with pytest.raises(InputError, match="workspace is null"):
        conv(x, on_device, out=out, tactic=name, **options(case))
    few = DeviceArray(aligned(np.zeros(16, np.uint8)))
    with pytest.raises(InputError, match="workspaceBytes is 16, less than"):
        conv(x, on_device, out=out, tactic=name, workspace=few, **options(case))
    enough = DeviceArray(aligned(np.zeros(1 << 22, np.uint8)))
    conv(x, on_device, out=out, tactic=name, workspace=enough, **options(case))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.index.__setitem__((0, 0), 30000), r"trtkpConvCheckLists: index\[0\] is 30000"),
        (lambda p: p.index.__setitem__((0, 0), -1), r"index\[0\] is -1"),
        (lambda p: p.row_group.__setitem__(0, 99), r"rowGroup\[0\] is 99"),
        (lambda p: p.filters.__setitem__(0, p.filters[1]), "has a row already"),
    ],
)
def test_a_malformed_index_set_is_refused_before_it_is_uploaded(spoil: Any, message: str, library: Library) -> None:
    case = small()
    packed = replace(case.packed, index=case.packed.index.copy(), row_group=case.packed.row_group.copy(),
                     filters=case.packed.filters.copy())  # fmt: skip
    spoil(packed)
    with pytest.raises(InputError, match=message) as raised:
        upload(packed, "cpu")
    assert "\n" not in str(raised.value)


def test_tensors_that_do_not_fit_are_refused(library: Library) -> None:
    case = replace(small(), bias=None)
    x = tensor(case.x)
    channels, filters = case.x.shape[1], len(case.weight)
    out = tensor(np.zeros((2, 24, 5, 6), np.float16))
    refused = [
        ({"x": x.contiguous()}, "is not channels-last; x.contiguous"),
        ({"x": x[:, :8].contiguous(memory_format=torch.channels_last)}, f"x has 8 channels, the weight {channels}"),
        ({"x": x[0]}, r"expected \[N, C, H, W\]"),
        ({"x": x.double()}, "x is float64; use one of"),
        ({"x": x.float()}, r"weight is float16\[.*\], expected float32"),
        ({"bias": torch.zeros(filters + 1, dtype=torch.float16)}, r"bias is float16\[\d+\], expected"),
        ({"bias": torch.zeros(filters)}, r"bias is float32"),
        ({"residual": torch.zeros(1, filters, 1, 1, dtype=torch.float16)}, "residual is float16"),
        ({"tactic": "wmma"}, "tactic wmma: not known"),
        ({"activation": "Gelu"}, "activation Gelu: not known; use one of"),
        ({"stride": (1, 2, 3)}, "stride has 3 values"),
        ({"stream": 1}, "workspace and stream cannot be given with tensors"),
        ({"bias": torch.zeros(filters, dtype=torch.float16, device="meta"), "out": out}, "bias is on meta, x on cpu"),
    ]
    for changes, message in refused:
        arguments = {"x": x, "packed": case.packed, **options(case)} | changes
        with pytest.raises(InputError, match=message):
            conv(arguments.pop("x"), arguments.pop("packed"), **arguments)
    tiny = torch.zeros(1, channels, 1, 1, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    with pytest.raises(InputError, match="is smaller than the kernel"):
        conv(tiny, case.packed, dilation=9)


def test_the_real_library_takes_no_host_tensors(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    case = small()
    monkeypatch.setattr(library, "emulated", False)
    with pytest.raises(InputError, match="x is on cpu: the kernels run on CUDA devices; move the tensors"):
        conv(tensor(case.x), upload(case.packed, "cpu"), **options(case))


def test_an_old_gpu_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from trtkp.ops import torch_op

    monkeypatch.setattr(library, "emulated", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(InputError, match=r"Tesla T4 has compute capability 7.5: the kernels need 8.0 or later"):
        torch_op._require_device(torch.device("cuda"), library)


def test_a_gpu_that_the_library_was_not_built_for(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def trtkpConvLaunch(self, *arguments: Any) -> int:  # noqa: N802
            return 3

        def trtkpLastError(self) -> bytes:  # noqa: N802
            return b"launching mma_64x64: no kernel image is available for execution on the device"

    case = small()
    lists = upload(case.packed, "cpu")
    real = library._handle
    refusing = Refusing()
    for name in ("trtkpConvOutputSize", "trtkpConvTactics", "trtkpConvWorkspaceBytes"):
        setattr(refusing, name, getattr(real, name))
    monkeypatch.setattr(library, "_handle", refusing)
    with pytest.raises(JobError, match=r"no kernel image.*; .*is not built for this GPU: build it with TRTKP_CUDA"):
        conv(tensor(case.x), lists, **options(replace(case, bias=None, residual=None)))


def test_the_operator_stands_the_checks_of_pytorch(library: Library) -> None:
    """Schema, fake implementation and what torch.compile needs, by PyTorch's own test of operators."""
    case = replace(small(), bias=None)
    arguments = operator_arguments(case)
    torch.library.opcheck(conv_op, arguments, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"))


def operator_arguments(case: Case) -> tuple[Any, ...]:
    d = upload(case.packed, "cpu")
    return (
        tensor(case.x), d.weight, d.index, d.row_group, d.row_filter, None, None, d.metadata,
        list(d.lists.weight_shape), d.lists.groups, d.lists.base, d.lists.block, list(case.strides), list(case.pads),
        list(case.dilations),
        case.activation, case.alpha, False, "",
    )  # fmt: skip


def test_a_timing_decides_and_is_remembered(library: Library) -> None:
    from trtkp.cuda.arrays import activation as activation_view
    from trtkp.kernels.layer import Epilogue, Geometry, Task
    from trtkp.kernels.prediction import known_gpu

    case = replace(small(), bias=None)
    d = upload(case.packed, "cpu")
    y = conv(tensor(case.x), d, **options(case))
    task = Task.of(
        library, d.lists, Geometry(case.strides, case.pads, case.dilations), Epilogue(),
        x=activation_view(tensor(case.x), "x"), y=activation_view(y, "y"),
        weight=d.weight, index=d.index, row_group=d.row_group, row_filter=d.row_filter,
    )  # fmt: skip
    gpu = known_gpu("A100")
    names = choose.candidates(task, gpu)
    assert set(names) <= set(library.tactics(task.desc))
    assert len(names) > 1
    assert choose.choose(task, gpu, None) == names[0]  # predicted; a timing may still follow
    timed: list[str] = []

    def time_ms(name: str) -> list[float]:
        timed.append(name)
        return [1.0 if name == names[-1] else 2.0] * 3

    assert choose.choose(task, gpu, time_ms) == names[-1]
    assert sorted(timed) == sorted(names)
    assert choose.choose(task, gpu, None) == names[-1]
    assert choose.choose(task, gpu, time_ms) == names[-1]
    assert len(timed) == len(names)
    assert all(library.workspace_bytes(task.desc, n) == 0 for n in choose.candidates(task, gpu, workspace=False))
