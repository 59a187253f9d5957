"""Ceilings of the GPU, and single layers: packed convolutions against cuDNN's dense one in the same run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.gpu.device import Device
from benchmarks.gpu.record import Part
from benchmarks.gpu.shapes import SHAPES, Form, Shape, forms
from trtkp.cuda.arrays import activation
from trtkp.graph.packing import pack_for_tiles
from trtkp.index.index_set import from_mask
from trtkp.kernels import load_library, predict
from trtkp.kernels.choose import candidates
from trtkp.kernels.layer import Epilogue, Geometry, Task
from trtkp.kernels.prediction import Layer
from trtkp.ops import conv, upload
from trtkp.pruning.nm import two_four_mask

__all__ = ["measure_ceilings", "measure_layers"]

DTYPE = torch.float16
#: Tactics timed for a layer, those that the model puts first.
MOST_TACTICS = 4


def measure_ceilings(part: Part, device: Device) -> None:
    """Copy bandwidth, bytes read and written, and the rate of a square matrix product on random data."""
    count, side = (1 << 10, 32) if device.emulated else (1 << 29, 8192)

    def copy() -> dict[str, Any]:
        x = torch.randn(count, dtype=DTYPE, device=device.torch)
        y = torch.empty_like(x)
        found = device.time(y.copy_, [x], graph=False)
        return found | {"bytes_per_s": 2 * x.numel() * x.element_size() / (1e-6 * found["median_us"])}

    def product(dtype: torch.dtype) -> dict[str, Any]:
        a, b = (torch.randn(side, side, dtype=dtype, device=device.torch) for _ in range(2))
        found = device.time(lambda x: x @ b, [a], graph=False)
        return found | {"flops_per_s": 2 * side**3 / (1e-6 * found["median_us"])}

    for name, measure in {
        "copy": copy,
        "matrix float16": lambda: product(torch.float16),
        "matrix bfloat16": lambda: product(torch.bfloat16),
    }.items():
        found = part.measure(name, measure)
        if found and "failed" not in found:
            rate = found.get("bytes_per_s", found.get("flops_per_s"))
            print(f"  {name}: {rate / 1e12:.2f} T{'B' if 'bytes_per_s' in found else 'FLOP'}/s", flush=True)


def measure_layers(part: Part, device: Device, net: str, batch: int) -> None:
    """Every kind of list for every shape of a net, beside cuDNN's time of the shape."""
    shapes = SHAPES["tiny" if device.emulated else net]
    batch = min(batch, 2) if device.emulated else batch
    for shape in shapes:
        part.measure(f"{shape.name} | dense", lambda s=shape: _dense(device, s, batch))  # type: ignore[misc]
    for form in forms():
        for shape in shapes:
            dense = part.items.get(f"{shape.name} | dense", {}).get("median_us")
            found = part.measure(
                f"{shape.name} | {form.name}", lambda s=shape, f=form, d=dense: _packed(device, s, f, batch, d)
            )  # type: ignore[misc]
            if found is None:
                return
            if "speed_up" in found:
                print(f"  {shape.name:24} {form.name:36} {found['tactic']:20} {found['median_us']:9.1f} us "
                      f"{found['speed_up']:5.2f}x", flush=True)  # fmt: skip


def _input(device: Device, shape: Shape, batch: int) -> torch.Tensor:
    x = torch.randn(batch, shape.channels, shape.size, shape.size, dtype=DTYPE, device=device.torch)
    return x.contiguous(memory_format=torch.channels_last)


def _weight(shape: Shape) -> torch.Tensor:
    size = (shape.filters, shape.channels, shape.kernel, shape.kernel)
    return torch.randn(size, generator=torch.Generator().manual_seed(1)) / (shape.channels * shape.kernel**2) ** 0.5


def _dense(device: Device, shape: Shape, batch: int) -> dict[str, Any]:
    weight = _weight(shape).to(device.torch, DTYPE).contiguous(memory_format=torch.channels_last)
    inputs = device.copies(_input(device, shape, batch))
    found = device.time(lambda x: functional.conv2d(x, weight, None, shape.stride, shape.kernel // 2), inputs)
    return found | {"macs": shape.macs(batch), "flops_per_s": 2 * shape.macs(batch) / (1e-6 * found["median_us"])}


def _packed(device: Device, shape: Shape, form: Form, batch: int, dense_us: float | None) -> dict[str, Any]:
    mask = form.mask(shape, np.random.default_rng(0))
    if mask is None:
        return {"skipped": "one tap: a stripe keeps it or drops it"}
    index, weight = from_mask(mask), _weight(shape).numpy().astype(np.float16)
    if form.kind == "2:4":
        index = index.refined(two_four_mask(weight, index))
    packed = upload(pack_for_tiles(weight, index), device.torch)
    x, geometry = _input(device, shape, batch), Geometry.of(shape.stride, shape.kernel // 2, 1)
    y = torch.empty(batch, shape.filters, shape.output, shape.output, dtype=DTYPE, device=device.torch)
    y = y.contiguous(memory_format=torch.channels_last)
    library = load_library()
    task = Task.of(
        library, packed.lists, geometry, Epilogue(), x=activation(x, "x"), y=activation(y, "y"), weight=packed.weight,
        index=packed.index, row_group=packed.row_group, row_filter=packed.row_filter, metadata=packed.metadata,
    )  # fmt: skip
    work = Layer.of(task.desc, *library.output_size(task.desc))
    names = [name for name in candidates(task, device.gpu) if name != "reference"]
    if not names:
        return {"skipped": "only the reference kernel takes these lists"}
    call = {name: lambda x, name=name: conv(x, packed, stride=shape.stride, padding=shape.kernel // 2, tactic=name)
            for name in names}  # fmt: skip
    inputs = device.copies(x)
    tactics = {}
    for name in names[: 1 if device.emulated else MOST_TACTICS]:
        found = device.time(call[name], inputs, runs=5)
        guess = predict(name, work, device.gpu)
        tactics[name] = {"us": found["median_us"], "predicted_us": round(1e6 * guess.seconds, 3) if guess else None,
                         "bound": guess.bound if guess else None}  # fmt: skip
    best = min(tactics, key=lambda name: tactics[name]["us"])
    found = device.time(call[best], inputs)
    want = functional.conv2d(x[:1].double().cpu(), torch.from_numpy((weight * index.mask()).astype(np.float64)), None,
                             shape.stride, shape.kernel // 2)  # fmt: skip
    error = float((call[best](x[:1]).double().cpu() - want).norm() / want.norm())
    if not error <= 2e-3:
        raise RuntimeError(f"{best}: relative error {error:.2e}")
    rate = 2 * shape.macs(batch) * index.density / (1e-6 * found["median_us"])
    return found | {
        "tactic": best, "tactics": tactics, "density": round(index.density, 4), "error": error, "flops_per_s": rate,
        "speed_up": round(dense_us / found["median_us"], 4) if dense_us else None,
        "bound": tactics[best]["bound"],
    }  # fmt: skip
