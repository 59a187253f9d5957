"""Compare every tactic on the device with float64 on the CPU, on the random layers of the emulation tests.

python -m benchmarks.gpu.checks --cases 4     # alone, as compute-sanitizer runs it
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.device import Device, open_device
from benchmarks.gpu.record import Part
from tests.emulation.cases import BASES, TOLERANCE, Case, nhwc, random_case
from trtkp.errors import InputError
from trtkp.kernels import load_library
from trtkp.kernels.layer import DeviceConv
from trtkp.ops import conv, upload
from trtkp.ops.torch_op import to_torch

__all__ = ["check_all", "check_sanitizer"]

CASES = 40
#: Kinds of lists: blocks of 8 channels (the last may run past C); whole blocks only; long lists; any channels; and
#: lists with 2:4 inside.
KINDS: dict[str, dict[str, bool]] = {
    "blocks": {"blocks": True}, "whole": {"blocks": True, "whole": True}, "long": {"blocks": True, "long": True},
    "any": {"blocks": False}, "2:4": {"blocks": True, "two_four": True}, "any 2:4": {"blocks": False, "two_four": True},
}  # fmt: skip
_ACTIVATIONS: dict[str, Any] = {
    "": lambda y, alpha: y, "Relu": lambda y, alpha: functional.relu(y), "Relu6": lambda y, alpha: y.clamp(0, 6),
    "Silu": lambda y, alpha: functional.silu(y), "HardSwish": lambda y, alpha: functional.hardswish(y),
    "LeakyRelu": functional.leaky_relu,
}  # fmt: skip


def check_all(part: Part, device: Device, cases: int = CASES) -> None:
    """Check every operator, type and kind of list. An item has, for each tactic, its cases and its worst error."""
    cases = 1 if device.emulated else cases
    for base in BASES:
        for dtype in ("float32", "float16", "bfloat16"):
            for kind in KINDS:
                if device.emulated and kind == "long":
                    continue
                part.measure(f"{base} {dtype} {kind}", lambda b=base, d=dtype, k=kind: _check(
                    device, b, d, k, cases))  # type: ignore[misc]  # fmt: skip
    seen = {name for item in part.items.values() for name in item.get("tactics", {})}
    missing = [name for name in load_library().tactic_numbers if name not in seen]
    print(f"  {len(seen)} tactics checked; never run: {', '.join(missing) or 'none'}", flush=True)


def _check(device: Device, base: str, dtype: str, kind: str, cases: int) -> dict[str, Any]:
    tactics: dict[str, dict[str, Any]] = {}
    failures: list[str] = []
    for seed in range(cases):
        case = random_case(1000 * seed + 17, base=base, dtype=dtype, tf32=dtype == "float32", **KINDS[kind])
        want = reference(case)
        packed = upload(case.packed, device.torch)
        for name in load_library().tactic_numbers:
            try:
                got, again = _run(case, packed, device, name), _run(case, packed, device, name)
            except InputError as error:
                if f"tactic {name} " not in str(
                    error
                ):  # "tactic x cannot run this layer" is fine, anything else is not
                    raise
                continue
            found = tactics.setdefault(name, {"cases": 0, "worst": 0.0})
            error = float((got - want).norm() / want.norm().clamp(min=1e-30))
            if not error <= limit(case, name):
                failures.append(f"{name} seed {1000 * seed + 17}: relative error {error:.2e}")
            if not torch.equal(got, again):
                failures.append(f"{name} seed {1000 * seed + 17}: two runs differ")
            found["cases"] += 1
            found["worst"] = max(found["worst"], error)
    return {"tactics": tactics, "failures": failures}


def limit(case: Case, tactic: str) -> float:
    """Largest relative Frobenius error that one operator may have, as in the tests."""
    if "tf32" in tactic:
        return 2e-3
    return TOLERANCE.get(case.dtype, 1e-6 * max(1.0, (case.packed.weight.shape[1] / 1024) ** 0.5))


def reference(case: Case) -> torch.Tensor:
    """The layer in float64 on the CPU, computed by PyTorch."""
    top, left, bottom, right = case.pads
    x = functional.pad(torch.from_numpy(case.x.astype("float64")), (left, right, top, bottom))
    weight = torch.from_numpy(case.weight.astype("float64") * case.index.mask())
    y = functional.conv2d(x, weight, None, case.strides, 0, case.dilations, case.groups)
    if case.bias is not None:
        y = y + torch.from_numpy(case.bias.astype("float64"))[:, None, None]
    if case.residual is not None:
        y = y + torch.from_numpy(case.residual.astype("float64"))
    result: torch.Tensor = _ACTIVATIONS[case.activation](y, case.alpha)
    return result


def _run(case: Case, packed: DeviceConv, device: Device, tactic: str) -> torch.Tensor:
    """The output in float64. Its memory and the padded channels of the inputs hold NaN before, to show wrong reads."""

    def tensor(array: Any, pitch: int) -> Any:
        return (
            None
            if array is None
            else to_torch(nhwc(array, pitch), device.torch).permute(0, 3, 1, 2)[:, : array.shape[1]]
        )

    x, residual = tensor(case.x, case.pitches[0]), tensor(case.residual, case.pitches[2])
    bias = None if case.bias is None else to_torch(case.bias, device.torch)
    shape = (len(case.x), *case.output_size, case.pitches[1])
    storage = torch.full(shape, float("nan"), dtype=x.dtype, device=device.torch)
    out = storage.permute(0, 3, 1, 2)[:, : len(case.weight)]
    conv(x, packed, bias=bias, residual=residual, activation=case.activation, alpha=case.alpha, stride=case.strides,
         padding=case.pads, dilation=case.dilations, allow_tf32=case.tf32, tactic=tactic, out=out)  # fmt: skip
    device.synchronise()
    if storage[..., len(case.weight) :].double().abs().sum() != 0:
        raise RuntimeError(f"{tactic}: padded channels of the output are not 0")
    return out.double().cpu()


def check_sanitizer(part: Part, device: Device) -> None:
    """Run memcheck and racecheck over a few cases, without PyTorch's memory pool, so that overruns are seen."""
    tool = shutil.which("compute-sanitizer")
    for check in ("memcheck", "racecheck"):
        if device.emulated or tool is None:
            why = "the device is emulated" if device.emulated else "no compute-sanitizer on PATH (CUDA toolkit)"
            part.measure(check, lambda why=why: {"skipped": why})  # type: ignore[misc]
            print(f"  {check} was not run: {why}")
        else:
            part.measure(check, lambda check=check: _sanitize(str(tool), check))  # type: ignore[misc]


def _sanitize(tool: str, check: str) -> dict[str, Any]:
    command = [
        "env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool, "--tool", check, "--error-exitcode", "9",
        sys.executable, "-m", "benchmarks.gpu.checks", "--cases", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=220)
    tail = (done.stdout + done.stderr).splitlines()[-15:]
    print(f"  {check}: {tail[-1] if tail else ''}", flush=True)
    if done.returncode != 0:
        raise RuntimeError(f"{check} ended with status {done.returncode}: {' | '.join(tail[-4:])}")
    return {"command": " ".join(command), "tail": tail}


def main() -> None:
    """Check a few cases of some kinds of lists, and print what failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = open_device(options.device)
    failures = []
    for base in BASES:
        for dtype, kind in (("float32", "whole"), ("float16", "whole"), ("bfloat16", "any"), ("float16", "2:4")):
            failures += _check(device, base, dtype, kind, options.cases)["failures"]
    print("\n".join(failures) or "every tactic is correct")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
